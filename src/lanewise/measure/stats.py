"""Statistics of blocks: the contrast of one block, the estimate over blocks and its noise. Pure.

Verdicts are made in `measure.looks`.

A contrast is a difference of log step times, treated − control, of one block; the block is the unit of evidence, never
the step. With K blocks of contrasts d (design document "measurement", P4, P6, P7):

    θ̂ = mean d          interval θ̂ ± t₁₋α/₂,K₋₁ · s/√K          R = exp θ̂, the time ratio treated ÷ control

Effects, margins and SDs are on the log scale (0.01 is about 1 %) unless a name says `ratio`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from statistics import fmean, median, stdev
from typing import Final

import numpy as np
import numpy.typing as npt
from scipy.special import stdtr, stdtrit

from lanewise.receipts.decision import Estimate

STEPS_PER_ARM_AND_QUAD: Final = 2
"""A quad is ABBA or BAAB."""

MIN_MARGIN_LOG: Final = 0.005
"""Half a percent: smaller effects are not worth a verdict."""

POWER: Final = 0.8
EXACT_SIGN_FLIP_BLOCKS: Final = 16
_SAMPLED_SIGN_FLIPS: Final = 2**16


def step_contrasts(
    control_seconds: Sequence[float], treated_seconds: Sequence[float]
) -> npt.NDArray[np.float64]:
    """log B − log A of the arms' first, second, … steps; arguments and errors of `quad_contrast`."""
    if len(control_seconds) != len(treated_seconds):
        raise ValueError(
            f"arms took {len(control_seconds)} and {len(treated_seconds)} steps; quads need as many of both"
        )
    if len(control_seconds) == 0 or len(control_seconds) % STEPS_PER_ARM_AND_QUAD:
        raise ValueError(f"{len(control_seconds)} steps an arm are no whole number of quads")
    return _logs(treated_seconds) - _logs(control_seconds)


def quad_contrasts(
    control_seconds: Sequence[float], treated_seconds: Sequence[float]
) -> tuple[float, ...]:
    """Mean log B − mean log A of each quad; arguments and errors of `quad_contrast`."""
    differences = step_contrasts(control_seconds, treated_seconds)
    means = differences.reshape(-1, STEPS_PER_ARM_AND_QUAD).mean(axis=1)
    return tuple(float(mean) for mean in means)


def quad_contrast(control_seconds: Sequence[float], treated_seconds: Sequence[float]) -> float:
    """Contrast of a lockstep block: the Hodges–Lehmann centre over its quads of mean log B − mean log A (P1b).

    Args:
        control_seconds: step durations of arm A in order, two per quad.
        treated_seconds: the same of arm B. Whether a quad was ABBA or BAAB does not matter: either way a drift that is
            linear over the quad cancels.

    Raises:
        ValueError: no whole quad, arms of different length, or a duration that is not positive.
    """
    return hodges_lehmann(quad_contrasts(control_seconds, treated_seconds))


def median_quad_contrast(
    control_seconds: Sequence[float], treated_seconds: Sequence[float]
) -> float:
    """Contrast of a lockstep block by the first version of the method: the median over quads. As `quad_contrast` otherwise."""
    return float(np.median(quad_contrasts(control_seconds, treated_seconds)))


def hodges_lehmann(values: Sequence[float]) -> float:
    """Median of the means of all pairs, each value with itself included; up to 29 % of wild values do not carry it off.

    Nearly as exact as the mean where noise is normal, which the median is not (Hodges & Lehmann 1963, Ann. Math. Stat. 34).

    Raises:
        ValueError: no value.
    """
    if not values:
        raise ValueError("the centre of no values; at least one is needed")
    known = np.asarray(values, dtype=np.float64)
    first, second = _pairs(len(known))
    return float(np.median(known[first] + known[second])) / 2


@cache
def _pairs(num_values: int) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    first, second = np.triu_indices(num_values)
    return first, second


def visit_contrast(
    control_visits: Sequence[Sequence[float]], treated_visits: Sequence[Sequence[float]]
) -> float:
    """Contrast of a sequential block: mean of log medians of the B visits − the same of the A visits (P4).

    Args:
        control_visits: steady step durations, in seconds, of each visit of arm A.
        treated_visits: the same of arm B.

    Raises:
        ValueError: an arm without visits, a visit without steps, or a duration that is not positive.
    """
    if not all((control_visits, treated_visits, *control_visits, *treated_visits)):
        raise ValueError("every arm needs a visit and every visit a step")
    control, treated = (
        fmean(median(_logs(visit).tolist()) for visit in visits)
        for visits in (control_visits, treated_visits)
    )
    return treated - control


def estimate_from_contrasts(contrasts: Sequence[float], *, confidence: float = 0.95) -> Estimate:
    """Mean contrast with its t interval, noise, detectable effect and sign-flip cross-check.

    One block has no spread: `half_width_log`, `block_sd_log`, `mde_log` and `sign_flip_p` are null and the ends of the
    interval repeat the estimate; a reader shows an interval only where `half_width_log` is known.

    Args:
        contrasts: one per valid block.
        confidence: two-sided coverage.

    Raises:
        ValueError: no contrast, or one that is not finite.
    """
    if not contrasts or not all(math.isfinite(contrast) for contrast in contrasts):
        raise ValueError(f"{len(contrasts)} block contrasts; at least one, all finite, is needed")
    num_blocks = len(contrasts)
    effect = fmean(contrasts)
    if num_blocks == 1:
        sd = half_width = detectable = flip_p = None
    else:
        sd = stdev(contrasts)
        half_width = _half_width(sd, num_blocks, confidence)
        detectable = mde(sd, num_blocks, alpha=1 - confidence)
        flip_p = sign_flip_p(contrasts)
    return Estimate(
        log_ratio=effect,
        ratio=math.exp(effect),
        interval_low=math.exp(effect - (half_width or 0.0)),
        interval_high=math.exp(effect + (half_width or 0.0)),
        confidence=confidence,
        num_blocks=num_blocks,
        block_sd_log=sd,
        half_width_log=half_width,
        mde_log=detectable,
        sign_flip_p=flip_p,
    )


def paired_t_p(contrasts: Sequence[float]) -> float:
    """Two-sided p of the one-sample t test that the mean contrast is 0, for multiplicity control.

    Raises:
        ValueError: fewer than two blocks.
    """
    num_blocks = len(contrasts)
    _require_blocks(num_blocks)
    sd = stdev(contrasts)
    if sd == 0:
        return 1.0 if contrasts[0] == 0 else 0.0
    t = fmean(contrasts) / (sd / math.sqrt(num_blocks))
    return 2 * float(stdtr(num_blocks - 1, -abs(t)))


def sign_flip_p(contrasts: Sequence[float]) -> float:
    """Two-sided permutation p: how often random signs give a mean at least as far from 0.

    Exact over all 2^K signs for K ≤ 16 (the smallest possible p is 2/2^K); beyond that from 65,536 seeded draws, the
    observed signs counted as one of them.
    """
    values = np.asarray(contrasts, dtype=np.float64)
    num_blocks = len(values)
    observed = abs(values.sum())
    # Sums of the same numbers in another order differ by rounding; they are ties, not smaller ones.
    threshold = observed - 1e-12 * np.abs(values).sum()
    if num_blocks <= EXACT_SIGN_FLIP_BLOCKS:
        patterns = np.arange(2**num_blocks)[:, None] >> np.arange(num_blocks) & 1
        sums = (1.0 - 2.0 * patterns) @ values
        return float(np.mean(np.abs(sums) >= threshold))
    generator = np.random.Generator(np.random.PCG64(0))
    signs = generator.integers(0, 2, size=(_SAMPLED_SIGN_FLIPS - 1, num_blocks), dtype=np.int8)
    extreme = np.count_nonzero(np.abs((1.0 - 2.0 * signs) @ values) >= threshold)
    return (1 + int(extreme)) / _SAMPLED_SIGN_FLIPS


def mde(block_sd: float, num_blocks: int, alpha: float = 0.05, power: float = POWER) -> float:
    """Smallest effect a two-sided level-α t test over this many blocks finds with this power (P6).

    MDE = (t₁₋α/₂,K₋₁ + t_power,K₋₁) · s/√K.

    Raises:
        ValueError: fewer than two blocks.
    """
    _require_blocks(num_blocks)
    quantiles = _t(1 - alpha / 2, num_blocks) + _t(power, num_blocks)
    return quantiles * block_sd / math.sqrt(num_blocks)


def margin_log(aa_half_width_log: float | None) -> float:
    """Practical margin δ = max(0.5 %, 2 · half width of an A/A campaign); None where none was run (P7)."""
    return max(MIN_MARGIN_LOG, 2 * (aa_half_width_log or 0.0))


def holm(p_values: Sequence[float]) -> tuple[float, ...]:
    """Holm's adjusted p-values, in the order given: family-wise error of graduation claims (P9)."""
    num = len(p_values)
    adjusted = [0.0] * num
    largest = 0.0
    for rank, index in enumerate(sorted(range(num), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (num - rank) * p_values[index]))
        adjusted[index] = largest
    return tuple(adjusted)


def benjamini_hochberg(p_values: Sequence[float]) -> tuple[float, ...]:
    """Benjamini–Hochberg adjusted p-values, in the order given: false discovery rate of screens (P9)."""
    num = len(p_values)
    adjusted = [0.0] * num
    smallest = 1.0
    by_falling_p = sorted(range(num), key=p_values.__getitem__, reverse=True)
    for position, index in enumerate(by_falling_p):
        smallest = min(smallest, num / (num - position) * p_values[index])
        adjusted[index] = smallest
    return tuple(adjusted)


def _logs(seconds: Sequence[float]) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    values = np.asarray(seconds, dtype=np.float64)
    if not np.all(np.isfinite(values) & (values > 0)):
        raise ValueError("step durations must be positive and finite seconds")
    return np.log(values)


def _half_width(block_sd: float, num_blocks: int, confidence: float) -> float:
    return _t((1 + confidence) / 2, num_blocks) * block_sd / math.sqrt(num_blocks)


def _t(probability: float, num_blocks: int) -> float:
    """Quantile of Student's t with K − 1 degrees of freedom."""
    return float(stdtrit(num_blocks - 1, probability))


def _require_blocks(num_blocks: int) -> None:
    if num_blocks < 2:
        raise ValueError(f"{num_blocks} blocks have no spread; at least 2 are needed")
