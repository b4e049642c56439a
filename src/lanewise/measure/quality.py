"""What a feature that changes the mathematics does to the loss, over matched seeds: at equal steps, at equal time, and how
long a target loss takes. Pure.

A seed is the unit: both arms start from the same weights and see the same batches, so their difference is the feature's,
and seeds differ among each other as a repetition of the experiment would. Intervals are t intervals over the differences of
seeds; with one seed there is none. Time is cumulated step time (`measure.loss_curve`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from scipy.special import stdtrit

from lanewise.measure.loss_curve import LossComparison, LossCurve, compare_losses, loss_curve
from lanewise.receipts.decision import QualityDelta, QualityRecord, SeedQuality, TimeToTarget
from lanewise.receipts.schema import StepSeries

CONFIDENCE = 0.95


@dataclass(frozen=True, kw_only=True, slots=True)
class SeedRuns:
    """Both arms of one seed, from step 0.

    Attributes:
        block: the block they ran in.
        seed: seed of weights and data order.
        control: steps of arm A.
        treated: steps of arm B.
    """

    block: int
    seed: int
    control: StepSeries
    treated: StepSeries


def quality(runs: Sequence[SeedRuns], *, target_loss: float | None = None) -> QualityRecord | None:
    """Compare the losses of both arms over seeds; None when no seed has a finite loss in both arms.

    Args:
        runs: one per seed; of several with the same seed the first counts.
        target_loss: loss in nats per token to reach; None takes for each seed the larger of the two last losses, which both
            arms reach.
    """
    # A repeated seed shows the same losses again: counted twice it would make an interval out of nothing.
    once = {run.seed: run for run in reversed(runs)}
    # Blocks may differ in length; all seeds are read after as many steps as the shortest run has.
    num_steps = min((len(s.step) for run in runs for s in (run.control, run.treated)), default=0)
    compared = [
        (run, found, control, treated)
        for run in (
            _shortened(run, num_steps) for run in sorted(once.values(), key=lambda run: run.block)
        )
        if (found := compare_losses(run.control, run.treated)) is not None
        and (control := loss_curve(run.control)) is not None
        and (treated := loss_curve(run.treated)) is not None
    ]
    if not compared:
        return None
    seeds = tuple(
        _seed_quality(run, found, control, treated, target_loss)
        for run, found, control, treated in compared
    )
    return QualityRecord(
        seeds=seeds,
        equal_steps=_delta([(s.control_equal_steps, s.treated_equal_steps) for s in seeds]),
        equal_time=_delta([(s.control_equal_time, s.treated_equal_time) for s in seeds]),
        time_to_target=_time_to_target(seeds, target_loss),
    )


def seconds_to(curve: LossCurve, target_loss: float) -> float | None:
    """Cumulated step time until the curve first reaches a loss, linear within the step; None when it never does."""
    for index, loss in enumerate(curve.loss):
        if loss <= target_loss:
            if index == 0:
                return curve.seconds[0]
            before, start = curve.loss[index - 1], curve.seconds[index - 1]
            share = (before - target_loss) / (before - loss)
            return start + share * (curve.seconds[index] - start)
    return None


def _shortened(run: SeedRuns, num_steps: int) -> SeedRuns:
    control, treated = (
        series.model_copy(
            update={
                "duration_seconds": series.duration_seconds[:num_steps],
                "loss": series.loss[:num_steps],
            }
        )
        for series in (run.control, run.treated)
    )
    return SeedRuns(block=run.block, seed=run.seed, control=control, treated=treated)


def _seed_quality(
    run: SeedRuns,
    found: LossComparison,
    control: LossCurve,
    treated: LossCurve,
    target_loss: float | None,
) -> SeedQuality:
    target = max(control.loss[-1], treated.loss[-1]) if target_loss is None else target_loss
    return SeedQuality(
        block=run.block,
        seed=run.seed,
        num_steps=found.num_steps,
        control_equal_steps=found.equal_steps.control,
        treated_equal_steps=found.equal_steps.treated,
        control_equal_time=found.equal_time.control,
        treated_equal_time=found.equal_time.treated,
        target_loss=target,
        control_seconds_to_target=seconds_to(control, target),
        treated_seconds_to_target=seconds_to(treated, target),
    )


def _delta(pairs: Sequence[tuple[float, float]]) -> QualityDelta:
    deltas = [treated - control for control, treated in pairs]
    half_width = _half_width(deltas)
    return QualityDelta(
        control=fmean(control for control, _ in pairs),
        treated=fmean(treated for _, treated in pairs),
        delta=fmean(deltas),
        low=None if half_width is None else fmean(deltas) - half_width,
        high=None if half_width is None else fmean(deltas) + half_width,
    )


def _time_to_target(seeds: Sequence[SeedQuality], target_loss: float | None) -> TimeToTarget:
    ratios = [
        math.log(seed.treated_seconds_to_target / seed.control_seconds_to_target)
        for seed in seeds
        if seed.control_seconds_to_target is not None and seed.treated_seconds_to_target is not None
    ]
    reached = {
        "control_reached": sum(seed.control_seconds_to_target is not None for seed in seeds),
        "treated_reached": sum(seed.treated_seconds_to_target is not None for seed in seeds),
    }
    if len(ratios) < len(seeds):
        # Leaving out the seeds that did not get there would flatter the arm that fails more often.
        return TimeToTarget(
            target_loss=target_loss,
            **reached,
            reason=f"of {len(seeds)} seeds {reached['control_reached']} reach it in the control and "
            f"{reached['treated_reached']} with the feature; train for more steps (--steps)",
        )
    half_width = _half_width(ratios)
    mean = fmean(ratios)
    return TimeToTarget(
        target_loss=target_loss,
        **reached,
        ratio=math.exp(mean),
        low=None if half_width is None else math.exp(mean - half_width),
        high=None if half_width is None else math.exp(mean + half_width),
    )


def _half_width(values: Sequence[float]) -> float | None:
    if len(values) < 2:
        return None
    quantile = float(stdtrit(len(values) - 1, (1 + CONFIDENCE) / 2))
    return quantile * stdev(values) / math.sqrt(len(values))
