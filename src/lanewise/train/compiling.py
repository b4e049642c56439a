"""Compiling ahead of the first step, and what a receipt says about it."""

from __future__ import annotations

import torch

from lanewise.lane.schema import Lane
from lanewise.models.model import HybridModel
from lanewise.parallel import compile_regions
from lanewise.receipts.schema import CompileRecord
from lanewise.receipts.warmup_policy import WarmupPolicy
from lanewise.train.routing import RoutingReader


def trigger_compilation(
    model: HybridModel,
    optimizer: torch.optim.Optimizer,
    lane: Lane,
    *,
    replay: RoutingReader | None,
    step: int,
) -> None:
    """One forward and backward on a made-up batch, so that no training step compiles; leaves no trace in the model.

    Args:
        model: its blocks are marked for compilation.
        optimizer: its gradients are dropped.
        lane: batch and data tables.
        replay: routing that steps follow, or None.
        step: the coming step.
    """
    device = model.embedding.device
    tokens = torch.zeros(
        (lane.batch.micro_batch_size, lane.batch.sequence_length), dtype=torch.int64, device=device
    )
    loads = [buffer for name, buffer in model.named_buffers() if name.endswith("load")]
    before = [load.clone() for load in loads]
    # Called as a training step will call it, or the first step would compile again.
    document_ids = tokens if lane.data.isolate_documents else None
    expert_ids = None
    if replay is not None:
        (expert_ids, *_) = replay.peek(step, device)
    loss = model(tokens, tokens, document_ids=document_ids, expert_ids=expert_ids)
    loss.total.backward()
    optimizer.zero_grad(set_to_none=True)
    for load, value in zip(loads, before, strict=True):
        load.copy_(value)


def compile_record(
    *, enabled: bool, seconds: float, cache_digest: str | None, missing: dict[str, str]
) -> CompileRecord:
    """What the compiler did in this process.

    Args:
        enabled: whether blocks were compiled.
        seconds: what compiling ahead of the first step took.
        cache_digest: of the run's private cache before it compiled; None without one.
        missing: reasons for nulls by dotted path; added to.
    """
    if not enabled or cache_digest is None:
        missing["compile.cache_digest"] = (
            "no private cache was asked for" if enabled else "nothing is compiled"
        )
    if not enabled:
        return CompileRecord(
            enabled=False,
            cache_state="unused",
            compile_duration_seconds=0.0,
            graph_breaks=0,
            recompiles=0,
            graph_captures=0,
            warmup_policy=WarmupPolicy.NOTHING_COMPILED,
        )
    counts = compile_regions.compile_counts()
    return CompileRecord(
        enabled=True,
        cache_state=counts.cache_state,
        compile_duration_seconds=seconds,
        graph_breaks=counts.graph_breaks,
        recompiles=counts.recompiles,
        graph_captures=0,
        cache_digest=cache_digest,
        warmup_policy=WarmupPolicy.EXPLICIT,
    )
