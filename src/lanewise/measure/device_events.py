"""A second clock for steps on a device: events before and after each step, read once, after the last."""

from __future__ import annotations

import math
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


class StepEvents:
    """Two events per step; recording one costs microseconds and waits for nothing."""

    def __init__(self, new_event: Callable[[], Event]) -> None:
        """Make events with `new_event`, on the stream that is current when they are recorded."""
        self._new_event = new_event
        self._pairs: list[tuple[Event, Event]] = []
        self._open: Event | None = None

    def before_step(self) -> None:
        """Mark the start of a step."""
        self._open = self._new_event()
        self._open.record()

    def after_step(self) -> None:
        """Mark its end."""
        assert self._open is not None, "before_step comes first"
        end = self._new_event()
        end.record()
        self._pairs.append((self._open, end))
        self._open = None

    def seconds(self) -> tuple[float, ...]:
        """Device time of every step so far; waits for the last."""
        if self._pairs:
            self._pairs[-1][1].synchronize()
        return tuple(start.elapsed_time(end) / 1e3 for start, end in self._pairs)


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
