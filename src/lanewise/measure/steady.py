"""Where warm-up ends: detected from the step times themselves, never a fixed number of steps.

The series y = log duration is cut into levels and its drift is measured as `measure.levels` says.

*Steady part.* The earliest segment after the last tagged step, from which on no later segment is materially faster
(warm-up was not over) and materially slower ones (a disturbance) hold at most a fifth of the steps. "Materially" is a
median that differs by more than max(0.5 %, σ/2).

*Drift.* The slope over the steady part has a 99 % interval that contains 0, or its total is at most twice that
tolerance, because a drift moves the median by half of its total.

On flat simulated series of 60 steps (300 each) 99 % of runs with independent noise and 96 % with AR(1) noise of r = 0.5
are called steady; 99 % and 90 % keep every step, the others drop a few.

Two arms that take turns are judged by their difference instead: `measure.steady_pair`.

Classes of run after Barrett et al., "Virtual machine warmup blows hot and cold" (OOPSLA 2017).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Final

import numpy as np

from lanewise.measure.levels import (
    MIN_POINTS,
    Floats,
    clip_spikes,
    drift,
    estimate_noise,
    segment_starts,
    segments_from,
)
from lanewise.receipts.schema import Warmup

RULE: Final = "pelt-log-median-theilsen-3"
"""Name and version of the rule above, kept in every receipt. 2 brought `QUIET_STEPS`; 3 sees no drift in fewer than six
points, which have no 99 % interval."""

QUIET_STEPS: Final = 10
"""Steps without compiling, tuning, capturing or reserving memory that must follow the last one with: what compiles
once more after three quiet steps was not done."""

MAX_DISTURBED: Final = 0.2
"""Largest share of the steady part that a passing disturbance may hold."""

MAX_POINTS: Final = 1_000
"""Longer series are reduced to medians of equal groups of steps first."""


def detect_warmup(
    durations_seconds: Sequence[float], *, tagged: Collection[int] = (), min_steady: int
) -> Warmup:
    """Steps to drop at the start, or why no steady state was found (then every step is dropped).

    Args:
        durations_seconds: every step, in order, warm-up included.
        tagged: indices of steps that compiled, tuned, captured or reserved memory; the steady part starts after the
            last one, and at least `QUIET_STEPS` must follow it.
        min_steady: least number of undisturbed steady steps.

    Raises:
        ValueError: a duration is not a positive finite number, or `min_steady` < 3.
    """
    durations = np.asarray(durations_seconds, dtype=np.float64)
    if not np.all(np.isfinite(durations) & (durations > 0)):
        raise ValueError("step durations must be positive and finite seconds")
    if min_steady < MIN_POINTS:
        raise ValueError(f"min_steady is {min_steady}; a level and a slope need at least 3 steps")
    num_steps = len(durations)
    after_tagged = max(tagged, default=-1) + 1
    needed = max(min_steady, QUIET_STEPS) if after_tagged else min_steady
    if num_steps - after_tagged < needed:
        since = f" since the last tagged step ({after_tagged - 1})" if after_tagged else ""
        return _unsteady(num_steps, f"{num_steps - after_tagged} steps{since}, {needed} are needed")

    group = math.ceil(num_steps / MAX_POINTS)
    log_time = _group_medians(np.log(durations), group)
    noise = estimate_noise(log_time)
    starts = segment_starts(clip_spikes(log_time, noise), noise)
    first_point = math.ceil(after_tagged / group)
    bounds = segments_from(first_point, starts, len(log_time))
    levels = [float(np.median(log_time[start:stop])) for start, stop in bounds]
    # However many steps a point stands for, a level and a slope need at least three points.
    found = _steady_part(levels, bounds, noise.tolerance, least=max(min_steady / group, MIN_POINTS))
    if found is None:
        last = sum(stop - start for start, stop in bounds[-1:]) * group
        return _unsteady(
            num_steps, f"no level holds for {min_steady} steps; the last one has {last}"
        )
    start, undisturbed = found

    drift_log, certain = drift(log_time[start:], noise)
    if certain and abs(drift_log) > 2 * noise.tolerance:
        return _unsteady(
            num_steps,
            f"steps drift by {math.expm1(drift_log):+.1%} over {undisturbed * group} steps",
        )
    steps = max(start * group, after_tagged)
    return Warmup(rule=RULE, steps=steps, steady=True, reason=_reason(steps, after_tagged, levels))


def _unsteady(num_steps: int, reason: str) -> Warmup:
    return Warmup(rule=RULE, steps=num_steps, steady=False, reason=f"no steady state: {reason}")


def _reason(steps: int, after_tagged: int, levels: Sequence[float]) -> str:
    if steps == 0:
        return "steady from the first step"
    if steps == after_tagged:
        return f"steady after the last tagged step ({after_tagged - 1})"
    first = math.expm1(levels[0] - levels[-1])
    return f"steady from step {steps}; the first level was {first:+.1%} off the last"


def _group_medians(values: Floats, group: int) -> Floats:
    whole = len(values) // group * group  # a last incomplete group would be noisier than the rest
    medians: Floats = np.median(values[:whole].reshape(-1, group), axis=1)
    return medians


def _steady_part(
    levels: Sequence[float], bounds: Sequence[tuple[int, int]], tolerance: float, *, least: float
) -> tuple[int, int] | None:
    """First point and number of undisturbed points of the earliest segment that is steady to the end."""
    for index, (start, _) in enumerate(bounds):
        undisturbed = _undisturbed_points(levels[index:], bounds[index:], tolerance)
        if undisturbed >= least:
            return start, undisturbed
    return None


def _undisturbed_points(
    levels: Sequence[float], bounds: Sequence[tuple[int, int]], tolerance: float
) -> int:
    """Points at the first level if it is the steady one for all that follows, else 0."""
    lengths = [stop - start for start, stop in bounds]
    if any(level < levels[0] - tolerance for level in levels):
        return 0
    disturbed = sum(
        length
        for level, length in zip(levels, lengths, strict=True)
        if level > levels[0] + tolerance
    )
    total = sum(lengths)
    return total - disturbed if disturbed <= MAX_DISTURBED * total else 0
