"""A calibration as people read it: lines for a terminal, a strip of A/A blocks for the report."""

from __future__ import annotations

import math
from dataclasses import dataclass

from lanewise.dash import format as fmt
from lanewise.dash.svg import Canvas, Linear
from lanewise.receipts.calibration import (
    CalibrationRecord,
    ControlResult,
    FalsePositives,
    Interval,
    ObserverResult,
)

WIDTH, HEIGHT = 720.0, 190.0
LEFT, RIGHT, TOP, BOTTOM = 58.0, 560.0, 22.0, 150.0
LABEL_ROOM = 14.0

Pairs = tuple[tuple[str, str], ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class CalibrationView:
    """The report's section: a chart, the numbers, and what to know about them."""

    name: str
    chart: str
    facts: Pairs
    notes: tuple[str, ...]


def calibration_view(calibration: CalibrationRecord) -> CalibrationView:
    """The section of one calibration."""
    return CalibrationView(
        name=calibration.calibration_id,
        chart=aa_strip(calibration),
        facts=calibration_facts(calibration),
        notes=calibration.notes,
    )


def calibration_lines(calibration: CalibrationRecord) -> tuple[str, ...]:
    """The calibration on a terminal: one line a fact, then the notes."""
    facts = calibration_facts(calibration)
    width = max(len(name) for name, _ in facts)
    lines = [f"{name:<{width}}  {text}" for name, text in facts]
    return (*lines, *(f"{'note':<{width}}  {note}" for note in calibration.notes))


def calibration_facts(calibration: CalibrationRecord) -> Pairs:
    """Everything a calibration says, in the order in which a sceptic asks."""
    sd = calibration.block_sd_interval
    pooled = len(calibration.campaigns)
    source = f", pooled from {fmt.plural(pooled, 'campaign')}" if pooled > 1 else ""
    dropped = len(calibration.discarded_blocks)
    facts = [
        (
            "noise",
            f"block SD {_percent(calibration.block_sd_log)} [{_number(sd.low)}, {_number(sd.high)}] over "
            f"{calibration.num_blocks} {calibration.block_design} A/A blocks of "
            f"{calibration.quads_per_block:g} quads{source}"
            + (f"; {fmt.plural(dropped, 'block')} did not count" if dropped else ""),
        ),
        (
            "bias",
            f"{_signed(calibration.bias_log)} {_interval(calibration.bias_interval)}, p {calibration.bias_p:.2f}: "
            + (
                "BIASED, 0 is not in the interval; one calibration in twenty is by chance, so repeat it"
                if calibration.biased
                else "contains 0 ✓"
            ),
        ),
        (
            "drift",
            f"correlation of consecutive blocks {fmt.signed(calibration.autocorrelation, 2)}, "
            f"p {calibration.autocorrelation_p:.2f}: "
            + (
                "DRIFTS, neighbouring blocks are alike, so intervals are too narrow"
                if calibration.drifting
                else "none to see ✓"
            ),
        ),
        ("false +", "; ".join(_rate(rate) for rate in calibration.false_positives)),
        ("margin", f"δ = {_percent(calibration.margin.log_value)}: smaller effects get no verdict"),
        (
            "detects",
            " · ".join(
                f"≥ {_percent(one.effect_log)} in {one.num_blocks} blocks"
                for one in calibration.detectable
            )
            + " (80 % power, looks and δ included)",
        ),
        ("cost", f"{fmt.seconds(calibration.seconds_per_block)} a block"),
    ]
    if calibration.observer is not None:
        facts.append(("observer", _observer(calibration.observer)))
    if calibration.control is not None:
        facts.append(("control", _control(calibration.control)))
    facts.append(
        (
            "valid",
            f"until {calibration.valid_until[:10]} on {calibration.machine.class_name}, for this lane, "
            f"{calibration.block_design} blocks, {fmt.plural(calibration.num_threads, 'thread')} and this software",
        )
    )
    return tuple(facts)


def aa_strip(calibration: CalibrationRecord) -> str:
    """Effect of every A/A block in the order they were run, δ shaded, the mean with its interval at the right."""
    blocks, margin = calibration.blocks, calibration.margin.log_value
    changes = [math.expm1(block.contrast_log) for block in blocks]
    reach = 1.1 * max([abs(change) for change in changes] + [math.expm1(margin), 0.005])
    x = Linear(low=-0.5, high=len(blocks) - 0.5, start=LEFT, end=RIGHT)
    y = Linear(low=-reach, high=reach, start=BOTTOM, end=TOP)
    canvas = Canvas(
        name=f"aa-{calibration.calibration_id}",
        title=f"A/A blocks of {calibration.lane.name}",
        description=(
            f"{len(blocks)} blocks whose arms do not differ; mean {_signed(calibration.bias_log)} "
            f"{_interval(calibration.bias_interval)}, block SD {_percent(calibration.block_sd_log)}, "
            f"margin {_percent(margin)} shaded"
        ),
        width=WIDTH,
        height=HEIGHT,
    )
    band = math.expm1(margin)
    canvas.rect(
        LEFT, y(band), RIGHT - LEFT, y(-band) - y(band), "margin", tip=f"δ = ±{_percent(margin)}"
    )
    for tick in y.ticks(5):
        canvas.line(LEFT, y(tick), RIGHT, y(tick), "grid")
        canvas.text(LEFT - 6, y(tick) + 4, fmt.signed_percent(tick, 1), "tick", anchor="end")
    canvas.line(LEFT, y(0.0), RIGHT, y(0.0), "zero")
    _campaign_bounds(canvas, x, calibration)
    for index, (block, change) in enumerate(zip(blocks, changes, strict=True)):
        outside = abs(block.contrast_log) > margin
        canvas.circle(
            x(index),
            y(change),
            4.5,
            f"mark {'open' if outside else 'quiet'}",
            tip=f"{block.campaign_id} block {block.block}: {fmt.signed_percent(change, 2)}, "
            f"{block.num_quads} quads",
        )
    low, high = (
        math.expm1(end) for end in (calibration.bias_interval.low, calibration.bias_interval.high)
    )
    place = RIGHT + 18
    canvas.line(place, y(low), place, y(high), "whisker")
    canvas.circle(place, y(math.expm1(calibration.bias_log)), 5.0, "mark")
    canvas.text(place + 12, y(0.0) - LABEL_ROOM / 2, "mean of all blocks", "note")
    canvas.text(place + 12, y(0.0) + LABEL_ROOM, _signed(calibration.bias_log), "strong")
    canvas.text(LEFT, BOTTOM + 18, "block 1", "tick")
    canvas.text(RIGHT, BOTTOM + 18, str(len(blocks)), "tick", anchor="end")
    canvas.text(
        LEFT, BOTTOM + 34, "step time of arm B against arm A, which are the same; δ shaded", "note"
    )
    return canvas.markup()


def _campaign_bounds(canvas: Canvas, x: Linear, calibration: CalibrationRecord) -> None:
    """A dashed line where one pooled campaign ends and the next begins."""
    names = [block.campaign_id for block in calibration.blocks]
    for index in range(1, len(names)):
        if names[index] != names[index - 1]:
            canvas.line(x(index - 0.5), TOP, x(index - 0.5), BOTTOM, "boundary")


def _rate(rate: FalsePositives) -> str:
    blocks = ", ".join(str(look) for look in rate.looks)
    looks = f"looks at {blocks}" if len(rate.looks) > 1 else f"{blocks} blocks"
    margin = f" and δ {_percent(rate.margin_log)}" if rate.margin_log else ""
    interval = f"[{fmt.number(100 * rate.interval.low)}, {fmt.number(100 * rate.interval.high)}]"
    return f"{looks}{margin} {fmt.percent(rate.rate)} {interval}"


def _observer(observer: ObserverResult) -> str:
    text = (
        f"{fmt.percent(observer.total_ratio, 3)} of a step accounted without messages to the lab, "
        f"{fmt.percent(observer.in_step_ratio, 3)} inside the timed step"
    )
    if observer.log_ratio is None or observer.interval_log is None:
        return text
    return (
        f"{text}; bare against observed loop {_signed(observer.log_ratio)} "
        f"{_interval(observer.interval_log)} {_contains(observer)}"
    )


def _contains(observer: ObserverResult) -> str:
    """What the campaign says about the accounted cost; a 95 % interval misses the truth one time in twenty."""
    if observer.contains_direct:
        return "contains it ✓"
    if observer.contradicts_direct is None or observer.strict_interval_log is None:
        return "does NOT contain it"
    told = "CONTRADICTS it" if observer.contradicts_direct else "contains it ✓"
    return f"does not contain it, the interval at 99.9 % {_interval(observer.strict_interval_log)} {told}"


def _control(control: ControlResult) -> str:
    planted = f"planted {_percent(control.planted_log)}"
    if control.log_ratio is None or control.interval_log is None:
        return f"{planted}: {control.verdict}, nothing was measured"
    wanted = control.planted_log > 0
    told = "as it should ✓" if control.found == wanted else "WRONG"
    covered = "covers it ✓" if control.covered else "does NOT cover it"
    return (
        f"{planted}: {control.verdict} {told}, {_signed(control.log_ratio)} "
        f"{_interval(control.interval_log)} {covered}, "
        f"{control.num_blocks} of {control.planned_blocks} blocks"
    )


def _percent(log_value: float) -> str:
    return fmt.percent(math.expm1(log_value), 2)


def _number(log_value: float) -> str:
    return fmt.number(100 * math.expm1(log_value), 2)


def _signed(log_value: float) -> str:
    return fmt.signed_percent(math.expm1(log_value), 2)


def _interval(interval: Interval) -> str:
    return fmt.percent_interval(math.expm1(interval.low), math.expm1(interval.high), 2)
