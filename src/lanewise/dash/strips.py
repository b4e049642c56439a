"""Per-step strips: step time over step index, both arms of one block, warm-up shaded and its end marked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lanewise.dash import format as fmt
from lanewise.dash.svg import Canvas, Linear, Logarithmic
from lanewise.receipts.decision import BlockRecord, Decision
from lanewise.receipts.schema import StepSeries

WIDTH, HEIGHT = 340.0, 138.0
LEFT, RIGHT, TOP, BOTTOM = 44.0, 306.0, 26.0, 114.0
LOG_SPREAD = 3.0
"""The time axis is logarithmic when the slowest step is this many times the fastest."""
LABEL_ROOM = 13.0
HEADROOM = 1.6
"""Steps slower than this many times the slower arm's steady median are marked at the top, not drawn to scale."""
BOUNDARY_LABEL_TURNS = 190.0
"""Right of this, the warm-up label stands left of its line."""
MAX_POINTS = 400
"""Longer series show the slowest step of each stretch, so that no spike is lost."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Strip:
    """One block's strip.

    Attributes:
        feature: feature under test.
        block: number as recorded.
        valid: whether the block counts.
        markup: the SVG.
    """

    feature: str
    block: int
    valid: bool
    markup: str


def strips(decision: Decision, series: Mapping[str, StepSeries]) -> tuple[Strip, ...]:
    """Strips of every block of a decision that has step series; blocks share one time axis."""
    if decision.estimate is not None and decision.estimate.unit == "row":
        # Every feature of such a screen cites all runs; drawn beside one of them they would look like its own.
        return ()
    drawn = [(block, found) for block in decision.blocks if (found := _block_series(block, series))]
    steady = [_steady(block, one) for block, found in drawn for _, one in found]
    times = [t for one in steady for t in one]
    if not times:
        return ()
    low, high = min(times), min(max(times), HEADROOM * max(_median(one) for one in steady if one))
    return tuple(
        Strip(
            feature=decision.feature,
            block=block.block,
            valid=block.valid,
            markup=_strip(decision, block, found, low, high),
        )
        for block, found in drawn
    )


def _block_series(
    block: BlockRecord, series: Mapping[str, StepSeries]
) -> list[tuple[str, StepSeries]]:
    return [
        (arm, series[receipt_id])
        for arm in sorted(block.receipts)
        for receipt_id in block.receipts[arm]
        if receipt_id in series and series[receipt_id].duration_seconds
    ]


def _steady(block: BlockRecord, series: StepSeries) -> list[float]:
    """Durations after the block's warm-up; all of them where warm-up never ended."""
    return [
        t for t in series.duration_seconds[block.warmup_steps :] or series.duration_seconds if t > 0
    ]


def _median(times: Sequence[float]) -> float:
    return sorted(times)[len(times) // 2]


def _strip(
    decision: Decision,
    block: BlockRecord,
    found: Sequence[tuple[str, StepSeries]],
    low: float,
    high: float,
) -> str:
    canvas = Canvas(
        name=f"strip-{decision.feature}-{decision.design}-{block.block}",
        title=f"Step time over step index, {decision.feature}, block {block.block}",
        description=_describe(decision, block),
        width=WIDTH,
        height=HEIGHT,
    )
    num_steps = max(len(s.duration_seconds) for _, s in found)
    x = Linear(low=0.0, high=float(max(1, num_steps - 1)), start=LEFT, end=RIGHT)
    y, ticks = _time_axis(low, high)
    if block.warmup_steps > 0:
        boundary = min(RIGHT, x(block.warmup_steps - 0.5))
        canvas.rect(LEFT, TOP, boundary - LEFT, BOTTOM - TOP, "warmup")
        canvas.line(boundary, TOP - 16, boundary, BOTTOM, "boundary")
        left = boundary > BOUNDARY_LABEL_TURNS
        canvas.text(
            boundary + (-4 if left else 4),
            TOP - 8,
            f"warm-up {block.warmup_steps}",
            "note small",
            anchor="end" if left else "start",
        )
    for tick in ticks:
        canvas.line(LEFT, y(tick), RIGHT, y(tick), "grid")
        canvas.text(LEFT - 6, y(tick) + 4, f"{round(1e3 * tick, 3):g}", "tick", anchor="end")
    levels: dict[str, float] = {}
    for arm, one in found:
        points = _thinned([(x(i), y(t)) for i, t in enumerate(one.duration_seconds) if t > 0])
        kind = f"arm-{arm.lower()}"
        canvas.path([(px, max(TOP, py)) for px, py in points], f"series {kind}")
        for px in (px for px, py in points if py < TOP):
            canvas.path(
                [(px - 3, TOP), (px, TOP - 5), (px + 3, TOP)], f"clipped {kind}", closed=True
            )
        if times := _steady(block, one):
            levels.setdefault(arm, y(_median(times)))
        for index in {i for tagged in one.tags.values() for i in tagged if 0 <= i < num_steps}:
            canvas.line(x(index), BOTTOM, x(index), BOTTOM + 4, "tagged")
    _end_labels(canvas, decision, levels)
    canvas.text(0, 12, f"block {block.block}", "name")
    if not block.valid:
        canvas.text(WIDTH, 12, "INVALID", "verdict bad", anchor="end")
    canvas.text(LEFT - 6, BOTTOM + 18, "ms", "note small", anchor="end")
    canvas.text(LEFT, BOTTOM + 18, "step 0", "tick")
    canvas.text(RIGHT, BOTTOM + 18, str(num_steps - 1), "tick", anchor="middle")
    canvas.line(LEFT, BOTTOM, RIGHT, BOTTOM, "axis")
    return canvas.markup()


def _time_axis(low: float, high: float) -> tuple[Linear | Logarithmic, tuple[float, ...]]:
    if high > LOG_SPREAD * low:
        scale = Logarithmic(low=low / 1.1, high=high * 1.1, start=BOTTOM - 6, end=TOP + 6)
        ticks = scale.ticks()
        every = max(1, -(-len(ticks) // 4))
        return scale, ticks[::every]
    pad = 0.08 * (high - low) or 0.05 * high
    linear = Linear(low=low - pad, high=high + pad, start=BOTTOM - 6, end=TOP + 6)
    return linear, linear.ticks(3)


def _end_labels(canvas: Canvas, decision: Decision, levels: Mapping[str, float]) -> None:
    """Name the lines at their right end, pushed apart where they would overlap."""
    order = sorted(levels, key=lambda arm: levels[arm])
    places = [levels[arm] + 4 for arm in order]
    if len(places) == 2 and places[1] - places[0] < LABEL_ROOM:
        middle = min(sum(places) / 2, BOTTOM - LABEL_ROOM / 2 + 2)
        places = [middle - LABEL_ROOM / 2, middle + LABEL_ROOM / 2]
    for arm, y in zip(order, places, strict=True):
        state = decision.arms[arm].state if arm in decision.arms else arm
        canvas.text(RIGHT + 5, y, state, f"series-label arm-{arm.lower()}")


def _thinned(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    if len(points) <= MAX_POINTS:
        return points
    stretch = -(-len(points) // MAX_POINTS)
    # Smaller y is higher on the canvas: the slowest step of the stretch.
    return [
        min(points[i : i + stretch], key=lambda p: p[1]) for i in range(0, len(points), stretch)
    ]


def _describe(decision: Decision, block: BlockRecord) -> str:
    arms = ", ".join(
        f"{decision.arms[arm].state if arm in decision.arms else arm} median {fmt.seconds(value)}"
        for arm, value in (("A", block.control_seconds), ("B", block.treated_seconds))
        if value is not None
    )
    why = fmt.with_family("; ".join(block.reasons), block.failure_family)
    counted = "counts" if block.valid else f"invalid: {why}"
    return f"{arms}; warm-up {fmt.plural(block.warmup_steps, 'step')} shaded; {counted}"
