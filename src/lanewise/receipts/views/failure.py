"""View `failure`: what went wrong, by family, with just the facts of that family."""

from __future__ import annotations

from typing import Literal

from lanewise.receipts.failures import Failure, FailureFamily
from lanewise.receipts.views.base import ArticleNames, Reasons, Source, View

NAMES: ArticleNames = {"family": "failure_family", "error": "failure_reason", "status": "status"}


class FailureView(View):
    """Fields of `--view failure`."""

    view: Literal["failure"] = "failure"
    status: str
    validity: str
    family: FailureFamily | None
    error: str | None
    failed_checks: tuple[str, ...]
    facts: Failure | None


def failure(source: Source) -> FailureView:
    """Build the view."""
    receipt = source.receipt
    reasons = Reasons(receipt)
    outcome = receipt.outcome
    counts = outcome.status == "success" and outcome.validity == "valid"
    why_none = "nothing failed" if counts else "the run did not say"
    path = "" if counts else "outcome.failure_family"
    return FailureView(
        receipt_id=receipt.receipt_id,
        lane=receipt.lane.canonical_name,
        status=outcome.status,
        validity=outcome.validity,
        family=reasons.take("family", outcome.failure_family, path=path, otherwise=why_none),
        error=reasons.take(
            "error",
            outcome.error,
            otherwise="nothing failed" if counts else "the failed checks say it",
        ),
        failed_checks=tuple(f"{c.name}: {c.detail}" for c in outcome.checks if not c.ok),
        facts=reasons.take("facts", outcome.failure, path=path, otherwise=why_none),
        missing=reasons.missing,
    )
