"""Step anatomy and memory: what each feature costs or saves, in milliseconds and in bytes."""

from __future__ import annotations

from collections.abc import Sequence

from lanewise.dash import format as fmt
from lanewise.dash.rows import verdict_tone
from lanewise.dash.svg import Canvas, Linear, text_width
from lanewise.receipts.decision import Decision, Verdict

WIDTH = 900.0
PLOT_LEFT, PLOT_RIGHT = 206.0, 640.0
ROW_HEIGHT, BAR_HEIGHT = 32.0, 16.0
TOP, AXIS_HEIGHT = 8.0, 26.0
NAME_CHARACTERS = 26


def anatomy(decisions: Sequence[Decision]) -> str | None:
    """Step time with and without each feature, from zero: the part between the two is what the feature moves.

    The step with the feature is the control's median times the estimated ratio, so that bar and verdict agree: the
    arms' plain medians mix blocks, between which the machine drifts. Decisions without step time or estimate, and
    invalid ones, are left out. None when nothing is left.
    """
    timed = [
        (d, d.control_step_seconds, d.control_step_seconds * d.estimate.ratio)
        for d in decisions
        if d.control_step_seconds is not None
        and d.estimate is not None
        and d.verdict is not Verdict.INVALID
    ]
    if not timed:
        return None
    timed.sort(key=lambda item: item[2] - item[1])
    bottom = TOP + ROW_HEIGHT * len(timed)
    words = (f"{d.feature}: {fmt.seconds(a)} off, {fmt.seconds(b)} on" for d, a, b in timed)
    canvas = Canvas(
        name="anatomy",
        title="What each feature moves in the step, in milliseconds",
        description="; ".join(words),
        width=WIDTH,
        height=bottom + AXIS_HEIGHT,
    )
    longest = max(max(a, b) for _, a, b in timed)
    scale = Linear(low=0.0, high=longest, start=PLOT_LEFT, end=PLOT_RIGHT)
    for tick in scale.ticks(6):
        canvas.line(scale(tick), TOP, scale(tick), bottom, "grid")
        canvas.text(scale(tick), bottom + 17, f"{1e3 * tick:g}", "tick", anchor="middle")
    canvas.text(PLOT_RIGHT + 14, bottom + 17, "ms a step", "note")
    open_hatch = canvas.hatch("open", 5, 45, "hatch-open")
    for index, (decision, control, treated) in enumerate(timed):
        y = TOP + ROW_HEIGHT * (index + 0.5)
        shorter, longer = scale(min(control, treated)), scale(max(control, treated))
        tip = f"{fmt.seconds(control)} off, {fmt.seconds(treated)} on"
        canvas.name(0, y, decision.feature, NAME_CHARACTERS)
        bar = y - BAR_HEIGHT / 2
        canvas.rect(PLOT_LEFT, bar, shorter - PLOT_LEFT, BAR_HEIGHT, "bar-base", tip=tip)
        width = max(1.5, longer - shorter)
        if verdict_tone(decision) in ("open", "quiet"):
            canvas.filled(shorter, bar, width, BAR_HEIGHT, open_hatch, tip=tip)
        else:
            saves = "bar-gain" if treated < control else "bar-loss"
            canvas.rect(shorter, bar, width, BAR_HEIGHT, saves, tip=tip)
        canvas.line(scale(treated), bar - 3, scale(treated), bar + BAR_HEIGHT + 3, "bar-on")
        canvas.text(
            PLOT_RIGHT + 14, y + 4.5, fmt.signed_milliseconds(treated - control), "value strong"
        )
        canvas.text(WIDTH, y + 4.5, f"{_ms(control)} → {_ms(treated)}", "note", anchor="end")
    return canvas.markup()


def memory(decisions: Sequence[Decision]) -> str | None:
    """Change of peak memory per feature, around zero; None when no decision measured it."""
    measured = [
        (d, d.peak_memory_bytes.delta) for d in decisions if d.peak_memory_bytes.delta is not None
    ]
    if not measured:
        return None
    bottom = TOP + ROW_HEIGHT * len(measured)
    canvas = Canvas(
        name="memory",
        title="Change of peak memory per feature",
        description="; ".join(f"{d.feature}: {fmt.signed_mebibytes(v)}" for d, v in measured),
        width=WIDTH,
        height=bottom + AXIS_HEIGHT,
    )
    mib = [value / 2**20 for _, value in measured]
    low, high = min(0.0, *mib), max(0.0, *mib)
    if low == high:
        low, high = -1.0, 1.0
    scale = Linear(low=low, high=high, start=PLOT_LEFT + 10, end=PLOT_RIGHT - 10)
    for tick in scale.ticks(6):
        canvas.line(scale(tick), TOP, scale(tick), bottom, "grid")
        label = fmt.signed(tick, 0 if float(tick).is_integer() else 1)
        canvas.text(scale(tick), bottom + 17, "0" if tick == 0 else label, "tick", anchor="middle")
    canvas.text(PLOT_RIGHT + 14, bottom + 17, "MiB", "note")
    for index, ((decision, value), size) in enumerate(zip(measured, mib, strict=True)):
        y = TOP + ROW_HEIGHT * (index + 0.5)
        canvas.name(0, y, decision.feature, NAME_CHARACTERS)
        left, right = sorted((scale(0.0), scale(size)))
        kind = "bar-gain" if size < 0 else "bar-loss"
        canvas.rect(left, y - BAR_HEIGHT / 2, max(1.5, right - left), BAR_HEIGHT, kind)
        canvas.text(PLOT_RIGHT + 14, y + 4.5, fmt.signed_mebibytes(value), "value strong")
        both = decision.peak_memory_bytes
        if both.control is not None and both.treated is not None:
            note = f"{fmt.mebibytes(both.control)} → {fmt.mebibytes(both.treated)}"
            fits = text_width(note) < WIDTH - PLOT_RIGHT - 90
            canvas.text(
                WIDTH, y + 4.5, note if fits else fmt.mebibytes(both.treated), "note", anchor="end"
            )
    canvas.line(scale(0.0), TOP, scale(0.0), bottom, "zero")
    return canvas.markup()


def _ms(value: float) -> str:
    return fmt.milliseconds(value)
