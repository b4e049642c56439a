"""What a run writes down of every step, and how long writing down takes."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator

import numpy as np

from lanewise.measure.steps import StepRecorder
from lanewise.train.loop import StepResult


class StepLog:
    """Takes every step's result.

    Args:
        clock: monotonic nanoseconds.

    Attributes:
        clock: as given.
        recorder: per-step series.
        expert_loads: per step int64 [E layers, E + 1], where measured.
        auxiliary_losses: name → unweighted value of every step that had it.
        layer_losses: layer and name → the same of single layers.
        writing_ns: time spent on writing down.
        watching_ns: time spent on meters of the machine, before and after steps.
        between_seconds: per step, what the host did around its timed part: all of the above, and nothing a device waits for.
        protocol_ns: time spent on messages to and from the lab, waiting left out.
    """

    def __init__(self, clock: Callable[[], int]) -> None:
        self.recorder = StepRecorder()
        self.expert_loads: list[np.ndarray] = []
        self.auxiliary_losses: dict[str, list[float]] = {}
        self.layer_losses: dict[tuple[int, str], list[float]] = {}
        self.between_seconds: list[float] = []
        self.writing_ns = 0
        self.watching_ns = 0
        self.protocol_ns = 0
        self.clock = clock

    def take(self, result: StepResult, *, start_seconds: float) -> None:
        """Write one step down.

        Args:
            result: of the step.
            start_seconds: when it began, since the run began.
        """
        start_ns = self.clock()
        self.recorder.record(
            step=result.step,
            start_seconds=start_seconds,
            duration_seconds=result.duration_seconds,
            data_wait_seconds=result.data_wait_seconds,
            loss=result.loss,
            grad_norm=math.nan if result.grad_norm is None else result.grad_norm,
            tags=result.tags,
            loss_parts=result.loss_parts,
        )
        if result.expert_loads is not None:
            self.expert_loads.append(result.expert_loads)
        for name, value in result.auxiliary_losses.items():
            self.auxiliary_losses.setdefault(name, []).append(value)
        for layer_and_name, value in result.layer_losses.items():
            self.layer_losses.setdefault(layer_and_name, []).append(value)
        self.writing_ns += self.clock() - start_ns

    @contextlib.contextmanager
    def protocol(self) -> Iterator[None]:
        """Account a block that talks to the lab."""
        start_ns = self.clock()
        try:
            yield
        finally:
            self.protocol_ns += self.clock() - start_ns
