"""A run that has written its receipt."""

from __future__ import annotations

from dataclasses import dataclass

from lanewise.receipts.schema import RunReceipt


@dataclass(frozen=True, kw_only=True, slots=True)
class Finished:
    """A run that wrote its receipt.

    Attributes:
        receipt: what was written, but for `artifacts`, which the store adds.
        location: file or URI of the receipt.
    """

    receipt: RunReceipt
    location: str

    @property
    def validity(self) -> str:
        """Whether the run may count as evidence."""
        return self.receipt.outcome.validity

    @property
    def reasons(self) -> tuple[str, ...]:
        """Name and detail of every check that failed."""
        checks = self.receipt.outcome.checks
        return tuple(f"{check.name}: {check.detail}" for check in checks if not check.ok)
