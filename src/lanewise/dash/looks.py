"""Looks, levels and corrected p-values in words, for the terminal and the report."""

from __future__ import annotations

import math
from collections.abc import Sequence

from lanewise.dash import format as fmt
from lanewise.receipts.decision import (
    Boundary,
    CampaignRecord,
    Decision,
    LookOutcome,
    LookRecord,
)

ADJUSTMENT_NAMES = {"holm": "Holm", "benjamini_hochberg": "Benjamini–Hochberg"}

_OUTCOMES: dict[LookOutcome, str] = {
    "go_on": "go on",
    "difference": "a difference",
    "equivalent": "no difference beyond the margin",
    "futile": "the blocks left would most likely tell no more",
    "last": "the last one",
}


def outcome_words(outcome: LookOutcome) -> str:
    """Why a look went on or stopped."""
    return _OUTCOMES[outcome]


def stopped_at(decision: Decision) -> str:
    """Blocks that were run, of those planned: `4 of 12`; a dash where nothing was measured or looks were unknown."""
    if decision.boundary is None or not decision.blocks:
        return fmt.MISSING
    return f"{len(decision.blocks)} of {decision.boundary.looks[-1]}"


def stopped_early(decision: Decision) -> bool:
    """Whether a look ended the feature before its last planned block."""
    return (
        decision.boundary is not None
        and decision.status == "COMPLETE"
        and len(decision.blocks) < decision.boundary.looks[-1]
    )


def boundary_words(boundary: Boundary) -> str:
    """`after 4, 8 and 12 blocks, each at 2.1 % (5 % over all)`, or `once, after 4 blocks, at 5 %`."""
    *early, last = boundary.looks
    overall = _level(boundary.alpha)
    if not early:
        return f"once, after {last} blocks, at {overall}"
    counts = f"{', '.join(str(look) for look in early)} and {last}"
    return f"after {counts} blocks, each at {_level(boundary.nominal_alpha)} ({overall} over all)"


def look_words(look: LookRecord) -> str:
    """`4 blocks: −3.1 %, p = 0.0042, a difference`."""
    change = fmt.signed_percent(math.expm1(look.log_ratio))
    return f"{look.num_blocks} blocks: {change}, p {p_value(look.nominal_p)}, {outcome_words(look.outcome)}"


def p_value(p: float) -> str:
    """`= 0.012`, `< 0.001`, `= 1`."""
    return "< 0.001" if p < 0.001 else f"= {p:.2g}"


def p_cell(p: float | None) -> str:
    """A p-value in a table: `0.012`, `< 0.001`."""
    return fmt.MISSING if p is None else p_value(p).removeprefix("= ")


def adjustment_sentence(decisions: Sequence[Decision]) -> str | None:
    """What the corrected p-values of a campaign mean; None where there is none, or only one claim."""
    corrected = [d for d in decisions if d.adjusted_p is not None]
    names = {d.adjustment for d in corrected}
    if len(corrected) < 2 or len(names) != 1:
        return None
    if names == {"holm"}:
        levels = sorted({d.boundary.alpha for d in corrected if d.boundary is not None})
        wrong = " or ".join(_level(level) for level in levels) or "5 %"
        return (
            f"Verdicts are per feature, each wrong with {wrong}. Adjusted p (Holm) counts everything this campaign asked: "
            "all features at or below 0.05 are right together with 95 %; graduation demands it."
        )
    return (
        "Adjusted p (Benjamini–Hochberg), called q, is the expected share of false "
        "ones among the features up to it; a screen ranks candidates and proves nothing."
    )


def detection_lines(campaign: CampaignRecord) -> tuple[str, ...]:
    """What each planned feature is looked at and can show, features of the same plan on one line."""
    groups: dict[tuple[str, str], list[str]] = {}
    for feature in campaign.features:
        if feature.skipped_reason is not None or feature.boundary is None:
            continue
        least = (
            ""
            if feature.detectable_log is None
            else fmt.percent(math.expm1(feature.detectable_log))
        )
        name = (
            "none (A/A, arms that do not differ)" if feature.feature == "none" else feature.feature
        )
        groups.setdefault((boundary_words(feature.boundary), least), []).append(name)
    return tuple(
        f"looks {words}"
        + (f" · finds ≥ {least}" if least else "")
        + f": {', '.join(dict.fromkeys(features))}"
        for (words, least), features in groups.items()
    )


def _level(alpha: float) -> str:
    return f"{100 * alpha:.2g} %"
