"""View `gpu-profile`: one measured window of a device, and the same against a base."""

from __future__ import annotations

from typing import Literal

from lanewise.receipts.record import Digest, Record
from lanewise.receipts.utilization import TensorActivity
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
    "elapsed_seconds": "elapsed_s",
    "tokens_per_second": "tok_per_sec",
    "peak_memory_bytes": "peak_mem_gb",
    "num_steps": "steps",
    "attention_requested": "dense_fa4_requested",
    "attention_observed": "dense_fa4_dispatch_observed",
    "status": "status",
    "comparison.base_receipt_id": "baseline",
    "comparison.speedup_ratio": "speedup",
    "comparison.peak_memory_delta_bytes": "memory_delta_gb",
}
DENSE_ATTENTION = "attention_core"


class ProfileComparison(Record):
    """A window against that of a base; there is no winner, since one pair of runs has no noise band."""

    base_receipt_id: Digest
    speedup_ratio: float
    """Mean step of the base ÷ mean step of the run, over matched steps."""
    peak_memory_delta_bytes: int | None
    condition: Condition


class GpuProfileView(View):
    """Fields of `--view gpu-profile`."""

    view: Literal["gpu-profile"] = "gpu-profile"
    label: str
    machine_class: str
    device_model: str | None
    elapsed_seconds: float | None
    """Of the steady steps."""
    tokens_per_second: float | None
    peak_memory_bytes: int | None
    num_steps: int
    attention_requested: tuple[str, ...] | None
    """Backends of dense attention asked for, in order; empty is the op's own order."""
    attention_observed: tuple[str, ...] | None
    tensor_activity: TensorActivity | None
    sm_clock_hertz: float | None
    power_watts: float | None
    clock_event_reasons: tuple[str, ...]
    status: str
    validity: str
    comparison: ProfileComparison | None


def gpu_profile(source: Source) -> GpuProfileView:
    """Build the view.

    Raises:
        ReceiptError: the base is not comparable.
    """
    receipt = source.receipt
    reasons = Reasons(receipt)
    steps = receipt.timing.step_duration_seconds
    window = receipt.timing.window_duration_seconds
    if window is None and steps is not None:
        window = steps.count * steps.mean
    memory, memory_path = peak_memory_bytes(receipt)
    attention = next((b for b in receipt.backends if b.op == DENSE_ATTENTION), None)
    no_attention = "the lane runs no dense attention"
    telemetry = receipt.telemetry
    return GpuProfileView(
        receipt_id=receipt.receipt_id,
        lane=receipt.lane.canonical_name,
        label=label(receipt),
        machine_class=receipt.machine.class_name,
        device_model=reasons.take(
            "device_model", receipt.environment.device_model, path="environment.device_model"
        ),
        elapsed_seconds=reasons.take(
            "elapsed_seconds", window, path="timing.step_duration_seconds"
        ),
        tokens_per_second=reasons.take(
            "tokens_per_second",
            receipt.throughput.tokens_per_second,
            path="throughput.tokens_per_second",
        ),
        peak_memory_bytes=reasons.take("peak_memory_bytes", memory, path=memory_path),
        num_steps=0 if steps is None else steps.count,
        attention_requested=reasons.take(
            "attention_requested",
            None if attention is None else attention.requested,
            otherwise=no_attention,
        ),
        attention_observed=reasons.take(
            "attention_observed",
            None if attention is None else attention.observed,
            otherwise=no_attention,
        ),
        tensor_activity=reasons.take(
            "tensor_activity", receipt.flops.tensor_activity, path="flops.tensor_activity"
        ),
        sm_clock_hertz=reasons.take(
            "sm_clock_hertz", telemetry.sm_clock_hertz, path="telemetry.sm_clock_hertz"
        ),
        power_watts=reasons.take(
            "power_watts", telemetry.power_watts, path="telemetry.power_watts"
        ),
        clock_event_reasons=telemetry.clock_event_reasons,
        status=receipt.outcome.status,
        validity=receipt.outcome.validity,
        comparison=_comparison(source, reasons),
        missing=reasons.missing,
    )


def _comparison(source: Source, reasons: Reasons) -> ProfileComparison | None:
    base = source.base
    if base is None:
        return reasons.take("comparison", None, otherwise=NO_BASE)
    matched = match(source, base)
    return ProfileComparison(
        base_receipt_id=base.receipt_id,
        speedup_ratio=matched.base_seconds / matched.seconds,
        peak_memory_delta_bytes=reasons.take(
            "comparison.peak_memory_delta_bytes",
            memory_delta_bytes(source.receipt, base),
            otherwise="no kind of peak memory is known of both",
        ),
        condition=matched.condition,
    )
