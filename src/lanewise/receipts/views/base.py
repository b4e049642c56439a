"""What views share: where they read, and how a null gets its reason."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from pydantic import Field

from lanewise.receipts.migrate import parse_version
from lanewise.receipts.record import Digest, Record
from lanewise.receipts.schema import FIELDS_SINCE, RunReceipt, StepSeries

ValueT = TypeVar("ValueT")
NO_BASE = "no --base RECEIPT was given"
NO_STEPS = "the receipt has no step series"
MOST_LAYERS = 10_000
"""No lane may have more (`lane.schema`); a receipt that claims more must not keep a reader busy."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """What a view is computed from.

    Attributes:
        receipt: the run.
        steps: its step series; None when it kept none.
        base: the run it is compared with; None without.
        base_steps: step series of that.
        may_differ: features that the two may differ in, beyond those the receipts say were under test.
    """

    receipt: RunReceipt
    steps: StepSeries | None = None
    base: RunReceipt | None = None
    base_steps: StepSeries | None = None
    may_differ: tuple[str, ...] = ()


class View(Record):
    """Base of the views."""

    receipt_id: Digest
    lane: str
    """Canonical name of the lane."""
    missing: dict[str, str] = Field(default_factory=dict)
    """Field that is null or empty → why."""


@dataclass
class Reasons:
    """Collects why fields are null while a view is built.

    Attributes:
        receipt: whose own reasons are taken over.
        missing: field → reason.
    """

    receipt: RunReceipt
    missing: dict[str, str] = field(default_factory=dict)

    def take(
        self, name: str, value: ValueT | None, *, path: str = "", otherwise: str = "not recorded"
    ) -> ValueT | None:
        """Pass a value through; a null one is noted under the view's field `name`.

        Args:
            name: field of the view.
            value: its value.
            path: dotted path of the value in the receipt, where it has one.
            otherwise: the reason if the receipt gives none.
        """
        if value is None:
            self.missing[name] = reason_of_null(self.receipt, path) or otherwise
        return value


def reason_of_null(receipt: RunReceipt, path: str) -> str | None:
    """Why a field of a receipt is null: its own reason, or that its version has no such field."""
    if not path:
        return None
    parts = path.split(".")
    for length in range(len(parts), 0, -1):
        reason = receipt.missing.get(".".join(parts[:length]))
        if reason is not None:
            return reason
    since = FIELDS_SINCE.get(path)
    if since is not None and parse_version(receipt.schema_version) < parse_version(since):
        return f"receipts of schema {receipt.schema_version} have no such field, {since} brought it"
    return None


def layers_of(receipt: RunReceipt, letter: str) -> tuple[int, ...]:
    """Layers, 0-based, whose block is of that letter."""
    pattern = receipt.lane.layer_pattern
    if not pattern:
        return ()
    layers = range(min(receipt.lane.num_layers, MOST_LAYERS))
    return tuple(layer for layer in layers if pattern[layer % len(pattern)] == letter)


ArticleNames = Mapping[str, str]
"""Field of a view (dotted, without positions) → what the article's receipts call it."""
