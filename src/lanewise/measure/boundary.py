"""Group-sequential tests over blocks: looks planned before anything runs, and what may be said when one stops. Pure.

A campaign looks at a feature's contrasts after K₁ < K₂ < … blocks and stops early when the answer is clear. Testing at
5 % at every look would call an A/A different far more often than 5 % (17 % for a look after every block). Every look
therefore tests at the same smaller level α′, chosen so that all looks together err with probability α (Pocock 1977, with
Student's t in place of the normal; Jennison and Turnbull, "Group Sequential Methods", 1999, §4.3).

After an early stop the usual t interval no longer covers 95 %. The interval given here orders outcomes by stage: a stop at an
earlier look through the upper boundary is more extreme than any later result, within a look the studentised mean decides
(Tsiatis, Rosner and Mehta 1984). Its probabilities come from a fixed set of simulated campaigns, so they hold for few
blocks, where the normal theory does not. Under no effect and without a margin they are exact; elsewhere they depend on the
unknown SD, so every simulated campaign is scaled to end with the SD that was observed (a generalised pivot, Weerahandi
1993), and coverage is what docs/METHOD.md measures it to be.

The p-value of a look is the smallest α for which the same looks, each at the level that belongs to it, would have crossed here
(the sequential p of Liu and Anderson 2008). It holds whatever ended the campaign, it is at most α exactly where the look
crossed, and overwhelming evidence at a later look gives a small p, which stage-wise p-values do not: they never fall below
what earlier looks could spend, so Holm's correction over several features would let none of them pass.

With one look everything reduces to the t test.

Effects, margins and SDs are on the log scale.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import fmean, stdev
from typing import Final

import numpy as np
from scipy.optimize import brentq
from scipy.special import stdtr, stdtrit

from lanewise.receipts.decision import Boundary

MIN_LOOK_BLOCKS: Final = 4
"""Before this many blocks an SD says so little that a look would only cost power."""

NUM_DRAWS: Final = 2**17
"""Simulated campaigns behind every probability. Half mirror the other half: the standard error of 5 % is 0.09 %."""

RARE_P: Final = 0.002
"""Below this the simulated campaigns are too few to count; the union bound over the looks takes over."""

FUTILE_POWER: Final = 0.1
"""A look gives up when the chance of a verdict at the last one, given the blocks so far, is below this."""

Floats = np.ndarray[tuple[int, ...], np.dtype[np.float64]]


def plan_looks(num_blocks: int) -> tuple[int, ...]:
    """Block counts at which a plan of `num_blocks` looks: after each third of it, none before `MIN_LOOK_BLOCKS`."""
    first, second = max(MIN_LOOK_BLOCKS, round(num_blocks / 3)), round(2 * num_blocks / 3)
    early = (first, second) if second >= first + 2 else (first,)
    return (*(look for look in early if look <= num_blocks - 2), num_blocks)


def plan_boundary(num_blocks: int, *, alpha: float = 0.05) -> Boundary:
    """Looks and the level of each, to be written down before the first block.

    Raises:
        ValueError: fewer than two blocks.
    """
    if num_blocks < 2:
        raise ValueError(f"{num_blocks} blocks have no spread; at least 2 are needed")
    looks = plan_looks(num_blocks)
    return Boundary(looks=looks, alpha=alpha, nominal_alpha=_nominal_alpha(looks, alpha))


@dataclass(frozen=True, kw_only=True, slots=True)
class SequentialResult:
    """What a sequence of looks says when it ends.

    Attributes:
        low: lower end of the two-sided 1 − α interval of the effect, by stage-wise ordering.
        high: its upper end.
        median_unbiased: effect of which the outcome is the median; the mean of the blocks is drawn away from the null by
            early stops.
        p_value: two-sided, of the null, for all looks together; at most α exactly where `crossed`.
        crossed: whether the last look lies beyond its boundary.
    """

    low: float
    high: float
    median_unbiased: float
    p_value: float
    crossed: bool


def conclude(
    contrasts: Sequence[float],
    boundary: Boundary,
    *,
    margin_log: float = 0.0,
    null_log: float = 0.0,
    num_draws: int = NUM_DRAWS,
) -> SequentialResult:
    """Interval and p of the contrasts there are, given the looks that came before the last of them.

    Args:
        contrasts: one per block that counts, in order; at least two.
        boundary: as planned. Looks at fewer blocks than there are count as passed without a stop.
        margin_log: an earlier look stopped only where the mean was also this far from the null.
        null_log: the effect tested, 0, or the logarithm of a tax budget.
        num_draws: simulated campaigns behind the interval, a power of 2; fewer serve studies of many thousand campaigns.

    Raises:
        ValueError: fewer than two contrasts, or one that is not finite.
    """
    num_blocks = len(contrasts)
    if num_blocks < 2:
        raise ValueError(f"{num_blocks} blocks have no spread; at least 2 are needed")
    if not all(math.isfinite(contrast) for contrast in contrasts):
        raise ValueError("a block contrast is not finite; such a block cannot count")
    mean, sd = fmean(contrasts) - null_log, stdev(contrasts)
    if sd == 0:
        p_value = 1.0 if mean == 0 else 0.0
        return SequentialResult(
            low=mean + null_log,
            high=mean + null_log,
            median_unbiased=mean + null_log,
            p_value=p_value,
            crossed=p_value <= boundary.nominal_alpha,
        )
    error = sd / math.sqrt(num_blocks)
    nominal_p = 2 * float(stdtr(num_blocks - 1, -abs(mean) / error))
    p_value = _overall_p(nominal_p, boundary.looks)
    crossed = nominal_p <= boundary.nominal_alpha
    earlier = tuple(look for look in boundary.looks if look < num_blocks)
    if not earlier:
        half_width = critical_t(num_blocks, level=boundary.alpha) * error
        return SequentialResult(
            low=null_log + mean - half_width,
            high=null_log + mean + half_width,
            median_unbiased=null_log + mean,
            p_value=p_value,
            crossed=crossed,
        )
    means, sds = (draws[:, :: NUM_DRAWS // num_draws] for draws in _draws((*earlier, num_blocks)))
    turning = _turning_effects(mean, sd, earlier, boundary, margin_log, means, sds)
    tail = boundary.alpha / 2
    low, middle, high = np.quantile(turning, (tail, 0.5, 1 - tail))
    return SequentialResult(
        low=null_log + float(low),
        high=null_log + float(high),
        median_unbiased=null_log + float(middle),
        p_value=p_value,
        crossed=crossed,
    )


def critical_t(num_blocks: int, *, level: float) -> float:
    """|t| beyond which a look at this many blocks is significant at a two-sided level."""
    return float(stdtrit(num_blocks - 1, 1 - level / 2))


def is_futile(
    contrasts: Sequence[float], boundary: Boundary, *, margin_log: float, null_log: float = 0.0
) -> bool:
    """Whether the blocks still planned would most likely say nothing: neither a difference nor that there is none.

    A difference is unlikely when the predictive chance to cross at the last look is below `FUTILE_POWER`: the effect and
    the SD are only as well known as the blocks so far tell them (Spiegelhalter, Freedman and Blackburn 1986, with a flat
    prior). That there is none cannot be shown when the projected half width of the last look exceeds the margin.
    A futility stop is non-binding: it only gives up chances to err, so the levels of the looks need no change.
    """
    num_blocks, last = len(contrasts), boundary.looks[-1]
    if num_blocks < 2 or num_blocks >= last:
        return False
    mean, sd = fmean(contrasts) - null_log, stdev(contrasts)
    if sd == 0:
        return False
    last_error = sd / math.sqrt(last)
    if critical_t(last, level=2 * boundary.nominal_alpha) * last_error <= margin_log:
        return False
    needed = max(critical_t(last, level=boundary.nominal_alpha) * last_error, margin_log)
    spread = sd * math.sqrt(1 / num_blocks - 1 / last)
    chance = float(stdtr(num_blocks - 1, (abs(mean) - needed) / spread))
    return chance < FUTILE_POWER


def power(effect: float, block_sd: float, boundary: Boundary, *, margin_log: float = 0.0) -> float:
    """Chance that some look calls this effect a difference in its own direction.

    Stops for futility are left out: they cost about one point of power (docs/METHOD.md).

    Args:
        effect: true effect on log step time.
        block_sd: SD of a block's contrast.
        boundary: the looks.
        margin_log: smallest mean that gets a verdict.
    """
    effect = abs(effect)
    means, sds = _draws(boundary.looks)
    found = np.zeros(NUM_DRAWS, dtype=bool)
    for index, look in enumerate(boundary.looks):
        estimate = effect + block_sd * means[index]
        t = estimate / (block_sd * sds[index] / math.sqrt(look))
        found |= (t >= critical_t(look, level=boundary.nominal_alpha)) & (estimate >= margin_log)
    return float(found.mean())


def smallest_effect(
    block_sd: float, boundary: Boundary, *, margin_log: float = 0.0, power_wanted: float = 0.8
) -> float:
    """The effect these looks find with the power wanted: the plan's MDE, margin and looks included."""
    if block_sd == 0:
        return margin_log

    def excess(effect: float) -> float:
        return power(effect, block_sd, boundary, margin_log=margin_log) - power_wanted

    enough = margin_log + block_sd
    while excess(enough) < 0:
        enough *= 2
    return float(brentq(excess, 0.0, enough, xtol=1e-3 * block_sd))


def fewest_blocks(
    block_sd: float,
    effect: float,
    *,
    margin_log: float = 0.0,
    alpha: float = 0.05,
    power_wanted: float = 0.8,
    most: int = 96,
) -> int | None:
    """Fewest planned blocks that find `effect` with the power wanted, or None when `most` do not.

    An effect at or below the margin has no such number: half of all estimates fall below it.
    """

    def enough(num_blocks: int) -> bool:
        boundary = plan_boundary(num_blocks, alpha=alpha)
        return power(effect, block_sd, boundary, margin_log=margin_log) >= power_wanted

    if abs(effect) <= margin_log or not enough(most):
        return None
    too_few, found = 1, most
    while found - too_few > 1:
        middle = (too_few + found) // 2
        too_few, found = (too_few, middle) if enough(middle) else (middle, found)
    return found


def _turning_effects(
    mean: float,
    sd: float,
    earlier: tuple[int, ...],
    boundary: Boundary,
    margin_log: float,
    means: Floats,
    sds: Floats,
) -> Floats:
    """True effect from which on each simulated campaign ends at least as far up as the one observed.

    A simulated campaign moves up with the effect: it stops above at look i from `up` on and below up to `down`, and
    arrives here with a studentised mean as large from `here` on. So there is one turning point a campaign, the share of
    campaigns that have turned at an effect is the upper tail probability of the outcome, and its quantiles are the ends of
    the interval.
    """
    scale = sd / sds[-1]
    turning = np.full_like(scale, np.inf)
    alive_from = np.full_like(scale, -np.inf)
    for index, look in enumerate(earlier):
        critical = critical_t(look, level=boundary.nominal_alpha) / math.sqrt(look)
        reach = np.maximum(critical * scale * sds[index], margin_log)
        up, down = reach - scale * means[index], -reach - scale * means[index]
        np.minimum(turning, np.maximum(alive_from, up), out=turning)
        np.maximum(alive_from, down, out=alive_from)
    here = mean - scale * means[-1]
    turning_here: Floats = np.minimum(turning, np.maximum(alive_from, here))
    return turning_here


def _nominal_alpha(looks: tuple[int, ...], alpha: float) -> float:
    """The largest level at which no more than α of the simulated campaigns cross.

    Below `RARE_P`, where too few of them do, it is the level whose overall p is α, so that crossing and p agree there too.
    """
    if len(looks) == 1:
        return alpha
    counted = float(_smallest_p(looks)[max(int(alpha * NUM_DRAWS), 1) - 1])
    if counted >= RARE_P:
        return counted
    root = brentq(lambda level: _overall_p(level, looks) - alpha, 0.0, RARE_P, xtol=1e-12)
    return float(root) * (1 - 1e-9)


def _overall_p(nominal_p: float, looks: tuple[int, ...]) -> float:
    """How often the smallest p of all looks is at most this one, under no effect.

    Where too few simulated campaigns reach so far, between their share at `RARE_P` and the union bound.
    """
    if len(looks) == 1:
        return nominal_p
    smallest = _smallest_p(looks)
    counted = max(nominal_p, RARE_P)
    share = float(np.searchsorted(smallest, counted, side="right")) / NUM_DRAWS
    if nominal_p >= RARE_P:
        return max(share, nominal_p)
    ratio, bound = max(share / RARE_P, 1.0), len(looks)
    return nominal_p * (bound - (bound - ratio) * nominal_p / RARE_P)


@lru_cache(maxsize=16)
def _smallest_p(looks: tuple[int, ...]) -> Floats:
    """Smallest nominal p over the looks of each simulated campaign without effect, rising."""
    means, sds = _draws(looks)
    smallest = np.ones(NUM_DRAWS)
    for index, look in enumerate(looks):
        t = np.abs(means[index]) / (sds[index] / math.sqrt(look))
        np.minimum(smallest, 2 * stdtr(look - 1, -t), out=smallest)
    smallest.sort()
    return smallest


@lru_cache(maxsize=8)
def _draws(looks: tuple[int, ...]) -> tuple[Floats, Floats]:
    """Mean and SD after each look of `NUM_DRAWS` simulated series of standard normal contrasts."""
    generator = np.random.Generator(np.random.PCG64(20261123))
    means, sds = np.empty((len(looks), NUM_DRAWS)), np.empty((len(looks), NUM_DRAWS))
    total, squares = np.zeros(NUM_DRAWS), np.zeros(NUM_DRAWS)
    done = 0
    for index, look in enumerate(looks):
        for _ in range(look - done):
            # Half of the draws mirror the other half, so both tails are alike to the last digit.
            half = generator.standard_normal(NUM_DRAWS // 2)
            values = np.concatenate((half, -half))
            total += values
            squares += values * values
        done = look
        means[index] = total / look
        sds[index] = np.sqrt((squares - total * total / look) / (look - 1))
    return means, sds
