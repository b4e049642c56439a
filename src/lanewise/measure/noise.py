"""What A/A blocks say about the instrument: spread, bias, drift, and how often it would call a difference. Pure.

Contrasts are those of `measure.stats`, on the log scale. A group is one campaign's contrasts in the order they were run.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean, stdev, variance
from typing import Final

import numpy as np
from scipy.special import chdtri, ndtri, stdtr, stdtrit

from lanewise.measure.looks import Question, walk
from lanewise.receipts.calibration import FalsePositives, Interval
from lanewise.receipts.decision import Verdict

AGREEMENT_P: Final = 0.05
"""Campaigns whose spreads or means differ at this level are not pooled."""

PERMUTATIONS: Final = 2_000


def sd_interval(sd: float, num_blocks: int, *, confidence: float = 0.95) -> Interval:
    """Interval of a standard deviation: s·√((K−1)/χ²), for contrasts near to normal."""
    freedom, tail = num_blocks - 1, (1 - confidence) / 2
    # chdtri gives the value that χ² exceeds with a probability.
    low, high = (
        sd * math.sqrt(freedom / float(chdtri(freedom, share))) for share in (tail, 1 - tail)
    )
    return Interval(low=low, high=high)


def mean_interval(contrasts: Sequence[float], *, confidence: float = 0.95) -> Interval:
    """Student's interval of the mean contrast."""
    num_blocks = len(contrasts)
    quantile = float(stdtrit(num_blocks - 1, (1 + confidence) / 2))
    half = quantile * stdev(contrasts) / math.sqrt(num_blocks)
    mean = fmean(contrasts)
    return Interval(low=mean - half, high=mean + half)


def autocorrelation(groups: Sequence[Sequence[float]]) -> tuple[float, float]:
    """Correlation of consecutive contrasts within campaigns, and the two-sided permutation p of none.

    r = Σ cᵢ·cᵢ₊₁ ÷ Σ cᵢ² with c the distance from the campaign's mean. The p compares with orders shuffled within each
    campaign, from a fixed seed.
    """
    centred = [np.asarray(group) - fmean(group) for group in groups if len(group) > 1]
    whole = sum(float(group @ group) for group in centred)
    if whole == 0:
        return 0.0, 1.0

    def correlation(ordered: Sequence[np.ndarray]) -> float:
        return sum(float(group[:-1] @ group[1:]) for group in ordered) / whole

    observed = correlation(centred)
    generator = np.random.Generator(np.random.PCG64(0))
    shuffled = np.array(
        [
            correlation([generator.permutation(group) for group in centred])
            for _ in range(PERMUTATIONS)
        ]
    )
    # Shuffled orders correlate by −1/K on average, so the distance is taken from there.
    centre = float(shuffled.mean())
    as_far = np.abs(shuffled - centre) >= abs(observed - centre) * (1 - 1e-12)
    return observed, (1 + int(as_far.sum())) / (1 + PERMUTATIONS)


def agree(one: Sequence[float], other: Sequence[float]) -> bool:
    """Whether two campaigns' contrasts may be pooled: neither their spreads (Brown–Forsythe) nor means (Welch) differ."""
    return (
        _welch_p(_distances(one), _distances(other)) >= AGREEMENT_P
        and _welch_p(one, other) >= AGREEMENT_P
    )


def false_positives(
    contrasts: Sequence[float], question: Question, *, trials: int, seed: int = 0
) -> FalsePositives:
    """Call pseudo-campaigns drawn from A/A contrasts, with replacement and random signs, which make every effect 0.

    Args:
        contrasts: of A/A blocks.
        question: looks and margin of the pseudo-campaigns.
        trials: pseudo-campaigns.
        seed: of the draws.
    """
    generator = np.random.Generator(np.random.PCG64(seed))
    values, num_blocks = np.asarray(contrasts), question.boundary.looks[-1]
    called = 0
    for _ in range(trials):
        signs = generator.choice((-1.0, 1.0), size=num_blocks)
        drawn = signs * generator.choice(values, size=num_blocks)
        looks = walk(drawn.tolist(), question)
        called += looks[-1].verdict in (Verdict.FASTER, Verdict.SLOWER)
    return FalsePositives(
        looks=question.boundary.looks,
        margin_log=question.margin_log,
        trials=trials,
        called=called,
        rate=called / trials,
        interval=rate_interval(called, trials),
    )


def rate_interval(count: int, trials: int, *, confidence: float = 0.95) -> Interval:
    """Wilson's interval of a rate."""
    z = float(ndtri((1 + confidence) / 2))
    rate, spread = count / trials, z * z / trials
    centre = (rate + spread / 2) / (1 + spread)
    half = z * math.sqrt(rate * (1 - rate) / trials + spread / (4 * trials)) / (1 + spread)
    return Interval(low=max(0.0, centre - half), high=min(1.0, centre + half))


def _distances(contrasts: Sequence[float]) -> list[float]:
    middle = float(np.median(contrasts))
    return [abs(contrast - middle) for contrast in contrasts]


def _welch_p(one: Sequence[float], other: Sequence[float]) -> float:
    """Two-sided p that two samples have the same mean, their variances unknown and unequal."""
    parts = [variance(sample) / len(sample) for sample in (one, other)]
    whole, distance = sum(parts), abs(fmean(one) - fmean(other))
    if whole == 0:
        return 1.0 if distance == 0 else 0.0
    freedom = whole**2 / sum(
        part**2 / (len(sample) - 1) for part, sample in zip(parts, (one, other), strict=True)
    )
    return 2 * float(stdtr(freedom, -distance / math.sqrt(whole)))
