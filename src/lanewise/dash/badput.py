"""Where wall time went: the receipts' own partition, per feature and arm."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lanewise.dash import format as fmt
from lanewise.dash.svg import Canvas, text_width
from lanewise.receipts.decision import Decision
from lanewise.receipts.schema import BADPUT_CATEGORIES, RunReceipt

WIDTH = 900.0
PLOT_LEFT, PLOT_RIGHT = 250.0, 730.0
BAR_HEIGHT, ROW_HEIGHT, GROUP_GAP = 13.0, 18.0, 12.0
LEGEND_LINE = 20.0
NAME_CHARACTERS = 26
MAX_NAMED = 6
"""Categories drawn by name; what is left is drawn as one part, and the table below has all."""
REST = "rest"
STEPS = "steps"


@dataclass(frozen=True, kw_only=True, slots=True)
class ArmPartition:
    """Mean partition of wall time over the receipts of one arm.

    Attributes:
        feature: feature under test.
        arm: `A` (control) or `B`.
        state: what the arm is, e.g. `off`.
        num_receipts: receipts averaged.
        wall_seconds: mean wall time of a run.
        step_seconds: mean time in training steps.
        badput_seconds: category → mean seconds, `other` included, which may be negative.
    """

    feature: str
    arm: str
    state: str
    num_receipts: int
    wall_seconds: float
    step_seconds: float
    badput_seconds: Mapping[str, float]

    @property
    def own_seconds(self) -> float:
        """Wall time without waiting for the other arm, the base of goodput."""
        return self.wall_seconds - self.badput_seconds.get("turn_wait", 0.0)


def partitions(
    decisions: Sequence[Decision], receipts: Mapping[str, RunReceipt]
) -> tuple[ArmPartition, ...]:
    """One partition per feature and arm, over the receipts of valid blocks that account for their time."""
    found = (
        _partition(decision, arm, receipts)
        for decision in decisions
        for arm in sorted(decision.arms)
    )
    return tuple(partition for partition in found if partition is not None)


def _partition(
    decision: Decision, arm: str, receipts: Mapping[str, RunReceipt]
) -> ArmPartition | None:
    cited = (i for block in decision.blocks if block.valid for i in block.receipts.get(arm, ()))
    parts = [p for i in cited if i in receipts and (p := receipts[i].goodput) is not None]
    if not parts:
        return None
    categories = {category for part in parts for category in part.badput_seconds}
    return ArmPartition(
        feature=decision.feature,
        arm=arm,
        state=decision.arms[arm].state,
        num_receipts=len(parts),
        wall_seconds=sum(p.wall_duration_seconds for p in parts) / len(parts),
        step_seconds=sum(p.step_seconds for p in parts) / len(parts),
        badput_seconds={
            c: sum(p.badput_seconds.get(c, 0.0) for p in parts) / len(parts) for c in categories
        },
    )


def categories_present(parts: Sequence[ArmPartition]) -> tuple[str, ...]:
    """Categories that took any time in any arm, in the order of the schema, `other` last."""
    order = (*BADPUT_CATEGORIES, "other")
    seen = {c for part in parts for c, value in part.badput_seconds.items() if value != 0.0}
    return (*(c for c in order if c in seen), *sorted(seen - set(order)))


def badput(parts: Sequence[ArmPartition]) -> str | None:
    """Bars of 100 % of each arm's own time (without waiting for the other arm), or None without receipts."""
    if not parts:
        return None
    totals = {
        c: sum(
            max(0.0, p.badput_seconds.get(c, 0.0)) / p.own_seconds
            for p in parts
            if p.own_seconds > 0
        )
        for c in categories_present(parts)
        if c != "turn_wait"
    }
    ranked = sorted((c for c in totals if totals[c] > 0), key=lambda c: -totals[c])
    named = ranked[:MAX_NAMED]
    legend = [STEPS, *named, *([REST] if len(ranked) > MAX_NAMED else [])]
    num_groups = len({part.feature for part in parts})
    top = LEGEND_LINE * _legend_lines(legend) + 14
    height = top + ROW_HEIGHT * len(parts) + GROUP_GAP * num_groups + 18
    canvas = Canvas(
        name="badput",
        title="Share of run time in training steps and in each kind of badput",
        description="; ".join(
            f"{p.feature} {p.state}: {fmt.percent(_share(p, p.step_seconds))} in steps"
            for p in parts
        ),
        width=WIDTH,
        height=height,
    )
    fills = _fills(canvas, legend)
    _legend(canvas, legend, fills)
    _bars(canvas, parts, named, fills, top)
    return canvas.markup()


def _bars(
    canvas: Canvas,
    parts: Sequence[ArmPartition],
    named: Sequence[str],
    fills: Mapping[str, str],
    top: float,
) -> None:
    width = PLOT_RIGHT - PLOT_LEFT
    y, feature = top, ""
    for index, part in enumerate(parts):
        if part.feature != feature:
            y += GROUP_GAP if index else 0.0
            feature = part.feature
            siblings = sum(p.feature == feature for p in parts)
            canvas.name(0, y + ROW_HEIGHT * siblings / 2 - 2, feature, NAME_CHARACTERS)
        canvas.text(PLOT_LEFT - 10, y + 11, part.state, "note", anchor="end")
        x = PLOT_LEFT
        for category, value in _segments(part, named):
            size = width * _share(part, value)
            canvas.filled(
                x, y, size, BAR_HEIGHT, fills[category], tip=f"{category}: {fmt.seconds(value)}"
            )
            x += size
        canvas.rect(PLOT_LEFT, y, width, BAR_HEIGHT, "frame")
        goodput = f"{fmt.percent(_share(part, part.step_seconds))} steps"
        canvas.text(PLOT_RIGHT + 12, y + 11, goodput, "value")
        canvas.text(WIDTH, y + 11, fmt.seconds(part.own_seconds), "note", anchor="end")
        y += ROW_HEIGHT
    canvas.text(WIDTH, y + 14, "own time", "tick", anchor="end")
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        x = PLOT_LEFT + share * width
        canvas.text(x, y + 14, fmt.percent(share, 0), "tick", anchor="middle")


def _segments(part: ArmPartition, named: Sequence[str]) -> list[tuple[str, float]]:
    segments = [(STEPS, part.step_seconds)]
    segments += [(c, max(0.0, part.badput_seconds.get(c, 0.0))) for c in named]
    hidden = sum(
        max(0.0, value)
        for category, value in part.badput_seconds.items()
        if category not in named and category != "turn_wait"
    )
    return [*segments, (REST, hidden)] if hidden > 0 else segments


def _share(part: ArmPartition, value: float) -> float:
    return value / part.own_seconds if part.own_seconds > 0 else 0.0


def _fills(canvas: Canvas, legend: Sequence[str]) -> dict[str, str]:
    patterns = [
        canvas.hatch("b1", 7, 45, "hatch-a"),
        canvas.hatch("b2", 4, 0, "hatch-a"),
        canvas.hatch("b3", 4, 90, "hatch-b"),
        canvas.hatch("b4", 7, -45, "hatch-b"),
        canvas.hatch("b5", 3, 45, "hatch-a"),
        canvas.hatch("b6", 10, 90, "hatch-a"),
    ]
    fills = {
        name: patterns[i] for i, name in enumerate(n for n in legend if n not in (STEPS, REST))
    }
    return {STEPS: "var(--accent)", REST: "var(--faint)", **fills}


def _legend_lines(legend: Sequence[str]) -> int:
    return 1 + max((line for _, line in _legend_places(legend)), default=0)


def _legend_places(legend: Sequence[str]) -> list[tuple[float, int]]:
    places, x, line = [], PLOT_LEFT, 0
    for name in legend:
        room = 34 + text_width(name)
        if x + room > WIDTH and x > PLOT_LEFT:
            x, line = PLOT_LEFT, line + 1
        places.append((x, line))
        x += room
    return places


def _legend(canvas: Canvas, legend: Sequence[str], fills: Mapping[str, str]) -> None:
    for name, (x, line) in zip(legend, _legend_places(legend), strict=True):
        y = LEGEND_LINE * line
        canvas.filled(x, y + 1, 14, 11, fills[name])
        canvas.rect(x, y + 1, 14, 11, "frame")
        canvas.text(x + 20, y + 11, name.replace("_", " "), "note")
