"""What goodput accounting adds to one step: a `step` span with a nested `data_wait` span. Budget: 20 µs a step.

Run: python -m benchmarks.goodput_cost
"""

from __future__ import annotations

import statistics
import time

from lanewise.measure.goodput import GoodputClock
from lanewise.measure.steps import StepRecorder

NUM_STEPS = 20_000
NUM_REPEATS = 7
BUDGET_MICROSECONDS = 20.0


def spans_only(clock: GoodputClock) -> None:
    for _ in range(NUM_STEPS):
        with clock.span("step"), clock.span("data_wait"):
            pass


def spans_and_series(clock: GoodputClock) -> None:
    recorder = StepRecorder()
    for step in range(NUM_STEPS):
        with clock.span("step"), clock.span("data_wait"):
            pass
        recorder.record(
            step=step,
            start_seconds=0.0,
            duration_seconds=0.1,
            data_wait_seconds=0.0,
            loss=1.0,
            grad_norm=1.0,
            tags=("gc",),
        )


def microseconds_per_step(work, *, enabled: bool) -> float:
    samples = []
    for _ in range(NUM_REPEATS):
        clock = GoodputClock(enabled=enabled)
        start_ns = time.perf_counter_ns()
        work(clock)
        samples.append((time.perf_counter_ns() - start_ns) / NUM_STEPS / 1e3)
    return statistics.median(samples)


def main() -> None:
    for name, work, enabled in (
        ("two spans, disabled", spans_only, False),
        ("two spans", spans_only, True),
        ("two spans + series entry with a tag", spans_and_series, True),
    ):
        cost = microseconds_per_step(work, enabled=enabled)
        print(f"{name:40s} {cost:6.2f} µs/step  (budget {BUDGET_MICROSECONDS:.0f} µs)")


if __name__ == "__main__":
    main()
