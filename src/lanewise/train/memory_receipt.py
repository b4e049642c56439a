"""Peak memory of a run, as its receipt states it."""

from __future__ import annotations

from collections.abc import Callable

from lanewise.measure.memory import CPU_METHOD, peak_rss_bytes
from lanewise.receipts.schema import Memory

SHARED = "another run shared the process"

SWITCHED_OFF = "observability.{} is off"


def memory_record(
    missing: dict[str, str],
    *,
    is_measured: bool,
    is_profiled: bool,
    is_alone: bool,
    aborted: str | None,
    peak_tensor_bytes: Callable[[], int],
) -> Memory:
    """Peaks of a CPU run.

    Args:
        missing: reasons for nulls by dotted path; added to.
        is_measured: whether the lane wants measurements.
        is_profiled: whether the request wants the profiled step.
        is_alone: whether the process held no other run, so that its peak is this one's.
        aborted: why the run ended early, or None.
        peak_tensor_bytes: takes one profiled step; called only by a run that came to its end.
    """
    if not is_measured:
        missing["memory"] = SWITCHED_OFF.format("measurements")
        return Memory(
            method="none",
            peak_allocated_bytes=None,
            peak_reserved_bytes=None,
            peak_device_used_bytes=None,
            alloc_retries=None,
            ooms=None,
        )
    for counter in ("peak_reserved_bytes", "alloc_retries", "ooms"):
        missing[f"memory.{counter}"] = "the CPU allocator keeps no such counter"
    peak_rss: int | None = None
    if is_alone:
        peak_rss = peak_rss_bytes()  # before the profiler, whose events take memory themselves
    else:
        missing["memory.peak_device_used_bytes"] = SHARED
    allocated: int | None = None
    if aborted is not None:
        missing["memory.peak_allocated_bytes"] = "the run was aborted before its profiled step"
    elif not is_profiled:
        missing["memory.peak_allocated_bytes"] = "no profiled step was asked for"
    else:
        allocated = peak_tensor_bytes()
    return Memory(
        method=CPU_METHOD,
        peak_allocated_bytes=allocated,
        peak_reserved_bytes=None,
        peak_device_used_bytes=peak_rss,
        alloc_retries=None,
        ooms=None,
    )
