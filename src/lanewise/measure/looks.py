"""What a look at a feature's blocks says: estimate, verdict, and whether to stop. The one place verdicts are made. Pure.

Runner, analysis and the simulations that justify the method (docs/METHOD.md) all call `walk`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from lanewise.measure.boundary import (
    NUM_DRAWS,
    SequentialResult,
    conclude,
    critical_t,
    is_futile,
)
from lanewise.measure.stats import estimate_from_contrasts, paired_t_p
from lanewise.receipts.decision import Boundary, Estimate, LookOutcome, LookRecord, Verdict


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """What is asked of the blocks, fixed before the first.

    Attributes:
        boundary: looks and levels.
        margin_log: practical margin δ.
        tax_budget_ratio: largest acceptable ratio of a tax; None for features judged by speed.
    """

    boundary: Boundary
    margin_log: float
    tax_budget_ratio: float | None = None

    @property
    def null_log(self) -> float:
        """The effect tested: none, or the whole budget of a tax."""
        return 0.0 if self.tax_budget_ratio is None else math.log(self.tax_budget_ratio)

    @property
    def test_margin_log(self) -> float:
        """How far from the null a mean must lie; a tax is held against its budget alone."""
        return self.margin_log if self.tax_budget_ratio is None else 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Look:
    """One look.

    Attributes:
        estimate: over the blocks so far, with the interval that earlier looks leave.
        verdict: what would be said if the campaign ended here.
        reason: the rule that decided, in words.
        record: the look as a decision keeps it.
    """

    estimate: Estimate
    verdict: Verdict
    reason: str
    record: LookRecord

    @property
    def stops(self) -> bool:
        """Whether no further block is needed."""
        return self.record.outcome != "go_on"


def walk(
    contrasts: Sequence[float],
    question: Question,
    *,
    ended: bool = True,
    num_draws: int = NUM_DRAWS,
) -> tuple[Look, ...]:
    """The looks that a series of contrasts passes, in order; ends with the first that stops.

    Args:
        contrasts: of the blocks that count, in the order they were run.
        question: what was planned.
        ended: no further block will come: what is left after the last planned look counts as the last one.
        num_draws: passed on to `conclude`.

    Returns:
        Empty when not even the first look is reached.
    """
    looks: list[Look] = []
    stops = [look for look in question.boundary.looks if look <= len(contrasts)]
    if ended and len(contrasts) >= 2 and (not stops or stops[-1] < len(contrasts)):
        stops.append(len(contrasts))
    for num_blocks in stops:
        last = (ended and num_blocks == len(contrasts)) or num_blocks == question.boundary.looks[-1]
        looks.append(_look(contrasts[:num_blocks], question, last=last, num_draws=num_draws))
        if looks[-1].stops:
            break
    return tuple(looks)


def single_look(
    num_blocks: int,
    *,
    margin_log: float,
    tax_budget_ratio: float | None = None,
    alpha: float = 0.05,
) -> Question:
    """The question of a plan without early looks."""
    if num_blocks < 2:
        raise ValueError(f"{num_blocks} blocks have no spread; at least 2 are needed")
    one = Boundary(looks=(num_blocks,), alpha=alpha, nominal_alpha=alpha)
    return Question(boundary=one, margin_log=margin_log, tax_budget_ratio=tax_budget_ratio)


def _look(contrasts: Sequence[float], question: Question, *, last: bool, num_draws: int) -> Look:
    found = conclude(
        contrasts,
        question.boundary,
        margin_log=question.test_margin_log,
        null_log=question.null_log,
        num_draws=num_draws,
    )
    plain = estimate_from_contrasts(contrasts, confidence=1 - question.boundary.alpha)
    estimate = plain.model_copy(
        update={
            "interval_low": math.exp(found.low),
            "interval_high": math.exp(found.high),
            "half_width_log": (found.high - found.low) / 2,
            "median_unbiased_log": found.median_unbiased,
            "p_value": found.p_value,
        }
    )
    verdict, reason = _verdict(contrasts, question, found)
    outcome: LookOutcome = "go_on"
    if verdict is Verdict.EQUIVALENT:
        outcome = "equivalent"
    elif verdict is not Verdict.INCONCLUSIVE:
        outcome = "difference"
    elif last:
        outcome = "last"
    elif is_futile(
        contrasts,
        question.boundary,
        margin_log=question.test_margin_log,
        null_log=question.null_log,
    ):
        outcome = "futile"
        reason = f"the blocks still planned would most likely tell no more ({reason})"
    return Look(
        estimate=estimate,
        verdict=verdict,
        reason=reason,
        record=LookRecord(
            num_blocks=len(contrasts),
            log_ratio=plain.log_ratio,
            nominal_p=paired_t_p([contrast - question.null_log for contrast in contrasts]),
            outcome=outcome,
        ),
    )


def _verdict(
    contrasts: Sequence[float], question: Question, found: SequentialResult
) -> tuple[Verdict, str]:
    """FASTER, SLOWER: beyond the boundary and at least δ. EQUIVALENT: both one-sided tests reject at the look's level.

    Taxes: beyond the boundary around their budget, on one side or the other.
    """
    effect = fmean(contrasts)
    if question.tax_budget_ratio is not None:
        budget = f"{question.tax_budget_ratio - 1:.1%}"
        if not found.crossed:
            return Verdict.INCONCLUSIVE, _not_beyond(question, found, f"the budget of {budget}")
        if effect < question.null_log:
            return Verdict.WITHIN_BUDGET, f"the interval ends within the budget of {budget}"
        return Verdict.OVER_BUDGET, f"the interval begins above the budget of {budget}"
    margin = f"{math.expm1(question.margin_log):.1%}"
    if found.crossed and abs(effect) >= question.margin_log:
        side = Verdict.FASTER if effect < 0 else Verdict.SLOWER
        where = "below" if effect < 0 else "above"
        return side, f"the interval is {where} 0 and the effect at least {margin}"
    if _equivalent(contrasts, question):
        return Verdict.EQUIVALENT, f"any effect is smaller than {margin}"
    if found.crossed:
        return Verdict.INCONCLUSIVE, f"a real effect, but below {margin}, and it may be larger"
    reason = _not_beyond(question, found, "0")
    if abs(effect) < question.margin_log:
        reason += f"; an effect of {margin} is not ruled out"
    return Verdict.INCONCLUSIVE, reason


def _not_beyond(question: Question, found: SequentialResult, null: str) -> str:
    """Why there is no difference; an interval may leave out the null before its look's stricter level is reached."""
    if found.low <= question.null_log <= found.high:
        return f"the interval contains {null}"
    level = f"{question.boundary.nominal_alpha:.1%}"
    return f"the interval leaves out {null}, but no look reached its planned level of {level}"


def _equivalent(contrasts: Sequence[float], question: Question) -> bool:
    """Two one-sided tests, each at the level of this look."""
    num_blocks = len(contrasts)
    level = question.boundary.nominal_alpha
    half_width = critical_t(num_blocks, level=2 * level) * stdev(contrasts) / math.sqrt(num_blocks)
    return abs(fmean(contrasts)) + half_width < question.margin_log
