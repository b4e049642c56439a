"""Peak memory of a run as its receipt states it, and why the switches of observability leave fields null."""

from __future__ import annotations

from collections.abc import Callable

from lanewise.lane.schema import ObservabilitySpec
from lanewise.receipts.schema import Memory
from lanewise.train.meters import NO_MEMORY, Meters
from lanewise.train.routing_receipt import LOAD_FIELDS

SHARED = "another run shared the process"

COUNTERS = (
    "peak_allocated_bytes",
    "peak_reserved_bytes",
    "peak_device_used_bytes",
    "alloc_retries",
    "ooms",
)
"""Fields of `Memory` that belong to a process."""

SWITCHED_OFF = "observability.{} is off"


def memory_record(
    missing: dict[str, str],
    *,
    is_measured: bool,
    is_profiled: bool,
    is_alone: bool,
    aborted: str | None,
    meters: Meters,
    peak_tensor_bytes: Callable[[], int],
) -> Memory:
    """Peaks of a run.

    Args:
        missing: reasons for nulls by dotted path; added to.
        is_measured: whether the lane wants measurements.
        is_profiled: whether the request wants the profiled step.
        is_alone: whether the process held no other run, so that its peak is this one's.
        aborted: why the run ended early, or None.
        meters: of the run's device.
        peak_tensor_bytes: takes one profiled step; called only by a run that came to its end, on a device that counts no
            peaks itself.
    """
    if not is_measured:
        missing["memory"] = SWITCHED_OFF.format("measurements")
        return NO_MEMORY
    profiled: Callable[[], int] | str = peak_tensor_bytes
    if aborted is not None:
        profiled = "the run was aborted before its profiled step"
    elif not is_profiled:
        profiled = "no profiled step was asked for"
    record, reasons = meters.memory(profiled)
    missing |= reasons
    if is_alone:
        return record
    counted = [name for name in COUNTERS if getattr(record, name) is not None]
    missing |= {f"memory.{name}": SHARED for name in counted}
    return record.model_copy(update=dict.fromkeys(counted))


def explain_switches(
    watched: ObservabilitySpec, missing: dict[str, str], *, has_experts: bool
) -> None:
    """Say of every field that a switch leaves null which one it was.

    Args:
        watched: the lane's switches.
        missing: reasons for nulls by dotted path; added to.
        has_experts: whether the lane has E layers, whose loads are measured.
    """
    if not watched.measurements:
        reason = SWITCHED_OFF.format("measurements")
        missing["numerics.grad_norm_last"] = reason
        if has_experts:
            missing.update(dict.fromkeys(LOAD_FIELDS, reason))
    if not watched.goodput:
        missing["goodput"] = SWITCHED_OFF.format("goodput")
