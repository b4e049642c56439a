"""The observer tax by direct accounting: what a run spends on being observed, against the time of its steps.

Some of it is long enough to clock where it happens: reading a step's results out and writing them down, and the messages
of the lab's protocol. The rest is too short for that (goodput spans, launch counters, clock reads): those are counted,
and a call of each is clocked at the end of the run. Clocked after a step's worth of other memory has been touched, because
in a step they run with cold caches too; a tight loop would make them look several times cheaper.

Spans, counters and most clock reads lie inside the timed step and can bias what it measures; the rest lies between steps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from statistics import median
from typing import Final, Protocol

import numpy as np

from lanewise.measure.goodput import GoodputClock
from lanewise.ops.observe import Launch, LaunchCounters, Observation
from lanewise.ops.spec import Choice
from lanewise.receipts.instruments import ObserverCost
from lanewise.receipts.schema import Goodput
from lanewise.train.step_log import StepLog

STEP_SPANS: Final = ("step", "data_wait", "gc")
"""Goodput categories whose spans open and close inside the timed step."""

NUM_SAMPLES: Final = 15
EVICTED_BYTES: Final = 4 * 2**20
"""Memory touched before each sample: more than a core's own caches hold."""


class Instrumented(Protocol):
    """What the account needs of a training loop."""

    @property
    def accumulation_steps(self) -> int:
        """Micro-batches per step; each is waited for, and the wait is clocked."""

    @property
    def readout_ns(self) -> int:
        """Time spent on reading results out after steps."""


def observer_cost(
    log: StepLog,
    goodput: GoodputClock,
    loop: Instrumented,
    observations: Mapping[str, Observation],
) -> ObserverCost | None:
    """Account what was observed so far; None before the first step, or when goodput is switched off.

    Args:
        log: what was written down.
        goodput: the run's clock.
        loop: what took the steps.
        observations: op → launches that were counted during the steps.
    """
    num_steps = len(log.recorder)
    step_seconds = sum(log.recorder.durations_seconds)
    if not goodput.enabled or step_seconds <= 0:
        return None
    with goodput.span("profiler"):
        return _account(log, goodput, loop, observations, num_steps, step_seconds)


def with_observer(goodput: Goodput | None, cost: ObserverCost | None) -> Goodput | None:
    """The partition of wall time with the cost of observing beside it; the cost is inside the parts, not one of them."""
    if goodput is None or cost is None:
        return goodput
    return goodput.model_copy(update={"observer_seconds": cost.total_seconds})


def _account(
    log: StepLog,
    goodput: GoodputClock,
    loop: Instrumented,
    observations: Mapping[str, Observation],
    num_steps: int,
    step_seconds: float,
) -> ObserverCost:
    clock = log.clock
    cold = np.zeros(EVICTED_BYTES // 8)
    spans = GoodputClock(clock)
    count = _counting()

    def one_span() -> None:
        with spans.span("step"):
            pass

    def clocked(work: Callable[[], object]) -> float:
        """Median seconds of one call with cold caches; the read of the clock that ends it is part of it."""
        samples = []
        for _ in range(NUM_SAMPLES):
            cold.sum()
            start_ns = clock()
            work()
            samples.append(clock() - start_ns)
        return median(samples) / 1e9

    read_seconds = clocked(lambda: None)

    num_spans = sum(goodput.num_closed(category) for category in STEP_SPANS)
    # One around the step, one around each wait for data, in pairs, and the run's own. The log's are clocked with it.
    num_reads = num_steps * (3 + 2 * loop.accumulation_steps)
    spans_seconds = num_spans * max(0.0, clocked(one_span) - read_seconds)
    num_launches = sum(seen.launches for seen in observations.values())
    counters_seconds = num_launches * max(0.0, clocked(count) - read_seconds)
    reads_seconds = num_reads * read_seconds
    readout_seconds = (loop.readout_ns + log.writing_ns + log.watching_ns) / 1e9
    protocol_seconds = log.protocol_ns / 1e9
    in_step = spans_seconds + counters_seconds + reads_seconds
    return ObserverCost(
        steps=num_steps,
        spans_seconds=spans_seconds,
        launch_counters_seconds=counters_seconds,
        clock_reads_seconds=reads_seconds,
        readout_seconds=readout_seconds,
        protocol_seconds=protocol_seconds,
        in_step_ratio=in_step / step_seconds,
        total_ratio=(in_step + readout_seconds) / step_seconds,
    )


def _counting() -> Callable[[], None]:
    """A launch counter of its own, so that the run's counts stay as they are."""
    choice = Choice(op="observer", requested=(), chosen="clocked", rejected=(), fallback=False)
    return Launch(choice, lambda: None, LaunchCounters()).count
