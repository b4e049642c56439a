"""View `compile-runtime`: what was compiled, when, from which cache, and the warm-up policy with its reason."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal

from lanewise.lane.machine import device_type_of
from lanewise.receipts.record import Record
from lanewise.receipts.schema import RunReceipt
from lanewise.receipts.views.base import ArticleNames, Reasons, Source, View, layers_of
from lanewise.receipts.warmup_policy import WarmupPolicy

NAMES: ArticleNames = {
    "device_type": "device_type",
    "is_compiled": "compile_enabled",
    "regional_compile": "regional_compile",
    "has_dynamic_batch": "dynamic_batch",
    "uses_cuda_graphs": "use_cuda_graphs",
    "has_experts": "moe_enabled",
    "warmup.is_enabled": "compile_warmup.enabled",
    "warmup.policy": "compile_warmup.reason",
}

_REASONS: Mapping[WarmupPolicy, str] = MappingProxyType(
    {
        WarmupPolicy.EXPLICIT: "a made-up batch was compiled before step 0, so that no training step compiles",
        WarmupPolicy.NOTHING_COMPILED: "the lane runs eagerly",
        WarmupPolicy.LEFT_TO_FIRST_STEP: "skipped for regional compile with experts on CUDA; the first steps compile",
        WarmupPolicy.SKIPPED_OFF_CUDA: "skipped off CUDA; the first steps compile",
        WarmupPolicy.SWITCHED_OFF: "the user asked for none; the first steps compile",
    }
)


class CompileWarmup(Record):
    """Whether graphs were compiled before step 0, and why or why not."""

    is_enabled: bool
    policy: WarmupPolicy
    reason: str


class CompileRuntimeView(View):
    """Fields of `--view compile-runtime`."""

    view: Literal["compile-runtime"] = "compile-runtime"
    device_type: Literal["cpu", "cuda"]
    is_compiled: bool
    regional_compile: str | None
    """Effective state of the feature."""
    has_dynamic_batch: bool | None
    uses_cuda_graphs: bool | None
    has_experts: bool
    warmup: CompileWarmup | None
    cache_state: str
    compile_duration_seconds: float | None
    graph_breaks: int | None
    recompiles: int | None
    graph_captures: int | None


def compile_runtime(source: Source) -> CompileRuntimeView:
    """Build the view."""
    receipt = source.receipt
    reasons = Reasons(receipt)
    record = receipt.compile
    device_type = device_type_of(receipt.machine.class_name)
    captures = record.graph_captures
    return CompileRuntimeView(
        receipt_id=receipt.receipt_id,
        lane=receipt.lane.canonical_name,
        device_type=device_type,
        is_compiled=record.enabled,
        regional_compile=reasons.take(
            "regional_compile",
            next((f.effective for f in receipt.features if f.key == "regional_compile"), None),
            otherwise="the receipt lists no such feature",
        ),
        has_dynamic_batch=reasons.take(
            "has_dynamic_batch",
            None,
            otherwise="lanewise has no such switch: shapes of a lane are static",
        ),
        uses_cuda_graphs=reasons.take(
            "uses_cuda_graphs",
            None if captures is None else captures > 0,
            path="compile.graph_captures",
        ),
        has_experts=bool(layers_of(receipt, "E")),
        warmup=reasons.take("warmup", _warmup(receipt), path="compile.warmup_policy"),
        cache_state=record.cache_state,
        compile_duration_seconds=reasons.take(
            "compile_duration_seconds",
            record.compile_duration_seconds,
            path="compile.compile_duration_seconds",
        ),
        graph_breaks=reasons.take("graph_breaks", record.graph_breaks, path="compile.graph_breaks"),
        recompiles=reasons.take("recompiles", record.recompiles, path="compile.recompiles"),
        graph_captures=reasons.take("graph_captures", captures, path="compile.graph_captures"),
        missing=reasons.missing,
    )


def _warmup(receipt: RunReceipt) -> CompileWarmup | None:
    policy = receipt.compile.warmup_policy
    if policy is None and not receipt.compile.enabled:
        policy = WarmupPolicy.NOTHING_COMPILED  # a receipt before 1.2 cannot say more, and need not
    if policy is None:
        return None
    return CompileWarmup(is_enabled=policy.is_enabled, policy=policy, reason=_REASONS[policy])
