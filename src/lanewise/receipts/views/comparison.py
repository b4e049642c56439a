"""Two receipts side by side: refused unless they are comparable, and only over matched steps.

The result has no winner: one pair of runs has no noise band. `lanewise ablate` decides.
"""

from __future__ import annotations

from dataclasses import dataclass

from lanewise.errors import ReceiptError
from lanewise.receipts.compare import comparable, declared_features
from lanewise.receipts.document import short
from lanewise.receipts.record import Record
from lanewise.receipts.schema import RunReceipt, StepSeries
from lanewise.receipts.views.base import Source


class Condition(Record):
    """Under which matched conditions two runs were compared."""

    tokens_per_step: int | None
    """Null where the lane's batch table is incomplete."""
    warmup_steps: int
    """Dropped from both: the longer of the two warm-ups."""
    num_steps: int
    """Counted of both, after that."""
    machine_class: str
    compute_dtype: str
    differing_features: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Matched:
    """Mean step of both runs over the same steps.

    Attributes:
        base_seconds: mean step of the base.
        seconds: mean step of the run.
        condition: what was the same.
    """

    base_seconds: float
    seconds: float
    condition: Condition


def match(source: Source, base: RunReceipt) -> Matched:
    """Compare a run with its base.

    Raises:
        ReceiptError: they are not comparable, or their steps cannot be matched; the differing fields are named.
    """
    receipt = source.receipt
    allowed = declared_features(receipt, base) | set(source.may_differ)
    blocking = [f"{d.field} ({d.a} ≠ {d.b})" for d in comparable(base, receipt, declared=allowed)]
    if blocking:
        raise ReceiptError(
            f"{short(receipt.receipt_id)} cannot be compared with {short(base.receipt_id)}: they differ in "
            f"{', '.join(blocking)}; choose a base of the same lane, data and machine"
        )
    mine, theirs = receipt.timing.warmup.steps, base.timing.warmup.steps
    dropped = max(mine, theirs)
    if source.steps is not None and source.base_steps is not None:
        count = min(len(source.steps.step), len(source.base_steps.step)) - dropped
        if count <= 0:
            raise ReceiptError(
                f"no step is left after the longer warm-up of {dropped} steps; compare longer runs"
            )
        seconds = _mean(source.steps, dropped, count)
        base_seconds = _mean(source.base_steps, dropped, count)
    else:
        one, other = receipt.timing.step_duration_seconds, base.timing.step_duration_seconds
        if one is None or other is None or (one.count, mine) != (other.count, theirs):
            raise ReceiptError(
                "steps cannot be matched: timing.warmup.steps or timing.step_duration_seconds.count differ "
                f"({mine}, {one and one.count} ≠ {theirs}, {other and other.count}) and a step series is missing; "
                "run with observability.temporal_perf on"
            )
        count, seconds, base_seconds = one.count, one.mean, other.mean
    states = {f.key: f.effective for f in base.features}
    return Matched(
        base_seconds=base_seconds,
        seconds=seconds,
        condition=Condition(
            tokens_per_step=tokens_per_step(receipt),
            warmup_steps=dropped,
            num_steps=count,
            machine_class=receipt.machine.class_name,
            compute_dtype=receipt.flops.peak_dtype,
            differing_features=tuple(
                f"{f.key}: {states.get(f.key)} → {f.effective}"
                for f in receipt.features
                if states.get(f.key) != f.effective
            ),
        ),
    )


def tokens_per_step(receipt: RunReceipt) -> int | None:
    """Tokens of one optimizer step on one process, by the lane's batch table."""
    batch = receipt.lane.spec.get("batch")
    if not isinstance(batch, dict):
        return None
    sizes = [
        batch.get(key)
        for key in ("sequence_length", "micro_batch_size", "gradient_accumulation_steps")
    ]
    product = 1
    for size in sizes:
        if not isinstance(size, int):
            return None
        product *= size
    return product


def label(receipt: RunReceipt) -> str:
    """What a table calls a run: its place in a campaign, or its lane and id."""
    place = receipt.experiment
    if place is None:
        return f"{receipt.lane.name} {short(receipt.receipt_id)}"
    return f"{receipt.lane.name} {place.ablation_id} arm {place.arm} block {place.block}"


def peak_memory_bytes(receipt: RunReceipt) -> tuple[int | None, str]:
    """Peak of tensors, and the path of that field; of the process where tensors were not profiled."""
    memory = receipt.memory
    if memory.peak_allocated_bytes is not None or memory.peak_device_used_bytes is None:
        return memory.peak_allocated_bytes, "memory.peak_allocated_bytes"
    return memory.peak_device_used_bytes, "memory.peak_device_used_bytes"


def memory_delta_bytes(receipt: RunReceipt, base: RunReceipt) -> int | None:
    """Change of peak memory, of tensors where both know it, else of the process; None where no kind is known of both."""
    for field in ("peak_allocated_bytes", "peak_device_used_bytes"):
        after, before = getattr(receipt.memory, field), getattr(base.memory, field)
        if after is not None and before is not None:
            return int(after - before)
    return None


def _mean(series: StepSeries, dropped: int, count: int) -> float:
    return sum(series.duration_seconds[dropped : dropped + count]) / count
