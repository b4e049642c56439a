"""What a run measures about itself besides its steps: memory, a device's own clock and telemetry, the host's window."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any, Final, Protocol

import torch

from lanewise.measure.device_events import Event, StepEvents
from lanewise.measure.host import (
    SELF,
    Host,
    HostReading,
    host_window,
    huge_page_bytes,
    missing_host_reasons,
)
from lanewise.measure.memory import CPU_METHOD, peak_rss_bytes
from lanewise.receipts.schema import Memory
from lanewise.receipts.telemetry import HostWindow, Telemetry
from lanewise.vendors import nvml

CUDA_METHOD: Final = (
    "torch's caching allocator since the lane was built: peak_allocated counts tensors, peak_reserved the blocks taken "
    "from the driver"
)
"""What `Memory.method` of a CUDA receipt says."""

RESERVE_TAG: Final = "reserve"
"""Tag of a step in which the caching allocator took more memory from the driver: no steady state contains it."""

NO_GPU: Final = "no GPU"

NO_MEMORY: Final = Memory(
    method="none",
    peak_allocated_bytes=None,
    peak_reserved_bytes=None,
    peak_device_used_bytes=None,
    alloc_retries=None,
    ooms=None,
)
"""Of a run that was told not to measure."""


class Meters(Protocol):
    """What differs between a CPU and a GPU."""

    @property
    def reserved_bytes(self) -> int | None:
        """Memory taken from the device for tensors, cached blocks included, as of the last step; None on a CPU."""

    def start(self) -> None:
        """The lane is built and the first step is next."""

    def before_step(self) -> None:
        """A step begins."""

    def after_step(self) -> tuple[str, ...]:
        """It has ended; returns tags for it."""

    def step_seconds(self) -> tuple[float, ...] | str:
        """Every step by the device's own clock, or why there is none."""

    def telemetry(self) -> tuple[Telemetry, dict[str, str]]:
        """Clocks and power since `start`, and reasons for what is missing."""

    def memory(self, profiled_step: Callable[[], int] | str, /) -> tuple[Memory, dict[str, str]]:
        """Peaks, and reasons for what is missing.

        Args:
            profiled_step: takes one more step and returns its peak tensor bytes, or why that is not done.
        """


class CpuMeters:
    """A CPU has one clock, and its allocator keeps no counters."""

    reserved_bytes = None
    """No device."""

    def start(self) -> None:
        """Nothing to do."""

    def before_step(self) -> None:
        """Nothing to do."""

    def after_step(self) -> tuple[str, ...]:
        """No tags."""
        return ()

    def step_seconds(self) -> str:
        """No device clock."""
        return "no device events on a CPU"

    def telemetry(self) -> tuple[Telemetry, dict[str, str]]:
        """No device."""
        return Telemetry(), {"telemetry": NO_GPU}

    def memory(self, profiled_step: Callable[[], int] | str, /) -> tuple[Memory, dict[str, str]]:
        """Peak tensor bytes of one profiled step, and the process's peak resident set."""
        missing = {
            f"memory.{name}": "the CPU allocator keeps no such counter"
            for name in ("peak_reserved_bytes", "alloc_retries", "ooms")
        }
        peak_rss = peak_rss_bytes()  # before the profiler, whose events take memory themselves
        tensor_bytes: int | None = None
        if isinstance(profiled_step, str):
            missing["memory.peak_allocated_bytes"] = profiled_step
        else:
            tensor_bytes = profiled_step()
        record = Memory(
            method=CPU_METHOD,
            peak_allocated_bytes=tensor_bytes,
            peak_reserved_bytes=None,
            peak_device_used_bytes=peak_rss,
            alloc_retries=None,
            ooms=None,
        )
        return record, missing


class CudaMeters:
    """Counters of torch's caching allocator, events around every step, and NVML where it answers."""

    def __init__(
        self,
        uuid: str,
        *,
        cuda: Any = torch.cuda,
        open_device: Callable[..., nvml.Device | str] = nvml.open_device,
    ) -> None:
        """Open the card for watching.

        Args:
            uuid: of the card the run is on.
            cuda: `torch.cuda`, or what stands for it in a test.
            open_device: `nvml.open_device`.
        """
        self._cuda = cuda
        self._device = open_device(uuid, now=time.monotonic)
        self._events = StepEvents(self._new_event)
        self._first: nvml.DeviceReading | str = "the run took no step"
        self._reserved = 0
        self._retries_before = self._ooms_before = 0

    def start(self) -> None:
        """Peaks and counters are those of the steps: building and compiling have their own."""
        self._cuda.synchronize()
        self._cuda.reset_peak_memory_stats()
        self._reserved = self._read_reserved()
        self._retries_before, self._ooms_before = self._counters()
        self._first = self._read()

    def before_step(self) -> None:
        """Mark the start on the device's stream."""
        self._events.before_step()

    def after_step(self) -> tuple[str, ...]:
        """Mark the end; a step that took memory from the driver is tagged."""
        self._events.after_step()
        reserved = self._read_reserved()
        grew = reserved > self._reserved
        self._reserved = reserved
        return (RESERVE_TAG,) if grew else ()

    def step_seconds(self) -> tuple[float, ...]:
        """Every step by device events."""
        return self._events.seconds()

    def telemetry(self) -> tuple[Telemetry, dict[str, str]]:
        """Since the first step."""
        return nvml.window_telemetry(self._first, self._read())

    def memory(self, _profiled_step: Callable[[], int] | str, /) -> tuple[Memory, dict[str, str]]:
        """The allocator's own peaks since `start`; no profiled step is needed."""
        retries, ooms = self._counters()
        record = Memory(
            method=CUDA_METHOD,
            peak_allocated_bytes=int(self._cuda.max_memory_allocated()),
            peak_reserved_bytes=int(self._cuda.max_memory_reserved()),
            peak_device_used_bytes=None,
            alloc_retries=max(0, retries - self._retries_before),
            ooms=max(0, ooms - self._ooms_before),
        )
        why = "arms share the card, so what is in use on it belongs to no single process"
        return record, {"memory.peak_device_used_bytes": why}

    @property
    def reserved_bytes(self) -> int:
        """As of the last step."""
        return self._reserved

    def _read_reserved(self) -> int:
        # `memory_reserved` flattens and sorts all of the allocator's hundred counters first; this is read in every step.
        counters = self._cuda.memory_stats_as_nested_dict()
        return int(counters["reserved_bytes"]["all"]["current"]) if counters else 0

    def _counters(self) -> tuple[int, int]:
        stats = self._cuda.memory_stats()
        return int(stats.get("num_alloc_retries", 0)), int(stats.get("num_ooms", 0))

    def _read(self) -> nvml.DeviceReading | str:
        return self._device if isinstance(self._device, str) else self._device.read()

    def _new_event(self) -> Event:
        event: Event = self._cuda.Event(enable_timing=True)
        return event


class HostWatch:
    """The host's window of a run that no campaign watches."""

    def __init__(self, host: Host, cores: tuple[int, ...] | None) -> None:
        """Watch `cores`, or every processor the process may run on."""
        self._host = host
        self._pinned = cores is not None
        self._cores = cores or host.usable_cores() or tuple(range(os.cpu_count() or 1))
        self._start: HostReading | str = "the run took no step"

    def start(self) -> None:
        """The first step is next."""
        self._start = self._host.read(self._cores, (SELF,))

    def window(self) -> HostWindow | str:
        """Since `start`, or why nothing is known."""
        if isinstance(self._start, str):
            return self._start
        end = self._host.read(self._cores, (SELF,))
        return host_window(self._start, end, own=SELF, pinned=self._pinned)


def with_huge_pages(found: HostWindow | str) -> tuple[HostWindow | None, dict[str, str]]:
    """The window as a receipt keeps it, completed by what only the process itself can read, and reasons for its nulls."""
    if isinstance(found, str):
        return None, missing_host_reasons(None, found)
    window = found.model_copy(update={"huge_page_bytes": huge_page_bytes()})
    return window, missing_host_reasons(window, "")
