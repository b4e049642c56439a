"""View `attention-backend`: which attention was asked for, which ran, and the proof; a fast run without it proves nothing."""

from __future__ import annotations

from typing import Literal

from lanewise.receipts.extension_keys import KERNELS_KEY
from lanewise.receipts.record import Record
from lanewise.receipts.schema import BackendRecord, RunReceipt, StepSeries
from lanewise.receipts.views.base import NO_STEPS, ArticleNames, Reasons, Source, View
from lanewise.receipts.views.comparison import peak_memory_bytes, tokens_per_step

NAMES: ArticleNames = {
    "ops.requested": "dense_fa4_requested",
    "ops.observed": "execution_surface.actual_backend",
    "ops.proof": "backend_truth",
    "ops.is_proven": "checks.fa4_backend_confirmed",
    "ops.kernels": "fa4_kernels_verified",
    "tokens_per_second": "throughput_tok_sec",
    "tokens_per_second_min": "throughput_min",
    "tokens_per_second_max": "throughput_max",
    "model_flops_utilization_ratio": "mfu_mean",
    "peak_memory_bytes": "memory_peak_gb",
    "loss_first": "loss_first",
    "loss_last": "loss_last",
    "compile_duration_seconds": "compile_time_sec",
    "wall_duration_seconds": "wall_time_sec",
    "machine_class": "gpu_type",
    "num_steps": "num_steps",
    "num_params": "num_params",
    "status": "status",
    "failure_reason": "failure_reason",
}
ATTENTION_OPS = ("attention_core", "sparse_attention", "index_topk", "mla_ingress")
_NO_KERNELS = {
    "counter": "the launch counter of the backend proves it; the run recorded no device kernels",
    "trace": "the trace of the compiled graph proves it; the run recorded no device kernels",
    "kernel_name": "the receipt claims kernel names and holds none",
    "none": "the op never ran",
}


class AttentionOp(Record):
    """One op of attention: asked for, chosen, observed, and how that is known."""

    op: str
    requested: tuple[str, ...]
    """In order; empty is the op's own order."""
    chosen: str
    observed: tuple[str, ...]
    launches: int
    proof: str
    is_proven: bool
    """What was chosen, and nothing else, is known to have run."""
    kernels: tuple[str, ...]
    """Device kernels seen in a profiled step; empty with a reason in `missing` under `ops.<op>.kernels`."""
    rejected: dict[str, str]
    """Backend → why it could not run."""
    fallback_reason: str | None


class AttentionBackendView(View):
    """Fields of `--view attention-backend`."""

    view: Literal["attention-backend"] = "attention-backend"
    ops: tuple[AttentionOp, ...]
    all_proven: bool | None
    """Null where the lane has no attention."""
    tokens_per_second: float | None
    tokens_per_second_min: float | None
    """Of the slowest steady step."""
    tokens_per_second_max: float | None
    """Of the fastest steady step."""
    model_flops_utilization_ratio: float | None
    peak_memory_bytes: int | None
    loss_first: float | None
    loss_last: float | None
    compile_duration_seconds: float | None
    wall_duration_seconds: float | None
    machine_class: str
    num_steps: int
    num_params: int
    status: str
    failure_reason: str | None


def attention_backend(source: Source) -> AttentionBackendView:
    """Build the view."""
    receipt = source.receipt
    reasons = Reasons(receipt)
    ops = tuple(
        _op(receipt, record, reasons) for record in receipt.backends if record.op in ATTENTION_OPS
    )
    if not ops:
        reasons.missing["ops"] = "the lane runs no attention"
    steps = receipt.timing.step_duration_seconds
    slowest, fastest = _extremes(receipt, source.steps)
    why_none = NO_STEPS if source.steps is None else "no steady steps"
    memory, memory_path = peak_memory_bytes(receipt)
    goodput = receipt.goodput
    outcome = receipt.outcome
    failed = "; ".join(f"{c.name}: {c.detail}" for c in outcome.checks if not c.ok)
    return AttentionBackendView(
        receipt_id=receipt.receipt_id,
        lane=receipt.lane.canonical_name,
        ops=ops,
        all_proven=reasons.take(
            "all_proven",
            all(op.is_proven for op in ops) if ops else None,
            otherwise="the lane runs no attention",
        ),
        tokens_per_second=reasons.take(
            "tokens_per_second",
            receipt.throughput.tokens_per_second,
            path="throughput.tokens_per_second",
        ),
        tokens_per_second_min=reasons.take("tokens_per_second_min", slowest, otherwise=why_none),
        tokens_per_second_max=reasons.take("tokens_per_second_max", fastest, otherwise=why_none),
        model_flops_utilization_ratio=reasons.take(
            "model_flops_utilization_ratio",
            receipt.flops.model_flops_utilization_ratio,
            path="flops.model_flops_utilization_ratio",
        ),
        peak_memory_bytes=reasons.take("peak_memory_bytes", memory, path=memory_path),
        loss_first=reasons.take(
            "loss_first", receipt.numerics.loss_first, path="numerics.loss_first"
        ),
        loss_last=reasons.take("loss_last", receipt.numerics.loss_last, path="numerics.loss_last"),
        compile_duration_seconds=reasons.take(
            "compile_duration_seconds",
            receipt.compile.compile_duration_seconds,
            path="compile.compile_duration_seconds",
        ),
        wall_duration_seconds=reasons.take(
            "wall_duration_seconds",
            None if goodput is None else goodput.wall_duration_seconds,
            path="goodput",
        ),
        machine_class=receipt.machine.class_name,
        num_steps=0 if steps is None else steps.count,
        num_params=receipt.flops.params_total,
        status=outcome.status,
        failure_reason=reasons.take(
            "failure_reason", outcome.error or failed or None, otherwise="nothing failed"
        ),
        missing=reasons.missing,
    )


def _op(receipt: RunReceipt, record: BackendRecord, reasons: Reasons) -> AttentionOp:
    seen = receipt.extensions.get(KERNELS_KEY)
    names = seen.get(record.op, ()) if isinstance(seen, dict) else ()
    kernels = tuple(str(name) for name in names) if isinstance(names, list | tuple) else ()
    if not kernels:
        reasons.missing[f"ops.{record.op}.kernels"] = _NO_KERNELS[record.proof]
    if record.fallback_reason is None:
        reasons.missing[f"ops.{record.op}.fallback_reason"] = "nothing fell back"
    return AttentionOp(
        op=record.op,
        requested=record.requested,
        chosen=record.chosen,
        observed=record.observed,
        launches=record.launches,
        proof=record.proof,
        is_proven=record.proof != "none" and record.observed == (record.chosen,),
        kernels=kernels,
        rejected=record.rejected,
        fallback_reason=record.fallback_reason,
    )


def _extremes(
    receipt: RunReceipt, series: StepSeries | None
) -> tuple[float, float] | tuple[None, None]:
    """Tokens per second of the slowest and of the fastest steady step."""
    tokens = tokens_per_step(receipt)
    steady = () if series is None else series.duration_seconds[receipt.timing.warmup.steps :]
    if tokens is None or not steady or min(steady) <= 0:
        return None, None
    return tokens / max(steady), tokens / min(steady)
