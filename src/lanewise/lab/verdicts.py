"""From the verdicts of a campaign to the exit code of the command."""

from __future__ import annotations

from collections.abc import Sequence

from lanewise.errors import UsageError
from lanewise.lab.events import CampaignResult
from lanewise.receipts.decision import Decision, Verdict

FAIL_ON = {
    "slower": Verdict.SLOWER,
    "over_budget": Verdict.OVER_BUDGET,
    "invalid": Verdict.INVALID,
}

EXIT_FAIL_ON = 1
EXIT_INVALID = 3
EXIT_INCONCLUSIVE = 4
EXIT_INTERRUPTED = 130


def parse_fail_on(text: str | None) -> frozenset[Verdict]:
    """Verdicts named in a comma-separated list.

    Raises:
        UsageError: a word is none of `slower`, `over_budget`, `invalid`.
    """
    words = [word.strip() for word in (text or "").split(",") if word.strip()]
    for word in words:
        if word not in FAIL_ON:
            raise UsageError(f"--fail-on {word!r} is not known; use {', '.join(FAIL_ON)}")
    return frozenset(FAIL_ON[word] for word in words)


def exit_code(result: CampaignResult, fail_on: frozenset[Verdict]) -> int:
    """0 done, 1 a --fail-on verdict, 3 invalid or missing evidence, 4 nothing could be told, 130 interrupted."""
    measured = [d for d in result.decisions if d.verdict is not Verdict.NOT_MEASURED]
    if result.interrupted:
        return EXIT_INTERRUPTED
    if any(decision.verdict in fail_on for decision in measured):
        return EXIT_FAIL_ON
    if result.campaign.status == "INCOMPLETE" or _any(measured, Verdict.INVALID):
        return EXIT_INVALID
    if measured and all(decision.verdict is Verdict.INCONCLUSIVE for decision in measured):
        return EXIT_INCONCLUSIVE
    return 0


def _any(decisions: Sequence[Decision], verdict: Verdict) -> bool:
    return any(decision.verdict is verdict for decision in decisions)
