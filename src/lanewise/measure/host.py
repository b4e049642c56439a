"""What else the host's processors did while steps were timed, from the kernel's counters at both ends of the window.

Reading them costs fractions of a millisecond, so it happens at the start and at the end, never between steps. Clock ticks
are 10 ms on most systems: a window of a second knows its loads to about 1 %.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Final, Protocol

import psutil

from lanewise.receipts.telemetry import HostWindow

PROC: Final = Path("/proc")
SELF: Final = 0
"""Stands for the reading process itself in a collection of process ids."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ProcessReading:
    """Counters of one process since it started; None where the system keeps none."""

    cpu_seconds: float
    involuntary_switches: int | None
    major_faults: int | None
    huge_page_bytes: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class HostReading:
    """Counters at one moment.

    Attributes:
        at_seconds: monotonic.
        cores: processors looked at.
        total_seconds: time these processors have counted, idle included.
        busy_seconds: of that, spent in processes or the kernel, time stolen by the hypervisor not included.
        steal_seconds: of that, taken by the hypervisor; None where the system does not count it.
        frequency_hertz: mean over the processors, or None.
        processes: process id → its counters; a process that is gone is left out.
    """

    at_seconds: float
    cores: tuple[int, ...]
    total_seconds: float
    busy_seconds: float
    steal_seconds: float | None
    frequency_hertz: float | None
    processes: Mapping[int, ProcessReading]


class Host(Protocol):
    """The machine a campaign runs on, as far as placing and watching processes goes."""

    def usable_cores(self) -> tuple[int, ...] | None:
        """Processors this process may run on, or None where the system cannot restrict them."""

    def siblings(self, core: int) -> frozenset[int]:
        """Processors that share a physical core with this one, itself included."""

    def restrict(self, cores: Collection[int]) -> None:
        """Keep this process and all its threads to these processors."""

    def read(self, cores: Sequence[int], process_ids: Collection[int]) -> HostReading | str:
        """Counters now, or why there are none."""


class SystemHost:
    """The real machine: processor affinity where the system has it, `/proc` through psutil."""

    def usable_cores(self) -> tuple[int, ...] | None:
        """Processors this process may run on (a container may have fewer than the machine)."""
        if not hasattr(os, "sched_getaffinity"):
            return None
        return tuple(sorted(os.sched_getaffinity(0)))

    def siblings(self, core: int) -> frozenset[int]:
        """From sysfs; the processor alone where that says nothing."""
        path = Path(f"/sys/devices/system/cpu/cpu{core}/topology/thread_siblings_list")
        try:
            return parse_cpu_list(path.read_text(encoding="ascii")) | {core}
        except (OSError, ValueError):
            return frozenset({core})

    def restrict(self, cores: Collection[int]) -> None:
        """Threads that already run are moved too; those started later inherit the processors."""
        for thread in psutil.Process().threads():
            with contextlib.suppress(ProcessLookupError):  # a thread may end meanwhile
                os.sched_setaffinity(thread.id, cores)

    def read(self, cores: Sequence[int], process_ids: Collection[int]) -> HostReading | str:
        """Counters now; Linux only, because elsewhere the system keeps too few of them."""
        if not sys.platform.startswith("linux"):
            return f"{sys.platform} keeps no such counters per processor"
        try:
            times = _processor_times()
        except (OSError, ValueError):
            return "the kernel's processor counters cannot be read"
        if not cores or not times.keys() >= set(cores):
            return "the kernel counts other processors than those used (a sandbox or a container)"
        used = [times[core] for core in cores]
        total = sum(t.total for t in used)
        steal = sum(t.steal for t in used)
        idle = sum(t.idle for t in used)
        # Frequencies come as a list without numbers, which says whose is whose only where none is missing.
        numbered = times.keys() == set(range(len(times)))
        return HostReading(
            at_seconds=time.monotonic(),
            cores=tuple(cores),
            total_seconds=total,
            busy_seconds=total - idle - steal,
            steal_seconds=steal,
            frequency_hertz=_frequency_hertz(cores) if numbered else None,
            processes={
                process_id: found
                for process_id in process_ids
                if (found := _read_process(process_id or os.getpid())) is not None
            },
        )


def host_window(
    start: HostReading | str,
    end: HostReading | str,
    *,
    own: int,
    pinned: bool,
    huge_page_bytes: int | None = None,
) -> HostWindow | str:
    """The window between two readings of the same processors and processes, or why there is none.

    Args:
        start: before the first timed step.
        end: after the last.
        own: process the receipt is about; all processes of both readings count as not foreign.
        pinned: whether these processors are fewer than the machine offers.
        huge_page_bytes: of the receipt's process; None takes what the last reading knows.
    """
    if isinstance(start, str) or isinstance(end, str):
        return start if isinstance(start, str) else str(end)
    window = end.at_seconds - start.at_seconds
    capacity = end.total_seconds - start.total_seconds
    if window <= 0 or capacity <= 0:
        return (
            "the kernel's processor counters stood still over the window (too short, or a sandbox)"
        )
    first, last = start.processes.get(own), end.processes.get(own)
    known = start.processes.keys() & end.processes.keys()
    complete = known == start.processes.keys()
    ours = sum(end.processes[p].cpu_seconds - start.processes[p].cpu_seconds for p in known)
    foreign = end.busy_seconds - start.busy_seconds - ours
    stolen = (
        None
        if start.steal_seconds is None or end.steal_seconds is None
        else end.steal_seconds - start.steal_seconds
    )
    frequencies = [f for f in (start.frequency_hertz, end.frequency_hertz) if f is not None]
    return HostWindow(
        window_seconds=window,
        cores=end.cores,
        pinned=pinned,
        steal_ratio=None if stolen is None else max(0.0, stolen / capacity),
        # A tick that falls on the wrong side of an end can make the difference slightly negative.
        foreign_load_ratio=max(0.0, foreign / capacity) if complete else None,
        cpu_seconds=None
        if first is None or last is None
        else max(0.0, last.cpu_seconds - first.cpu_seconds),
        involuntary_switches=_difference(first, last, "involuntary_switches"),
        major_faults=_difference(first, last, "major_faults"),
        frequency_hertz=fmean(frequencies) if frequencies else None,
        huge_page_bytes=huge_page_bytes
        if huge_page_bytes is not None or last is None
        else last.huge_page_bytes,
    )


def missing_host_reasons(window: HostWindow | None, reason: str) -> dict[str, str]:
    """Reasons for what a window does not know, by dotted path, as a receipt's `missing` wants them."""
    if window is None:
        return {"host": reason}
    words = {
        "steal_ratio": "the system does not count stolen time",
        "foreign_load_ratio": "a process of the window ended before it",
        "cpu_seconds": "the process could not be read",
        "involuntary_switches": "the system does not count them",
        "major_faults": "the system does not count them",
        "frequency_hertz": "the system does not tell the processors' frequency",
        "huge_page_bytes": "the system does not tell which memory is in huge pages",
    }
    return {f"host.{name}": why for name, why in words.items() if getattr(window, name) is None}


def parse_cpu_list(text: str) -> frozenset[int]:
    """Processors of a kernel list such as `0-3,8`.

    >>> sorted(parse_cpu_list("0-2,7"))
    [0, 1, 2, 7]
    """
    found: set[int] = set()
    for part in text.strip().split(","):
        low, _, high = part.partition("-")
        found |= set(range(int(low), int(high or low) + 1))
    return frozenset(found)


def huge_page_bytes(rollup: Path = PROC / "self" / "smaps_rollup") -> int | None:
    """Anonymous memory of this process in transparent huge pages; walks the page tables, so not between steps.

    Args:
        rollup: the kernel's summary of the process's memory; None is returned where it cannot be read.
    """
    try:
        text = rollup.read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    kilobytes = [line.split()[1] for line in text.splitlines() if line.startswith("AnonHugePages:")]
    return int(kilobytes[0]) * 1024 if kilobytes else None


def _difference(first: ProcessReading | None, last: ProcessReading | None, name: str) -> int | None:
    if first is None or last is None:
        return None
    before, after = getattr(first, name), getattr(last, name)
    return None if before is None or after is None else max(0, after - before)


def _read_process(process_id: int) -> ProcessReading | None:
    try:
        process = psutil.Process(process_id)
        times = process.cpu_times()
        return ProcessReading(
            cpu_seconds=times.user + times.system,
            involuntary_switches=_involuntary_switches(process_id),
            major_faults=_major_faults(process_id),
        )
    except psutil.Error:
        return None


def _involuntary_switches(process_id: int) -> int | None:
    """Over all threads: the counter of `/proc/<pid>/status` is that of the first thread alone."""
    total = 0
    for status in (PROC / str(process_id) / "task").glob("*/status"):
        with contextlib.suppress(OSError):  # a thread may end meanwhile
            for line in status.read_text(encoding="ascii", errors="replace").splitlines():
                if line.startswith("nonvoluntary_ctxt_switches:"):
                    total += int(line.split()[1])
    return total


def _major_faults(process_id: int) -> int | None:
    try:
        text = (PROC / str(process_id) / "stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    # proc(5): the name in brackets may hold spaces; majflt is the tenth field after it.
    fields = text.rpartition(")")[2].split()
    return int(fields[9]) if len(fields) > 9 else None


@dataclass(frozen=True, kw_only=True, slots=True)
class _ProcessorTimes:
    """What one processor has counted since boot, in seconds; `idle` holds the waiting for disks."""

    total: float
    idle: float
    steal: float


def _processor_times() -> dict[int, _ProcessorTimes]:
    """By processor number: the kernel leaves out those that are switched off, so places in its list are no numbers.

    Raises:
        OSError: the list cannot be read.
        ValueError: it is not one.
    """
    found = {}
    ticks = os.sysconf("SC_CLK_TCK")
    for line in (PROC / "stat").read_text(encoding="ascii", errors="replace").splitlines():
        name, *fields = line.split() or [""]
        if name.startswith("cpu") and name != "cpu":
            # proc(5): user nice system idle iowait irq softirq steal; guests' time, which follows, is part of user.
            values = [int(field) / ticks for field in fields[:8]]
            if len(values) < 8:
                raise ValueError(line)
            found[int(name.removeprefix("cpu"))] = _ProcessorTimes(
                total=sum(values), idle=values[3] + values[4], steal=values[7]
            )
    return found


def _frequency_hertz(cores: Sequence[int]) -> float | None:
    try:
        known = psutil.cpu_freq(percpu=True)
    except (OSError, NotImplementedError, RuntimeError, ValueError):
        return None
    if any(core >= len(known) for core in cores):
        return None
    current = [known[core].current for core in cores]
    return fmean(current) * 1e6 if current and all(mhz > 0 for mhz in current) else None
