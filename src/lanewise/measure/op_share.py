"""Shares of one step by op, backward pass included, from the events of torch's profiler. The sums are pure.

Forward: the time inside an op's range. Backward: the engine's `evaluate_function` of a node belongs to the range in which
the node was made, which the profiler's sequence numbers tell (as its own arrows from forward to backward do). Time belongs
to the innermost range, so what a block computes again in the backward pass is not laid at the door of the op whose node
asked for it. On a GPU the time of a kernel counts, for the range in which the host launched it.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final, NamedTuple

from lanewise.measure.memory import silent_stderr

STEP: Final = "lanewise.step"
OP: Final = "lanewise.op:"
BLOCK: Final = "lanewise.block:"
BACKWARD: Final = "autograd::engine::evaluate_function"
METHOD: Final = "torch.profiler on one step after the timed ones: ranges around launches, backward nodes by sequence number"
"""What `StepProfile.method` says."""


class Event(NamedTuple):
    """One event of a profile; times in nanoseconds.

    Attributes:
        sequence: number of the autograd node that a forward operation made or a backward one runs; −1 for none.
        forward_thread: thread of the forward pass for a backward event, else 0.
        correlation: id of an event of the host.
        launched_by: correlation id of the host's event that launched this kernel; None for events of the host.
    """

    name: str
    start: int
    end: int
    thread: int
    sequence: int = -1
    forward_thread: int = 0
    correlation: int = 0
    launched_by: int | None = None


@dataclass(frozen=True, slots=True)
class Shares:
    """Seconds of one step.

    Attributes:
        step_seconds: the whole step, by the host.
        ops: op → seconds.
        blocks: letter → seconds.
        device_busy: in which a kernel or a copy ran on the device; None where none was launched.
    """

    step_seconds: float
    ops: Mapping[str, float]
    blocks: Mapping[str, float]
    device_busy: float | None


def profiled(step: Callable[[], object], *, device_type: str) -> list[Event]:
    """Run `step` once under torch's profiler.

    Args:
        step: one training step that ends when the device has ended.
        device_type: `cpu` or `cuda`.
    """
    from torch.profiler import ProfilerActivity, profile, record_function

    activities = [ProfilerActivity.CPU]
    if device_type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    profiler = profile(activities=activities, acc_events=True)
    with silent_stderr():
        profiler.start()
    try:
        with record_function(STEP):
            step()
    finally:
        with silent_stderr():
            profiler.stop()
    results: Any = profiler.profiler.kineto_results if profiler.profiler else None
    if results is None:
        raise RuntimeError("torch.profiler kept no events; this torch was built without Kineto")
    return [_event(found) for found in results.events()]


def shares(events: Iterable[Event]) -> Shares:
    """Lay the time of a profiled step at the door of ops and of blocks.

    Raises:
        ValueError: the events hold no range of a step.
    """
    events = sorted(events, key=lambda event: (event.start, -event.end))
    step = next((e for e in events if e.name == STEP and e.launched_by is None), None)
    if step is None:
        raise ValueError(f"the profile has no range {STEP!r}")
    host = [event for event in events if event.launched_by is None]
    # CUPTI repeats annotations on the device's time line, ours and those of torch's optimizers; they are no kernels.
    annotations = {event.name for event in host}
    kernels = [e for e in events if e.launched_by is not None and e.name not in annotations]
    return Shares(
        step_seconds=(step.end - step.start) / 1e9,
        ops=_seconds(host, kernels, OP, walls=BLOCK),
        blocks=_seconds(host, kernels, BLOCK, walls=None),
        device_busy=_union(kernels) / 1e9 if kernels else None,
    )


def _union(kernels: Sequence[Event]) -> int:
    """Nanoseconds in which one of them ran at least; they are in the order of their starts."""
    covered = until = 0
    for kernel in kernels:
        covered += max(0, kernel.end - max(kernel.start, until))
        until = max(until, kernel.end)
    return covered


def _event(found: Any) -> Event:
    on_device = found.device_type().name != "CPU"
    return Event(
        name=found.name(),
        start=found.start_ns(),
        end=found.start_ns() + found.duration_ns(),
        thread=found.start_thread_id(),
        sequence=found.sequence_nr(),
        forward_thread=found.fwd_thread_id(),
        correlation=found.correlation_id(),
        launched_by=found.linked_correlation_id() if on_device else None,
    )


class _Span(NamedTuple):
    start: int
    end: int
    label: str | None
    """Whose time it is; None for nobody's."""


def _seconds(
    host: Sequence[Event], kernels: Sequence[Event], prefix: str, *, walls: str | None
) -> dict[str, float]:
    """Seconds by label, of ranges named `prefix`; ranges named `walls` end a label and begin none."""
    by_thread = defaultdict(list)
    for event in host:
        by_thread[event.thread].append(event)
    ranges = {
        thread: _Timeline(
            _Span(
                e.start, e.end, e.name.removeprefix(prefix) if e.name.startswith(prefix) else None
            )
            for e in found
            if e.name.startswith((prefix, walls or prefix))
        )
        for thread, found in by_thread.items()
    }
    makers = _makers(host, ranges)
    timelines = {
        thread: _Timeline(_spans(found, prefix, walls, makers))
        for thread, found in by_thread.items()
    }
    nanoseconds: dict[str, int] = defaultdict(int)
    if kernels:
        launchers = {event.correlation: event for event in host if event.correlation}
        for kernel in kernels:
            launcher = launchers.get(kernel.launched_by or 0)
            label = timelines[launcher.thread].label_at(launcher.start) if launcher else None
            if label is not None:
                nanoseconds[label] += kernel.end - kernel.start
    else:
        for timeline in timelines.values():
            for label, length in timeline.lengths():
                nanoseconds[label] += length
    labels = {e.name.removeprefix(prefix) for e in host if e.name.startswith(prefix)}
    return {label: nanoseconds[label] / 1e9 for label in sorted(labels)}


def _makers(
    host: Sequence[Event], ranges: Mapping[int, _Timeline]
) -> dict[tuple[int, int], str | None]:
    """(thread, sequence number) → label of the range in which the node was made.

    An operation that makes no node carries the number of the next one, so the last to start is the maker.
    """
    return {
        (event.thread, event.sequence): ranges[event.thread].label_at(event.start)
        for event in host
        if event.sequence >= 0 and event.forward_thread == 0
    }


def _spans(
    found: Sequence[Event],
    prefix: str,
    walls: str | None,
    makers: Mapping[tuple[int, int], str | None],
) -> Iterator[_Span]:
    for event in found:
        if event.name.startswith(prefix):
            yield _Span(event.start, event.end, event.name.removeprefix(prefix))
        elif event.name.startswith(BACKWARD):
            label = makers.get((event.forward_thread, event.sequence))
            yield _Span(event.start, event.end, label)
        elif walls is not None and event.name.startswith(walls):
            yield _Span(event.start, event.end, None)


class _Timeline:
    """One thread cut into pieces, each with the label of the innermost span over it."""

    def __init__(self, spans: Iterable[_Span]) -> None:
        self._starts: list[int] = []
        self._labels: list[str | None] = []
        open_spans: list[_Span] = []
        for span in spans:
            self._close(open_spans, span.start)
            open_spans.append(span)
            self._cut(span.start, span.label)
        self._close(open_spans, None)

    def label_at(self, time: int) -> str | None:
        """Label of the piece that holds a moment."""
        index = bisect_right(self._starts, time) - 1
        return self._labels[index] if index >= 0 else None

    def lengths(self) -> Iterator[tuple[str, int]]:
        """Label and length of every piece that is somebody's."""
        for (start, end), label in zip(pairwise(self._starts), self._labels, strict=False):
            if label is not None:
                yield label, end - start

    def _close(self, open_spans: list[_Span], until: int | None) -> None:
        while open_spans and (until is None or open_spans[-1].end <= until):
            ended = open_spans.pop()
            self._cut(ended.end, open_spans[-1].label if open_spans else None)

    def _cut(self, time: int, label: str | None) -> None:
        self._starts.append(time)
        self._labels.append(label)
