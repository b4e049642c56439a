"""Many features, one campaign: p-values corrected for all that was asked (Holm 1979; Benjamini and Hochberg 1995).

A verdict is about its own feature and errs with 5 %. Of twenty features without effect one would be called something, so
whoever picks the winners of a campaign needs the corrected p: graduation does, and reports show it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from lanewise.lab.arms import NO_FEATURE
from lanewise.lab.keys import split_key
from lanewise.lab.protocol import ALPHA, Claims
from lanewise.measure.stats import benjamini_hochberg, holm
from lanewise.receipts.decision import Decision, Verdict


def planned_alpha(claims: Claims, keys: Sequence[str]) -> float:
    """Chance of a false difference that a feature's looks may use up.

    Args:
        claims: `each` feature errs with 5 %; the `family` shares it, as α ÷ m, the level that Holm's smallest p must reach.
            A feature whose looks cross there keeps its claim after the correction, whatever the others do.
        keys: of all that will be measured; an A/A claims nothing.
    """
    claiming = sum(split_key(key)[0] != NO_FEATURE for key in keys)
    return ALPHA / claiming if claims == "family" and claiming else ALPHA


def adjusted(
    decisions: Sequence[Decision], mode: Literal["confirm", "screen"]
) -> tuple[Decision, ...]:
    """The decisions of a campaign with their `adjusted_p`.

    The family is all that was planned, tax or not: a feature that gave no p counts as p = 1 instead of making the others'
    correction milder. A/A comparisons and features that were never run claim nothing.

    Args:
        decisions: of one campaign.
        mode: confirmatory campaigns bound the chance of any false claim, screens the share of false ones.
    """
    family = [decision for decision in decisions if _claims(decision)]
    correct = holm if mode == "confirm" else benjamini_hochberg
    corrected = dict(
        zip(
            (decision.decision_id for decision in family),
            correct([_p(decision) for decision in family]),
            strict=True,
        )
    )
    name: Literal["holm", "benjamini_hochberg"] = (
        "holm" if mode == "confirm" else "benjamini_hochberg"
    )
    return tuple(
        decision.model_copy(
            update={"adjusted_p": corrected[decision.decision_id], "adjustment": name}
        )
        if decision.decision_id in corrected and _has_p(decision)
        else decision
        for decision in decisions
    )


def _claims(decision: Decision) -> bool:
    return decision.feature != NO_FEATURE and decision.verdict is not Verdict.NOT_MEASURED


def _has_p(decision: Decision) -> bool:
    return (
        decision.verdict is not Verdict.INVALID
        and decision.status == "COMPLETE"
        and decision.estimate is not None
        and decision.estimate.p_value is not None
    )


def _p(decision: Decision) -> float:
    estimate = decision.estimate
    if not _has_p(decision) or estimate is None or estimate.p_value is None:
        return 1.0
    return estimate.p_value
