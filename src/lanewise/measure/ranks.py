"""Goodput of several ranks folded into one: a step ends with its slowest rank. Pure.

Every rank accounts its own time (`measure.goodput`) and times its own steps. The process that writes the job's receipt
gathers both from all ranks, e.g. with `torch.distributed.all_gather_object`, and folds them here. Fast ranks wait for
slow ones inside collectives, so where every step ends with one all ranks' totals agree; steps are therefore compared one
by one, and what a rank spent waiting belongs in its badput, not here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lanewise.receipts.schema import BADPUT_CATEGORIES, Goodput, GoodputByRank, RankRange


@dataclass(frozen=True, kw_only=True, slots=True)
class RankReading:
    """What one rank says about its run.

    Attributes:
        goodput: partition of the rank's wall time.
        step_seconds: duration of every step on this rank, in order, warm-up included.
    """

    goodput: Goodput
    step_seconds: tuple[float, ...]


def fold_ranks(ranks: Sequence[RankReading]) -> GoodputByRank:
    """Fold the readings of all ranks, given in rank order.

    Raises:
        ValueError: no rank, ranks of different numbers of steps, or steps without duration.
    """
    if not ranks:
        raise ValueError("no rank to fold; a run has at least one")
    counts = sorted({len(rank.step_seconds) for rank in ranks})
    if len(counts) > 1:
        raise ValueError(
            f"ranks took {counts[0]} to {counts[-1]} steps; only steps that every rank took can be compared"
        )
    if counts == [0]:
        raise ValueError("ranks took no steps; there is nothing to compare")
    steps = np.array([rank.step_seconds for rank in ranks], dtype=np.float64)
    if not (np.isfinite(steps).all() and (steps > 0).all()):
        raise ValueError("step durations must be positive and finite seconds")
    slowest, fastest = steps.max(axis=0), steps.min(axis=0)
    # Ties go to the lowest rank, so equal ranks fold the same way everywhere.
    ended_by = np.bincount(steps.argmax(axis=0), minlength=len(ranks))
    return GoodputByRank(
        num_ranks=len(ranks),
        wall_duration_seconds=_range([rank.goodput.wall_duration_seconds for rank in ranks]),
        step_seconds=_range([rank.goodput.step_seconds for rank in ranks]),
        badput_seconds={
            category: _range([max(0.0, rank.goodput.badput_seconds[category]) for rank in ranks])
            for category in (*BADPUT_CATEGORIES, "other")
        },
        job_step_seconds=float(slowest.sum()),
        # Rounding must not turn equal ranks into a ratio below 1.
        straggler_ratio=max(1.0, float(slowest.sum() / steps.mean(axis=0).sum())),
        steps_ended_by=tuple(int(count) for count in ended_by),
        median_step_spread_ratio=float(np.median(slowest / fastest - 1.0)),
    )


def _range(seconds: Sequence[float]) -> RankRange:
    values = np.asarray(seconds, dtype=np.float64)
    fastest, slowest = int(values.argmin()), int(values.argmax())
    return RankRange(
        fastest=float(values[fastest]),
        fastest_rank=fastest,
        slowest=float(values[slowest]),
        slowest_rank=slowest,
        mean=float(values.mean()),
    )
