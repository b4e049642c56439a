"""View `optimization`: speed, utilisation and memory of a run, and what changed against a base."""

from __future__ import annotations

from typing import Literal

from lanewise.receipts.record import Digest, Record
from lanewise.receipts.views.base import NO_BASE, ArticleNames, Reasons, Source, View
from lanewise.receipts.views.comparison import (
    Condition,
    label,
    match,
    memory_delta_bytes,
    peak_memory_bytes,
)

NAMES: ArticleNames = {
    "label": "label",
    "tokens_per_second": "tok_per_sec",
    "model_flops_utilization_ratio": "mfu_percent",
    "peak_memory_bytes": "peak_mem_gb",
    "note": "note",
    "delta.base_label": "base",
    "delta.base_receipt_id": "base",
    "delta.tokens_per_second_delta": "tok_per_sec_delta",
    "delta.tokens_per_second_change_ratio": "tok_per_sec_pct",
    "delta.peak_memory_delta_bytes": "peak_mem_delta_gb",
    "delta.condition": "condition",
}


class OptimizationDelta(Record):
    """A run against its base, over matched steps; one pair, so without a noise band."""

    base_receipt_id: Digest
    base_label: str
    tokens_per_second_delta: float | None
    tokens_per_second_change_ratio: float
    """Run ÷ base − 1, from the mean steps."""
    peak_memory_delta_bytes: int | None
    condition: Condition


class OptimizationView(View):
    """Fields of `--view optimization`."""

    view: Literal["optimization"] = "optimization"
    label: str
    tokens_per_second: float | None
    model_flops_utilization_ratio: float | None
    peak_memory_bytes: int | None
    note: str
    """Status and validity of the run."""
    delta: OptimizationDelta | None


def optimization(source: Source) -> OptimizationView:
    """Build the view.

    Raises:
        ReceiptError: the base is not comparable.
    """
    receipt = source.receipt
    reasons = Reasons(receipt)
    memory, memory_path = peak_memory_bytes(receipt)
    return OptimizationView(
        receipt_id=receipt.receipt_id,
        lane=receipt.lane.canonical_name,
        label=label(receipt),
        tokens_per_second=reasons.take(
            "tokens_per_second",
            receipt.throughput.tokens_per_second,
            path="throughput.tokens_per_second",
        ),
        model_flops_utilization_ratio=reasons.take(
            "model_flops_utilization_ratio",
            receipt.flops.model_flops_utilization_ratio,
            path="flops.model_flops_utilization_ratio",
        ),
        peak_memory_bytes=reasons.take("peak_memory_bytes", memory, path=memory_path),
        note=f"{receipt.outcome.status}, {receipt.outcome.validity}",
        delta=_delta(source, reasons),
        missing=reasons.missing,
    )


def _delta(source: Source, reasons: Reasons) -> OptimizationDelta | None:
    base = source.base
    if base is None:
        return reasons.take("delta", None, otherwise=NO_BASE)
    matched = match(source, base)
    tokens = matched.condition.tokens_per_step
    change = None
    if tokens is not None:
        change = tokens / matched.seconds - tokens / matched.base_seconds
    return OptimizationDelta(
        base_receipt_id=base.receipt_id,
        base_label=label(base),
        tokens_per_second_delta=reasons.take(
            "delta.tokens_per_second_delta", change, otherwise="the lane names no batch"
        ),
        tokens_per_second_change_ratio=matched.base_seconds / matched.seconds - 1.0,
        peak_memory_delta_bytes=reasons.take(
            "delta.peak_memory_delta_bytes",
            memory_delta_bytes(source.receipt, base),
            otherwise="no kind of peak memory is known of both",
        ),
        condition=matched.condition,
    )
