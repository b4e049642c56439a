"""A screen as text: what it ranks, and how far it can be trusted."""

from __future__ import annotations

from collections.abc import Sequence

from lanewise.dash import format as fmt
from lanewise.dash.rows import interval_of, verdict_word
from lanewise.dash.summary import receipt_ids
from lanewise.receipts.decision import CampaignRecord, Decision

HEAD = ("feature", "vs", "Δ step time", "95 % interval", "q", "screen says", "next")


def screen_table(decisions: Sequence[Decision]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Header and rows, in the order given."""
    intervals = [interval for d in decisions if (interval := interval_of(d)) is not None]
    digits = fmt.percent_digits(intervals)
    return HEAD, [_row(decision, digits) for decision in decisions]


def screen_lines(
    campaign: CampaignRecord,
    decisions: Sequence[Decision],
    *,
    store_root: str,
    report_path: str | None = None,
) -> tuple[str, ...]:
    """What stands below the table: reasons, limits, where the receipts are."""
    reasons = [
        f"{decision.feature}: {fmt.with_family(decision.reason, decision.failure_family)}"
        for decision in decisions
        if decision.estimate is None
    ]
    proof = (
        f"{fmt.plural(len(receipt_ids(decisions)), 'receipt')}, "
        f"{fmt.plural(len(decisions), 'screening decision')} in {store_root}"
    )
    return (
        *reasons,
        *(f"Note: {note}." for note in campaign.notes),
        proof + (f" · report: {report_path}" if report_path else ""),
    )


def _row(decision: Decision, digits: int) -> tuple[str, ...]:
    interval = interval_of(decision)
    estimate = decision.estimate
    return (
        decision.feature,
        decision.versus,
        fmt.signed_percent(None if estimate is None else estimate.ratio - 1, digits),
        fmt.MISSING
        if interval is None
        else fmt.percent_interval(interval[0] - 1, interval[1] - 1, digits),
        fmt.MISSING if decision.adjusted_p is None else f"{decision.adjusted_p:.2g}",
        verdict_word(decision),
        decision.stance,
    )
