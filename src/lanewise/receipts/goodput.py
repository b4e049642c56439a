"""Goodput of a run, and of all ranks of a run: where wall time went."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from lanewise.receipts.record import NonNegativeInt, Record, Seconds

BADPUT_CATEGORIES: tuple[str, ...] = (
    "device_init",
    "training_prep",
    "compile",
    "autotune",
    "graph_capture",
    "data_wait",
    "checkpoint_save",
    "checkpoint_restore",
    "eval",
    "gc",
    "profiler",
    "disruption",
    "turn_wait",
)
"""Named badput. `turn_wait` is a lockstep arm waiting for its turn; `other` is computed, never a span."""


class Goodput(Record):
    """A partition of wall time: training steps + named badput + other = wall."""

    wall_duration_seconds: Seconds
    step_seconds: Seconds
    goodput_ratio: Annotated[float, Field(ge=0.0)]
    """step ÷ (wall − turn_wait): waiting for the other arm of a lockstep block is the lab's doing, not the lane's."""
    badput_seconds: dict[str, float]
    """Every category of `BADPUT_CATEGORIES` plus `other` (computed, may be negative, then the receipt is invalid)."""
    overlapped_seconds: Seconds | None = None
    """Badput hidden behind device work; null where nothing can overlap or it is not measured."""
    observer_seconds: Seconds | None = None
    """What observing cost in all: `io.lanewise.observer` in the extensions lists its parts; null where not measured."""


class RankRange(Record):
    """A quantity that every rank has: its extremes, with the rank that has each."""

    fastest: Seconds
    fastest_rank: NonNegativeInt
    slowest: Seconds
    slowest_rank: NonNegativeInt
    mean: Seconds


class GoodputByRank(Record):
    """Goodput of several ranks folded: a step ends with its slowest rank, so the job has the slowest rank's step time."""

    num_ranks: NonNegativeInt
    wall_duration_seconds: RankRange
    step_seconds: RankRange
    """Each rank's own total of steps."""
    badput_seconds: dict[str, RankRange]
    """Every category, and `other`; the slowest rank is the one with most badput. `other` below 0 counts as 0 here, the
    rank's own receipt is invalid and says so."""
    job_step_seconds: Seconds
    """Sum over steps of the slowest rank's duration: what the job's steps took."""
    straggler_ratio: Annotated[float, Field(ge=1.0)]
    """`job_step_seconds` ÷ the sum over steps of the ranks' mean: 1 where all ranks are alike."""
    steps_ended_by: tuple[NonNegativeInt, ...]
    """Rank → steps that ended with it."""
    median_step_spread_ratio: Annotated[float, Field(ge=0.0)]
    """Median over steps of slowest ÷ fastest rank − 1."""
