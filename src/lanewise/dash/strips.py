"""Per-step strips: step time over step index, both arms of one block, warm-up shaded and its end marked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lanewise.dash import format as fmt
from lanewise.dash.svg import Canvas, Linear, Logarithmic
from lanewise.receipts.decision import BlockRecord, Decision
from lanewise.receipts.schema import StepSeries

WIDTH, HEIGHT = 340.0, 132.0
LEFT, RIGHT, TOP, BOTTOM = 44.0, 306.0, 22.0, 108.0
LOG_SPREAD = 3.0
"""The time axis is logarithmic when the slowest step is this many times the fastest."""
LABEL_ROOM = 13.0
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
    drawn = [(block, found) for block in decision.blocks if (found := _block_series(block, series))]
    times = [t for _, found in drawn for _, s in found for t in s.duration_seconds if t > 0]
    if not times:
        return ()
    low, high = min(times), max(times)
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


def _strip(
    decision: Decision,
    block: BlockRecord,
    found: Sequence[tuple[str, StepSeries]],
    low: float,
    high: float,
) -> str:
    canvas = Canvas(
        name=f"strip-{decision.feature}-{block.block}",
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
        canvas.line(boundary, TOP - 4, boundary, BOTTOM, "boundary")
        canvas.text(boundary + 3, TOP + 5, f"warm-up {block.warmup_steps}", "note small")
    for tick in ticks:
        canvas.line(LEFT, y(tick), RIGHT, y(tick), "grid")
        canvas.text(LEFT - 6, y(tick) + 4, f"{1e3 * tick:.3g}", "tick", anchor="end")
    levels: dict[str, float] = {}
    for arm, one in found:
        points = _thinned([(x(i), y(t)) for i, t in enumerate(one.duration_seconds) if t > 0])
        canvas.path(points, f"series arm-{arm.lower()}")
        steady = sorted(one.duration_seconds[block.warmup_steps :] or one.duration_seconds)
        levels.setdefault(arm, y(steady[len(steady) // 2]))
        for index in {i for tagged in one.tags.values() for i in tagged if 0 <= i < num_steps}:
            canvas.line(x(index), BOTTOM, x(index), BOTTOM + 4, "tagged")
    _end_labels(canvas, decision, levels)
    canvas.text(0, 12, f"block {block.block}" + ("" if block.valid else " · INVALID"), "name")
    canvas.text(LEFT - 6, BOTTOM + 18, "ms", "note small", anchor="end")
    canvas.text(LEFT, BOTTOM + 18, "step 0", "tick")
    canvas.text(RIGHT, BOTTOM + 18, str(num_steps - 1), "tick", anchor="middle")
    canvas.line(LEFT, BOTTOM, RIGHT, BOTTOM, "axis")
    return canvas.markup()


def _time_axis(low: float, high: float) -> tuple[Linear | Logarithmic, tuple[float, ...]]:
    if high > LOG_SPREAD * low:
        scale = Logarithmic(low=low / 1.1, high=high * 1.1, start=BOTTOM - 3, end=TOP + 10)
        ticks = scale.ticks()
        every = max(1, -(-len(ticks) // 4))
        return scale, ticks[::every]
    pad = 0.08 * (high - low) or 0.05 * high
    linear = Linear(low=low - pad, high=high + pad, start=BOTTOM - 3, end=TOP + 10)
    return linear, linear.ticks(3)


def _end_labels(canvas: Canvas, decision: Decision, levels: Mapping[str, float]) -> None:
    """Name the lines at their right end, pushed apart where they would overlap."""
    placed: list[float] = []
    for arm, level in sorted(levels.items(), key=lambda item: item[1]):
        y = max([level + 4, *(other + LABEL_ROOM for other in placed)])
        placed.append(y)
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
    counted = "counts" if block.valid else f"invalid: {'; '.join(block.reasons)}"
    return f"{arms}; warm-up {fmt.plural(block.warmup_steps, 'step')} shaded; {counted}"
