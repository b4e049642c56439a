"""Loss against wall time: what a feature that changes the mathematics costs or gains, given the steps it makes slower.

A step's loss hangs on its batch, so a curve is the mean over the last `WINDOW_STEPS` steps. At equal steps both arms of a
matched seed have seen the same batches, and their difference is the feature's; at equal time the slower arm has seen
fewer. Time is cumulated step time: waiting for the other arm, set-up and profiling do not count, steps of the warm-up do,
because they have trained the model too.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from lanewise.receipts.schema import StepSeries

WINDOW_STEPS = 8
"""Steps over which a loss is averaged; fewer at the start of a run."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LossCurve:
    """Loss over cumulated step time.

    Attributes:
        seconds: end of every step, rising.
        loss: mean loss of the last `WINDOW_STEPS` steps at that moment, in nats per token.
    """

    seconds: tuple[float, ...]
    loss: tuple[float, ...]

    def at(self, seconds: float) -> float:
        """Loss at a moment, linear between ends of steps, and as at the nearest end outside of them."""
        right = bisect.bisect_left(self.seconds, seconds)
        if right == 0:
            return self.loss[0]
        if right == len(self.seconds):
            return self.loss[-1]
        (start, end), (before, after) = (
            self.seconds[right - 1 : right + 1],
            self.loss[right - 1 : right + 1],
        )
        return before + (after - before) * (seconds - start) / (end - start)


@dataclass(frozen=True, kw_only=True, slots=True)
class LossPair:
    """Loss of both arms at the same point.

    Attributes:
        control: nats per token.
        treated: nats per token.
    """

    control: float
    treated: float

    @property
    def delta(self) -> float:
        """treated − control: below zero the feature helps."""
        return self.treated - self.control


@dataclass(frozen=True, kw_only=True, slots=True)
class LossComparison:
    """Two runs of a matched seed.

    Attributes:
        equal_steps: after as many steps as the shorter run took.
        equal_time: after as much cumulated step time as the run that ended first took.
        num_steps: where `equal_steps` was read.
        seconds: where `equal_time` was read.
    """

    equal_steps: LossPair
    equal_time: LossPair
    num_steps: int
    seconds: float


def loss_curve(series: StepSeries) -> LossCurve | None:
    """The curve of a run up to its first loss that is not finite; None without a step."""
    losses = list(itertools.takewhile(lambda loss: loss is not None, series.loss))
    known = [loss for loss in losses if loss is not None]
    if not known:
        return None
    ends = itertools.accumulate(series.duration_seconds[: len(known)])
    return LossCurve(
        seconds=tuple(ends),
        loss=tuple(
            _mean(known[max(0, step + 1 - WINDOW_STEPS) : step + 1]) for step in range(len(known))
        ),
    )


def compare_losses(control: StepSeries, treated: StepSeries) -> LossComparison | None:
    """Loss of two runs at equal steps and at equal time; None when either has no step with a finite loss.

    Args:
        control: from step 0.
        treated: from step 0, the same seed and data.
    """
    curves = loss_curve(control), loss_curve(treated)
    if curves[0] is None or curves[1] is None:
        return None
    a, b = curves[0], curves[1]
    num_steps = min(len(a.loss), len(b.loss))
    seconds = min(a.seconds[-1], b.seconds[-1])
    return LossComparison(
        equal_steps=LossPair(control=a.loss[num_steps - 1], treated=b.loss[num_steps - 1]),
        equal_time=LossPair(control=a.at(seconds), treated=b.at(seconds)),
        num_steps=num_steps,
        seconds=seconds,
    )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
