"""Levels and drift of a noisy series on the log scale: what the warm-up rules are built of. Pure.

1. *Noise.* Point-to-point SD σ and lag-1 autocorrelation r come from robust spreads (MAD) of lag-1 and lag-2
   differences, which level shifts hardly touch (the idea of Romano et al. 2022, JASA 117(540), DeCAFS).
2. *Spikes.* Values are clipped to their running median ± 3 σ, so isolated slow points do not look like a new level.
3. *Levels.* PELT (Killick, Fearnhead & Eckley 2012, JASA 107(500)) with Gaussian cost in units of σ²·(1+r)/(1−r), the
   long-run variance, and penalty 3·log n per change (Zhang & Siegmund 2007, Biometrics 63(1), mBIC).
4. *Drift.* The Theil–Sen slope with its 99 % interval (Sen 1968, widened by √((1+r)/(1−r))).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Final

import numpy as np
import numpy.typing as npt

MATERIAL_LOG: Final = 0.005
"""No verdict is drawn from less than half a percent."""

MIN_POINTS: Final = 3
"""Least points of a level and its slope."""

DRIFT_CONFIDENCE: Final = 0.99
PENALTY_PER_LOG_N: Final = 3.0
CLIP_SIGMAS: Final = 3.0
RUNNING_WINDOW: Final = 5

_MAD_TO_SD: Final = 1.4826
_MIN_SIGMA: Final = 1e-4  # 0.01 %: below a clock's own jitter, and it keeps the cost finite
_MAX_AUTOCORRELATION: Final = 0.8

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Noise:
    """Point-to-point spread, and how much wider sums are than for independent points."""

    sigma: float
    long_run_factor: float

    @property
    def tolerance(self) -> float:
        """Two levels differ materially from here on: half a percent or σ/2, whichever is more."""
        return max(MATERIAL_LOG, self.sigma / 2)


def estimate_noise(values: Floats) -> Noise:
    """Robust σ and r from Var(lag-1 difference) = 2σ²(1−r) and Var(lag-2 difference) = 2σ²(1−r²); at least 3 points."""
    one, two = (_robust_variance(values[lag:] - values[:-lag]) for lag in (1, 2))
    autocorrelation = min(max(two / one - 1.0, 0.0), _MAX_AUTOCORRELATION) if one > 0 else 0.0
    sigma = math.sqrt(one / (2 * (1 - autocorrelation)))
    return Noise(
        sigma=max(sigma, _MIN_SIGMA),
        long_run_factor=math.sqrt((1 + autocorrelation) / (1 - autocorrelation)),
    )


def _robust_variance(values: Floats) -> float:
    deviation = np.abs(values - np.median(values))
    return float((_MAD_TO_SD * np.median(deviation)) ** 2)


def clip_spikes(values: Floats, noise: Noise) -> Floats:
    """Each point kept within 3 σ of the median of the five around it."""
    # The first point repeats to the left, so a slow start stays a level of its own; the end is mirrored, so a slow last
    # point is a spike like any other.
    half = RUNNING_WINDOW // 2
    padded = np.concatenate((np.repeat(values[:1], half), values, values[-2 : -2 - half : -1]))
    windows = np.lib.stride_tricks.sliding_window_view(padded, RUNNING_WINDOW)[: len(values)]
    centre = np.median(windows, axis=1)
    reach = CLIP_SIGMAS * noise.sigma
    return np.clip(values, centre - reach, centre + reach)


def segment_starts(values: Floats, noise: Noise) -> list[int]:
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


def segments_from(
    first_point: int, starts: Sequence[int], num_points: int
) -> list[tuple[int, int]]:
    """Bounds of the segments from `first_point` on; a segment that contains it is cut there."""
    stops = [*starts[1:], num_points]
    return [
        (max(start, first_point), stop)
        for start, stop in zip(starts, stops, strict=True)
        if stop > first_point
    ]


def drift(values: Floats, noise: Noise) -> tuple[float, bool]:
    """Theil–Sen change from the first point to the last, and whether its 99 % interval excludes 0."""
    num_points = len(values)
    early, late = np.triu_indices(num_points, k=1)
    slopes = np.sort((values[late] - values[early]) / (late - early))
    z = NormalDist().inv_cdf((1 + DRIFT_CONFIDENCE) / 2)
    spread = z * math.sqrt(num_points * (num_points - 1) * (2 * num_points + 5) / 18)
    reach = spread * noise.long_run_factor / 2
    low = math.floor(len(slopes) / 2 - reach)
    high = math.ceil(len(slopes) / 2 + reach)
    # Fewer than six points have too few slopes for an interval of this confidence: nothing is certain of them.
    certain = low >= 0 and high < len(slopes) and bool(slopes[low] > 0 or slopes[high] < 0)
    return float(np.median(slopes)) * (num_points - 1), certain
