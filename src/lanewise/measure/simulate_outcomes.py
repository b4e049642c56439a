"""What the product says about simulated campaigns whose true effect is known, and how often it is right. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from lanewise.measure.boundary import critical_t
from lanewise.measure.looks import Question, walk
from lanewise.measure.simulate import Floats
from lanewise.receipts.decision import Verdict

STUDY_DRAWS: Final = 2**14
"""Draws behind the interval of one simulated campaign: its tail of 2.5 % has a standard error of 0.12 %."""

DIFFERENT: Final = frozenset({Verdict.FASTER, Verdict.SLOWER})


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """How one campaign ended.

    Attributes:
        verdict: of its last look.
        num_blocks: that were run.
        effect_log: mean contrast.
        median_unbiased_log: the estimate that allows for the looks.
        covered: the interval contains the truth.
        naively_covered: the usual t interval, looks ignored, contains it.
        p_value: of no effect.
    """

    verdict: Verdict
    num_blocks: int
    effect_log: float
    median_unbiased_log: float
    covered: bool
    naively_covered: bool
    p_value: float


def replay(contrasts: Sequence[float], question: Question, truth_log: float) -> Outcome:
    """Walk one campaign's contrasts through its looks."""
    last = walk(contrasts, question, num_draws=STUDY_DRAWS)[-1]
    estimate = last.estimate
    sd, unbiased, p_value = estimate.block_sd_log, estimate.median_unbiased_log, estimate.p_value
    assert sd is not None, "a look has two blocks or more"
    assert unbiased is not None, "a look estimates without bias"
    assert p_value is not None, "a look has a p-value"
    level = question.boundary.alpha
    naive = critical_t(estimate.num_blocks, level=level) * sd / math.sqrt(estimate.num_blocks)
    return Outcome(
        verdict=last.verdict,
        num_blocks=estimate.num_blocks,
        effect_log=estimate.log_ratio,
        median_unbiased_log=unbiased,
        covered=estimate.interval_low <= math.exp(truth_log) <= estimate.interval_high,
        naively_covered=abs(estimate.log_ratio - truth_log) <= naive,
        p_value=p_value,
    )


def replay_all(contrasts: Floats, question: Question, truth_log: float) -> tuple[Outcome, ...]:
    """One outcome a row of campaign × block."""
    return tuple(replay(row, question, truth_log) for row in contrasts.tolist())


@dataclass(frozen=True, kw_only=True, slots=True)
class Rates:
    """Shares of many campaigns of one kind.

    Attributes:
        num_campaigns: how many.
        different: FASTER or SLOWER.
        in_direction: FASTER or SLOWER as the truth is; both where there is no effect.
        equivalent: EQUIVALENT.
        coverage: intervals that contain the truth.
        naive_coverage: plain t intervals that do.
        unbiased_above: median-unbiased estimates above the truth.
        mean_above: mean contrasts above the truth.
        mean_blocks: run before the stop.
    """

    num_campaigns: int
    different: float
    in_direction: float
    equivalent: float
    coverage: float
    naive_coverage: float
    unbiased_above: float
    mean_above: float
    mean_blocks: float


def rates(outcomes: Sequence[Outcome], truth_log: float) -> Rates:
    """Count them."""
    wanted = {Verdict.FASTER} if truth_log < 0 else {Verdict.SLOWER} if truth_log > 0 else DIFFERENT

    def share(values: Sequence[bool]) -> float:
        return float(np.mean(values))

    return Rates(
        num_campaigns=len(outcomes),
        different=share([found.verdict in DIFFERENT for found in outcomes]),
        in_direction=share([found.verdict in wanted for found in outcomes]),
        equivalent=share([found.verdict is Verdict.EQUIVALENT for found in outcomes]),
        coverage=share([found.covered for found in outcomes]),
        naive_coverage=share([found.naively_covered for found in outcomes]),
        unbiased_above=share([found.median_unbiased_log > truth_log for found in outcomes]),
        mean_above=share([found.effect_log > truth_log for found in outcomes]),
        mean_blocks=float(np.mean([found.num_blocks for found in outcomes])),
    )
