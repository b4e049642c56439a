"""A second clock for steps on a device: events before and after each step, read long after they were recorded."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol


class Event(Protocol):
    """A timing event of a device stream, as `torch.cuda.Event(enable_timing=True)`."""

    def record(self) -> None:
        """Note the moment at which the stream gets here."""

    def synchronize(self) -> None:
        """Wait for that moment."""

    def elapsed_time(self, end: Event, /) -> float:
        """Milliseconds from this event to another."""


KEPT_PAIRS = 2
"""Pairs that are not read yet. When a step begins, the one before has waited for the device, hence for the end of the one
before that: so its pair can be read without waiting, and recorded anew."""


class StepEvents:
    """Two events per step; recording one waits for nothing, and few are made: a new one is a resource of the driver."""

    def __init__(self, new_event: Callable[[], Event]) -> None:
        """Make events with `new_event`, on the stream that is current when they are recorded."""
        self._new_event = new_event
        self._unread: deque[tuple[Event, Event]] = deque()
        self._free: list[tuple[Event, Event]] = []
        self._open: tuple[Event, Event] | None = None
        self._seconds: list[float] = []

    def before_step(self) -> None:
        """Mark the start of a step, which must not begin before the device has ended the step before the last."""
        if len(self._unread) == KEPT_PAIRS:
            self._free.append(self._read_oldest())
        if self._open is None:
            pair = self._free.pop() if self._free else (self._new_event(), self._new_event())
            self._open = pair
        self._open[0].record()

    def after_step(self) -> None:
        """Mark its end."""
        assert self._open is not None, "before_step comes first"
        self._open[1].record()
        self._unread.append(self._open)
        self._open = None

    def seconds(self) -> tuple[float, ...]:
        """Device time of every step so far; waits for the last."""
        if self._unread:
            self._unread[-1][1].synchronize()
        while self._unread:
            self._free.append(self._read_oldest())
        return tuple(self._seconds)

    def _read_oldest(self) -> tuple[Event, Event]:
        start, end = pair = self._unread.popleft()
        self._seconds.append(start.elapsed_time(end) / 1e3)
        return pair


def event_wall_gap_ratio(
    event_seconds: Sequence[float], wall_seconds: Sequence[float]
) -> float | None:
    """|Σ events − Σ wall| ÷ Σ wall over the same steps; None without steps.

    A gap is work that the device's stream did not see: time bound to the host, or another stream.

    Raises:
        ValueError: the clocks saw different numbers of steps.
    """
    if len(event_seconds) != len(wall_seconds):
        raise ValueError(
            f"{len(event_seconds)} steps by events, {len(wall_seconds)} by the wall clock"
        )
    wall = math.fsum(wall_seconds)
    return abs(math.fsum(event_seconds) - wall) / wall if wall > 0 else None
