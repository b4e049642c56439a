"""Where warm-up ends: detected from the step times themselves, never a fixed number of steps.

1. *Noise.* y = log duration. Step-to-step SD σ and lag-1 autocorrelation r come from robust spreads (MAD) of lag-1 and
   lag-2 differences, which level shifts hardly touch (the idea of Romano et al. 2022, JASA 117(540), DeCAFS).
2. *Spikes.* y is clipped to its running median ± 3 σ, so isolated slow steps do not look like a new level.
3. *Levels.* PELT (Killick, Fearnhead & Eckley 2012, JASA 107(500)) with Gaussian cost in units of σ²·(1+r)/(1−r), the
   long-run variance, and penalty 3·log n per change (Zhang & Siegmund 2007, Biometrics 63(1), mBIC).
4. *Steady part.* The earliest segment after the last tagged step, from which on no later segment is materially faster
   (warm-up was not over) and materially slower ones (a disturbance) hold at most a fifth of the steps. "Materially" is
   a median that differs by more than max(0.5 %, σ/2): no verdict is drawn from less than 0.5 %.
5. *Drift.* The Theil–Sen slope over the steady part has a 99 % interval (Sen 1968, widened by √((1+r)/(1−r))) that
   contains 0, or its total is at most twice that tolerance, because a drift moves the median by half of its total.

On flat simulated series of 60 steps (300 each) 99 % of runs with independent noise and 96 % with AR(1) noise of r = 0.5
are called steady; 99 % and 90 % keep every step, the others drop a few.

Classes of run after Barrett et al., "Virtual machine warmup blows hot and cold" (OOPSLA 2017).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Final

import numpy as np
import numpy.typing as npt

from lanewise.receipts.schema import Warmup

RULE: Final = "pelt-log-median-theilsen-2"
"""Name and version of the rule above, kept in every receipt. 2 brought `QUIET_STEPS`."""

QUIET_STEPS: Final = 10
"""Steps without compiling, tuning, capturing or reserving memory that must follow the last one with: what compiles
once more after three quiet steps was not done."""

MATERIAL_LOG: Final = 0.005
MAX_DISTURBED: Final = 0.2
DRIFT_CONFIDENCE: Final = 0.99
PENALTY_PER_LOG_N: Final = 3.0
CLIP_SIGMAS: Final = 3.0
RUNNING_WINDOW: Final = 5
MIN_POINTS: Final = 3
"""Least points of a level and its slope."""
MAX_POINTS: Final = 1_000
"""Longer series are reduced to medians of equal groups of steps first."""

_MAD_TO_SD: Final = 1.4826
_MIN_SIGMA: Final = 1e-4  # 0.01 %: below a clock's own jitter, and it keeps the cost finite
_MAX_AUTOCORRELATION: Final = 0.8

_Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class _Noise:
    """Step-to-step spread of log time, and how much wider sums are than for independent steps."""

    sigma: float
    long_run_factor: float

    @property
    def tolerance(self) -> float:
        return max(MATERIAL_LOG, self.sigma / 2)


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
    noise = _noise(log_time)
    starts = _segment_starts(_clip_spikes(log_time, noise), noise)
    first_point = math.ceil(after_tagged / group)
    bounds = _merge_before(starts, first_point, len(log_time))
    levels = [float(np.median(log_time[start:stop])) for start, stop in bounds]
    # However many steps a point stands for, a level and a slope need at least three points.
    found = _steady_part(levels, bounds, noise.tolerance, least=max(min_steady / group, MIN_POINTS))
    if found is None:
        last = sum(stop - start for start, stop in bounds[-1:]) * group
        return _unsteady(
            num_steps, f"no level holds for {min_steady} steps; the last one has {last}"
        )
    start, undisturbed = found

    drift_log, certain = _drift(log_time[start:], noise)
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


def _group_medians(values: _Floats, group: int) -> _Floats:
    whole = len(values) // group * group  # a last incomplete group would be noisier than the rest
    medians: _Floats = np.median(values[:whole].reshape(-1, group), axis=1)
    return medians


def _noise(log_time: _Floats) -> _Noise:
    """Robust σ and r from Var(lag-1 difference) = 2σ²(1−r) and Var(lag-2 difference) = 2σ²(1−r²)."""
    one, two = (_robust_variance(log_time[lag:] - log_time[:-lag]) for lag in (1, 2))
    autocorrelation = min(max(two / one - 1.0, 0.0), _MAX_AUTOCORRELATION) if one > 0 else 0.0
    sigma = math.sqrt(one / (2 * (1 - autocorrelation)))
    return _Noise(
        sigma=max(sigma, _MIN_SIGMA),
        long_run_factor=math.sqrt((1 + autocorrelation) / (1 - autocorrelation)),
    )


def _robust_variance(values: _Floats) -> float:
    deviation = np.abs(values - np.median(values))
    return float((_MAD_TO_SD * np.median(deviation)) ** 2)


def _clip_spikes(log_time: _Floats, noise: _Noise) -> _Floats:
    # The first step repeats to the left, so a slow start stays a level of its own; the end is mirrored, so a slow last
    # step is a spike like any other.
    half = RUNNING_WINDOW // 2
    padded = np.concatenate(
        (np.repeat(log_time[:1], half), log_time, log_time[-2 : -2 - half : -1])
    )
    windows = np.lib.stride_tricks.sliding_window_view(padded, RUNNING_WINDOW)[: len(log_time)]
    centre = np.median(windows, axis=1)
    reach = CLIP_SIGMAS * noise.sigma
    return np.clip(log_time, centre - reach, centre + reach)


def _segment_starts(values: _Floats, noise: _Noise) -> list[int]:
    """PELT: the first index of each segment of the cheapest segmentation."""
    num_points = len(values)
    penalty = PENALTY_PER_LOG_N * math.log(num_points)
    z = (values - values.mean()) / (noise.sigma * noise.long_run_factor)
    sums = np.concatenate(([0.0], np.cumsum(z)))
    squares = np.concatenate(([0.0], np.cumsum(z * z)))
    best = np.full(num_points + 1, -penalty)
    previous = np.zeros(num_points + 1, dtype=np.int64)
    candidates = np.array([0])
    for stop in range(1, num_points + 1):
        total = sums[stop] - sums[candidates]
        cost = squares[stop] - squares[candidates] - total * total / (stop - candidates)
        without_penalty = best[candidates] + cost
        winner = int(np.argmin(without_penalty))
        best[stop] = without_penalty[winner] + penalty
        previous[stop] = candidates[winner]
        candidates = np.append(candidates[without_penalty <= best[stop]], stop)
    starts: list[int] = []
    stop = num_points
    while stop > 0:
        stop = int(previous[stop])
        starts.append(stop)
    return starts[::-1]


def _merge_before(
    starts: Sequence[int], first_point: int, num_points: int
) -> list[tuple[int, int]]:
    """Bounds of the segments from `first_point` on; a segment that contains it is cut there."""
    stops = [*starts[1:], num_points]
    return [
        (max(start, first_point), stop)
        for start, stop in zip(starts, stops, strict=True)
        if stop > first_point
    ]


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


def _drift(log_time: _Floats, noise: _Noise) -> tuple[float, bool]:
    """Theil–Sen change over the whole stretch on the log scale, and whether its interval excludes 0."""
    num_points = len(log_time)
    early, late = np.triu_indices(num_points, k=1)
    slopes = np.sort((log_time[late] - log_time[early]) / (late - early))
    z = NormalDist().inv_cdf((1 + DRIFT_CONFIDENCE) / 2)
    spread = z * math.sqrt(num_points * (num_points - 1) * (2 * num_points + 5) / 18)
    reach = spread * noise.long_run_factor / 2
    low = max(math.floor(len(slopes) / 2 - reach), 0)
    high = min(math.ceil(len(slopes) / 2 + reach), len(slopes) - 1)
    certain = bool(slopes[low] > 0 or slopes[high] < 0)
    return float(np.median(slopes)) * (num_points - 1), certain
