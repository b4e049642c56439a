"""What the machine did while a run was timed: a device's clocks, and what else the host's processors were busy with."""

from __future__ import annotations

from lanewise.receipts.record import NonNegativeInt, Record, Seconds


class Telemetry(Record):
    """Clocks, power and temperature over the window; all null without a GPU."""

    sm_clock_hertz: float | None = None
    memory_clock_hertz: float | None = None
    power_watts: float | None = None
    energy_joules: float | None = None
    temperature_celsius: float | None = None
    clock_event_reasons: tuple[str, ...] = ()


class HostWindow(Record):
    """The host over the timed steps, from the kernel's counters at the start and the end of the window.

    Both arms of a lockstep block share one window: its processes are those of both arms and the lab.
    """

    window_seconds: Seconds
    cores: tuple[NonNegativeInt, ...]
    """Processors the timed processes were allowed to run on."""
    pinned: bool
    """Whether they were fewer than the machine offers."""
    steal_ratio: float | None
    """Time the hypervisor gave to others ÷ time of these processors."""
    foreign_load_ratio: float | None
    """(busy − CPU time of the window's own processes) ÷ time of these processors, 0 where clock ticks make it negative."""
    cpu_seconds: Seconds | None
    """Of this run's process."""
    involuntary_switches: NonNegativeInt | None
    """Times a thread of this run's process was taken off its processor."""
    major_faults: NonNegativeInt | None
    """Page faults of this run's process that waited for a disk."""
    frequency_hertz: float | None
    """Mean over the processors and the two ends of the window."""
    huge_page_bytes: NonNegativeInt | None
    """Anonymous memory of this run's process in transparent huge pages at the end."""
