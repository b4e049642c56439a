"""Loss against wall time of features that change the mathematics: both arms of every seed, one chart a feature."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from lanewise.dash import format as fmt
from lanewise.dash.svg import Canvas, Linear
from lanewise.lane.features import Role
from lanewise.measure.loss_curve import LossCurve, LossPair, loss_curve
from lanewise.receipts.decision import BlockRecord, Decision, QualityRecord
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
        feature: its key.
        markup: the SVG.
        words: what it shows, in numbers.
    """

    feature: str
    markup: str
    words: str


def loss_charts(
    decisions: Sequence[Decision], series: Mapping[str, StepSeries]
) -> tuple[LossChart, ...]:
    """A chart of every feature that changes the loss and whose step series were kept, drawn from its blocks that count.

    Before blocks differed in seed, another block would show the same losses at slightly other times, so of blocks without
    seeds the first is drawn alone.
    """
    drawn = []
    for decision in decisions:
        if decision.role == Role.TAX or decision.quality is not None:
            pairs = [
                _Pair(block=block.block, control=arms[0], treated=arms[1])
                for block in _blocks_drawn(decision)
                if (arms := _arms(block, series)) is not None
            ]
            if pairs:
                drawn.append(_chart(decision, pairs))
    return tuple(drawn)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Pair:
    """Curves of both arms of one seed."""

    block: int
    control: LossCurve
    treated: LossCurve

    @property
    def seconds(self) -> float:
        """Where the arm that ended first ended."""
        return min(self.control.seconds[-1], self.treated.seconds[-1])


def _blocks_drawn(decision: Decision) -> tuple[BlockRecord, ...]:
    valid = tuple(block for block in decision.blocks if block.valid)
    if decision.quality is None:
        return valid[:1]
    of_seed = {seed.block for seed in decision.quality.seeds}
    return tuple(block for block in valid if block.block in of_seed)


def _arms(
    block: BlockRecord, series: Mapping[str, StepSeries]
) -> tuple[LossCurve, LossCurve] | None:
    """Curves of the first visit of control and treated, if both have a loss."""
    found = [
        curve
        for arm in ("A", "B")
        if (ids := block.receipts.get(arm))
        and ids[0] in series
        and (curve := loss_curve(series[ids[0]])) is not None
    ]
    return (found[0], found[1]) if len(found) == 2 else None


def _chart(decision: Decision, pairs: Sequence[_Pair]) -> LossChart:
    """Curves of every seed above, differences at equal time below: thin for a seed, thick for their mean."""
    words = _words(decision, pairs)
    canvas = Canvas(
        name=f"loss-{decision.feature}-{decision.design}",
        title=f"Loss over step time, {decision.feature}",
        description=words,
        width=WIDTH,
        height=HEIGHT,
    )
    x, y = _scales([curve for pair in pairs for curve in (pair.control, pair.treated)])
    _level_axis(canvas, y, "nats per token", TOP)
    seconds = min(pair.seconds for pair in pairs)
    canvas.line(x(seconds), TOP - 4, x(seconds), DELTA_BOTTOM, "boundary")
    label = f"equal time, {fmt.seconds(seconds)}"
    canvas.text(x(seconds) - 5, TOP - 10, label, "note small", anchor="end")
    thin = " thin" if len(pairs) > 1 else ""
    for pair in pairs:
        for arm, curve in (("a", pair.control), ("b", pair.treated)):
            canvas.path(_points(curve, x, y), f"series arm-{arm}{thin}")
            canvas.circle(x(curve.seconds[-1]), y(curve.loss[-1]), 2.5, f"end arm-{arm}")
    ends = {
        "A": fmean(pair.control.loss[-1] for pair in pairs),
        "B": fmean(pair.treated.loss[-1] for pair in pairs),
    }
    _end_labels(canvas, decision, {arm: y(loss) for arm, loss in ends.items()})
    canvas.line(LEFT, BOTTOM, RIGHT, BOTTOM, "axis")
    _differences(canvas, x, pairs, seconds)
    _time_axis(canvas, x)
    return LossChart(feature=decision.feature, markup=canvas.markup(), words=words)


def _differences(canvas: Canvas, x: Linear, pairs: Sequence[_Pair], seconds: float) -> None:
    """Treated − control at equal time, while all run: above the line the feature is behind."""
    moments = sorted(
        {
            t
            for pair in pairs
            for t in (*pair.control.seconds, *pair.treated.seconds)
            if t <= seconds
        }
    )
    stride = -(-len(moments) // MAX_POINTS)
    chosen = sorted({*moments[::stride], moments[-1]})
    of_seeds = [[pair.treated.at(t) - pair.control.at(t) for t in chosen] for pair in pairs]
    means = [fmean(deltas) for deltas in zip(*of_seeds, strict=True)]
    everything = [delta for deltas in of_seeds for delta in deltas]
    low, high = min(0.0, *everything), max(0.0, *everything)
    pad = 0.1 * (high - low) or 1e-3
    y = Linear(low=low - pad, high=high + pad, start=DELTA_BOTTOM, end=DELTA_TOP)
    _level_axis(canvas, y, "Δ loss at equal time, treated − control", DELTA_TOP, count=2)
    canvas.line(LEFT, y(0.0), RIGHT, y(0.0), "zero")
    if len(of_seeds) > 1:
        for deltas in of_seeds:
            canvas.path([(x(t), y(d)) for t, d in zip(chosen, deltas, strict=True)], "series thin")
    canvas.path([(x(t), y(mean)) for t, mean in zip(chosen, means, strict=True)], "series arm-b")


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


def _words(decision: Decision, pairs: Sequence[_Pair]) -> str:
    if decision.quality is not None and len(pairs) > 1:
        return quality_words(decision.quality)
    first = pairs[0]
    num_steps = min(len(first.control.loss), len(first.treated.loss))
    steps = LossPair(
        control=first.control.loss[num_steps - 1], treated=first.treated.loss[num_steps - 1]
    )
    time = LossPair(
        control=first.control.at(first.seconds), treated=first.treated.at(first.seconds)
    )
    return (
        f"block {first.block}: after {fmt.plural(num_steps, 'step')} {fmt.nats(steps.control)} without and "
        f"{fmt.nats(steps.treated)} with the feature ({fmt.signed_nats(steps.delta)}); after "
        f"{fmt.seconds(first.seconds)} of steps {fmt.nats(time.control)} and {fmt.nats(time.treated)} "
        f"({fmt.signed_nats(time.delta)}); one seed, so no interval"
    )


def quality_words(quality: QualityRecord) -> str:
    """Losses and time to the target over all seeds, with intervals where there are several."""
    target = quality.time_to_target
    reached = (
        f"reaching {_goal(target.target_loss)} takes {fmt.number(target.ratio, 2)} × the step time"
        + _range(target.low, target.high, lambda value: fmt.number(value, 2))
        if target.ratio is not None
        else f"no time to {_goal(target.target_loss)}: {target.reason}"
    )
    return (
        f"{fmt.plural(len(quality.seeds), 'seed')}: {fmt.signed_nats(quality.equal_steps.delta)} nats"
        f"{_range(quality.equal_steps.low, quality.equal_steps.high, fmt.signed_nats)} at equal steps, "
        f"{fmt.signed_nats(quality.equal_time.delta)} nats"
        f"{_range(quality.equal_time.low, quality.equal_time.high, fmt.signed_nats)} at equal step time; {reached}"
    )


def _goal(target_loss: float | None) -> str:
    if target_loss is None:
        return "the worse of both arms' last losses"
    return f"a loss of {fmt.nats(target_loss)}"


def _range(low: float | None, high: float | None, form: Callable[[float], str]) -> str:
    return "" if low is None or high is None else f" [{form(low)}, {form(high)}]"
