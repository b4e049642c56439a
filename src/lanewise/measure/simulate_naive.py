"""Designs that are in use and call an A/A different too often, on the machines of `simulate`. Pure.

Every function returns the share of A/A comparisons that the design calls different at a nominal 5 %.
"""

from __future__ import annotations

import math

import numpy as np
from scipy.stats import mannwhitneyu, ttest_ind

from lanewise.measure.boundary import critical_t
from lanewise.measure.simulate import Floats, World, visits_in_a_row

Flags = np.ndarray[tuple[int, ...], np.dtype[np.bool_]]

ALPHA = 0.05


def one_run_per_arm(world: World, *, num_steps: int, num_campaigns: int, seed: int) -> float:
    """One process of each arm, Mann–Whitney over their steps as if these were independent."""
    visits = visits_in_a_row(
        world, num_campaigns=num_campaigns, num_visits=2, num_steps=num_steps, seed=seed
    )
    found = mannwhitneyu(visits[:, 0], visits[:, 1], axis=1, method="asymptotic")
    return float(np.mean(found.pvalue <= ALPHA))


def arms_in_a_row(
    world: World, *, runs_per_arm: int, num_steps: int, num_campaigns: int, seed: int
) -> float:
    """All runs of A, then all of B (`AAAABBBB`): t test over the medians of the runs."""
    visits = visits_in_a_row(
        world,
        num_campaigns=num_campaigns,
        num_visits=2 * runs_per_arm,
        num_steps=num_steps,
        seed=seed,
    )
    medians = np.median(np.log(visits), axis=2)
    found = ttest_ind(medians[:, :runs_per_arm], medians[:, runs_per_arm:], axis=1)
    return float(np.mean(found.pvalue <= ALPHA))


def peeking(contrasts: Floats, *, first: int = 3) -> float:
    """A t test at 5 % after every block from `first` on, stopping at the first that is significant."""
    different, _, _ = _peek(contrasts, first)
    return float(different.mean())


def peeking_coverage(contrasts: Floats, truth_log: float, *, first: int = 3) -> float:
    """Share of the plain t intervals at such a stop that contain the truth."""
    _, centre, half_width = _peek(contrasts, first)
    return float(np.mean(np.abs(centre - truth_log) <= half_width))


def _peek(contrasts: Floats, first: int) -> tuple[Flags, Floats, Floats]:
    """(significant at some block, mean at the stop, half width of the t interval there)."""
    num_campaigns, most = contrasts.shape
    different = np.zeros(num_campaigns, dtype=np.bool_)
    centre, half_width = np.empty(num_campaigns), np.empty(num_campaigns)
    for num_blocks in range(first, most + 1):
        seen = contrasts[~different, :num_blocks]
        centre[~different] = seen.mean(axis=1)
        error = seen.std(axis=1, ddof=1) / math.sqrt(num_blocks)
        half_width[~different] = critical_t(num_blocks, level=ALPHA) * error
        different |= np.abs(centre) > half_width
    return different, centre, half_width


def percentile_bootstrap(contrasts: Floats, *, seed: int, num_resamples: int = 1_000) -> float:
    """Percentile bootstrap of the mean of few blocks: is 0 outside the middle 95 %?"""
    random = np.random.Generator(np.random.PCG64(seed))
    num_blocks = contrasts.shape[1]
    chosen = random.integers(0, num_blocks, (num_resamples, num_blocks))
    means = np.stack([row[chosen].mean(axis=1) for row in contrasts])
    low, high = np.quantile(means, (ALPHA / 2, 1 - ALPHA / 2), axis=1)
    return float(np.mean((low > 0) | (high < 0)))
