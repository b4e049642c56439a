"""Loss against wall time of features that change the mathematics: both arms of one block, one chart a feature."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lanewise.dash import format as fmt
from lanewise.dash.svg import Canvas, Linear
from lanewise.lane.features import Role
from lanewise.measure.loss_curve import LossComparison, LossCurve, compare_losses, loss_curve
from lanewise.receipts.decision import BlockRecord, Decision
from lanewise.receipts.schema import StepSeries

WIDTH, HEIGHT = 900.0, 330.0
LEFT, RIGHT = 62.0, 830.0
TOP, BOTTOM = 34.0, 194.0
DELTA_TOP, DELTA_BOTTOM = 224.0, 284.0
LABEL_ROOM = 14.0
MAX_POINTS = 400
"""Longer curves are drawn with every n-th step; they are smooth already."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LossChart:
    """One feature's chart.

    Attributes:
        feature: the tax.
        markup: the SVG.
        words: what it shows, in numbers.
    """

    feature: str
    markup: str
    words: str


def loss_charts(
    decisions: Sequence[Decision], series: Mapping[str, StepSeries]
) -> tuple[LossChart, ...]:
    """A chart of every tax whose step series were kept, drawn from its first block that counts.

    Blocks repeat one seed, so another block would show the same losses at slightly other times.
    """
    drawn = []
    for decision in decisions:
        if decision.role == Role.TAX:
            chart = next(
                (
                    _chart(decision, block, arms[0], arms[1])
                    for block in decision.blocks
                    if block.valid and (arms := _arms(block, series)) is not None
                ),
                None,
            )
            if chart is not None:
                drawn.append(chart)
    return tuple(drawn)


def _arms(
    block: BlockRecord, series: Mapping[str, StepSeries]
) -> tuple[StepSeries, StepSeries] | None:
    """Series of the first visit of control and treated, if both have a loss."""
    found = [
        series[ids[0]]
        for arm in ("A", "B")
        if (ids := block.receipts.get(arm)) and ids[0] in series and loss_curve(series[ids[0]])
    ]
    return (found[0], found[1]) if len(found) == 2 else None


def _chart(
    decision: Decision, block: BlockRecord, control: StepSeries, treated: StepSeries
) -> LossChart | None:
    found, a, b = compare_losses(control, treated), loss_curve(control), loss_curve(treated)
    if found is None or a is None or b is None:
        return None
    words = f"block {block.block}: {_words(found)}"
    canvas = Canvas(
        name=f"loss-{decision.feature}",
        title=f"Loss over step time, {decision.feature}",
        description=words,
        width=WIDTH,
        height=HEIGHT,
    )
    x, y = _scales((a, b))
    _level_axis(canvas, y, "nats per token", TOP)
    moment = x(found.seconds)
    canvas.line(moment, TOP - 4, moment, DELTA_BOTTOM, "boundary")
    label = f"equal time, {fmt.seconds(found.seconds)}"
    canvas.text(moment - 5, TOP - 10, label, "note small", anchor="end")
    for arm, curve in (("A", a), ("B", b)):
        canvas.path(_points(curve, x, y), f"series arm-{arm.lower()}")
        canvas.circle(x(curve.seconds[-1]), y(curve.loss[-1]), 2.5, f"end arm-{arm.lower()}")
    _end_labels(canvas, decision, {"A": y(a.loss[-1]), "B": y(b.loss[-1])})
    canvas.line(LEFT, BOTTOM, RIGHT, BOTTOM, "axis")
    _difference(canvas, x, a, b, found.seconds)
    _time_axis(canvas, x)
    return LossChart(feature=decision.feature, markup=canvas.markup(), words=words)


def _difference(
    canvas: Canvas, x: Linear, control: LossCurve, treated: LossCurve, seconds: float
) -> None:
    """Treated − control at equal time, while both run: above the line the feature is behind."""
    moments = sorted(t for t in {*control.seconds, *treated.seconds} if t <= seconds)
    stride = -(-len(moments) // MAX_POINTS)
    chosen = sorted({*moments[::stride], moments[-1]})
    deltas = [treated.at(t) - control.at(t) for t in chosen]
    low, high = min(0.0, *deltas), max(0.0, *deltas)
    pad = 0.1 * (high - low) or 1e-3
    y = Linear(low=low - pad, high=high + pad, start=DELTA_BOTTOM, end=DELTA_TOP)
    _level_axis(canvas, y, "Δ loss at equal time, treated − control", DELTA_TOP, count=2)
    canvas.line(LEFT, y(0.0), RIGHT, y(0.0), "zero")
    canvas.path([(x(t), y(delta)) for t, delta in zip(chosen, deltas, strict=True)], "series arm-b")


def _level_axis(canvas: Canvas, y: Linear, unit: str, top: float, count: int = 4) -> None:
    for tick in y.ticks(count):
        canvas.line(LEFT, y(tick), RIGHT, y(tick), "grid")
        canvas.text(LEFT - 6, y(tick) + 4, fmt.tick(tick), "tick", anchor="end")
    canvas.text(0, top - 12, unit, "note small")


def _time_axis(canvas: Canvas, x: Linear) -> None:
    for tick in x.ticks(5):
        canvas.line(x(tick), DELTA_BOTTOM, x(tick), DELTA_BOTTOM + 4, "tagged")
        canvas.text(x(tick), DELTA_BOTTOM + 18, fmt.tick(tick), "tick", anchor="middle")
    canvas.text(RIGHT, HEIGHT - 8, "cumulated step time in seconds", "note small", anchor="end")
    canvas.line(LEFT, DELTA_BOTTOM, RIGHT, DELTA_BOTTOM, "axis")


def _scales(curves: Sequence[LossCurve]) -> tuple[Linear, Linear]:
    losses = [loss for curve in curves for loss in curve.loss]
    low, high = min(losses), max(losses)
    pad = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
    longest = max(curve.seconds[-1] for curve in curves)
    return (
        Linear(low=0.0, high=longest, start=LEFT, end=RIGHT),
        Linear(low=low - pad, high=high + pad, start=BOTTOM, end=TOP),
    )


def _points(curve: LossCurve, x: Linear, y: Linear) -> list[tuple[float, float]]:
    stride = -(-len(curve.loss) // MAX_POINTS)
    chosen = sorted({*range(0, len(curve.loss), stride), len(curve.loss) - 1})
    return [(x(curve.seconds[i]), y(curve.loss[i])) for i in chosen]


def _end_labels(canvas: Canvas, decision: Decision, levels: Mapping[str, float]) -> None:
    """Name the curves right of the plot, pushed apart where they would overlap."""
    order = sorted(levels, key=lambda arm: levels[arm])
    places = [levels[arm] + 4 for arm in order]
    if places[1] - places[0] < LABEL_ROOM:
        middle = min(sum(places) / 2, BOTTOM - LABEL_ROOM / 2)
        places = [middle - LABEL_ROOM / 2, middle + LABEL_ROOM / 2]
    for arm, place in zip(order, places, strict=True):
        state = decision.arms[arm].state if arm in decision.arms else arm
        canvas.text(RIGHT + 7, place, state, f"series-label arm-{arm.lower()}")


def _words(found: LossComparison) -> str:
    steps, time = found.equal_steps, found.equal_time
    return (
        f"after {fmt.plural(found.num_steps, 'step')} {fmt.nats(steps.control)} without and {fmt.nats(steps.treated)} with "
        f"the feature ({fmt.signed_nats(steps.delta)}); after {fmt.seconds(found.seconds)} of steps "
        f"{fmt.nats(time.control)} and {fmt.nats(time.treated)} ({fmt.signed_nats(time.delta)})"
    )
