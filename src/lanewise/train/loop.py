"""One training step, timed as a whole: data, forward, backward, clipping, optimizer, expert balance.

Garbage is collected by hand every `gc_interval_steps` and the step is tagged, because a collection that strikes at a
random step of one arm would look like a slow step of that feature.
"""

from __future__ import annotations

import contextlib
import gc
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from lanewise.lane.schema import OptimizerSpec
from lanewise.measure.goodput import GoodputClock
from lanewise.models.model import HybridModel, Loss
from lanewise.train.optim import clip_gradients, learning_rate, set_learning_rate
from lanewise.train.routing import MicroBatchIds, RoutingReader, RoutingSource, RoutingWriter

GC_INTERVAL_STEPS = 50
"""Steps between two collections by hand."""


class Batch(Protocol):
    """What a loader hands out, int64 [B, T] each."""

    @property
    def tokens(self) -> np.ndarray:
        """Inputs."""

    @property
    def targets(self) -> np.ndarray:
        """Next tokens."""

    @property
    def document_ids(self) -> np.ndarray:
        """Document of each input."""


class BatchSource(Protocol):
    """A resumable stream of micro-batches."""

    def next(self) -> Batch:
        """The next micro-batch."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StepResult:
    """One optimizer step.

    Attributes:
        step: 0-based optimizer step.
        duration_seconds: of the whole iteration, data wait included.
        data_wait_seconds: of that, waiting for the loader.
        loss: cross-entropy in nats per token, mean over micro-batches.
        grad_norm: global norm before clipping; None when it is neither clipped nor measured.
        expert_loads: int64 [E layers, E + 1], picks of this step per expert and of null slots last; None without E layers
            or unmeasured.
        tags: `gc`, `compile`, `checkpoint` (first step after one).
        loss_parts: what every auxiliary loss added to the cross-entropy, weighted, by name, mean over micro-batches.
        auxiliary_losses: unweighted, by name, mean over micro-batches, e.g. the cross-entropy `mtp_1`.
        layer_losses: (layer, name) → what that layer added to `loss_parts[name]`; empty where unmeasured.
    """

    step: int
    duration_seconds: float
    data_wait_seconds: float
    loss: float
    grad_norm: float | None
    expert_loads: np.ndarray | None
    tags: tuple[str, ...]
    loss_parts: Mapping[str, float] = field(default_factory=dict)
    auxiliary_losses: Mapping[str, float] = field(default_factory=dict)
    layer_losses: Mapping[tuple[int, str], float] = field(default_factory=dict)


class TrainingLoop:
    """Takes optimizer steps; holds no files and no policy.

    Args:
        model: built and on its device, in training mode.
        optimizer: over the model's parameters.
        loader: micro-batches.
        spec: schedule and clipping.
        accumulation_steps: micro-batches per optimizer step.
        goodput: spans `step`, `data_wait` and `gc` are opened on it.
        measure: whether gradient norm and expert load are read out.
        isolate_documents: whether the model is told which document each token belongs to.
        graphs_compiled: reads how many graphs torch.compile has built, to tag steps that compile; None when it is off.
        replay_routing: gives the routing that every step follows; None lets the model choose.
        delay: called at the end of every step with the clock's reading at its start; None waits for nothing.
        clock: monotonic nanoseconds.
        gc_interval_steps: steps between two collections.

    Attributes:
        next_step: number of the coming step.
        accumulation_steps: micro-batches per optimizer step.
        record_routing: told the routing of every step; None records nothing.
        readout_ns: time spent, outside of any step's duration, on reading out what the steps did.
    """

    def __init__(
        self,
        *,
        model: HybridModel,
        optimizer: torch.optim.Optimizer,
        loader: BatchSource,
        spec: OptimizerSpec,
        accumulation_steps: int,
        goodput: GoodputClock,
        measure: bool = True,
        isolate_documents: bool = False,
        graphs_compiled: Callable[[], int] | None = None,
        replay_routing: RoutingReader | None = None,
        delay: Callable[[int], None] | None = None,
        clock: Callable[[], int] = time.perf_counter_ns,
        gc_interval_steps: int = GC_INTERVAL_STEPS,
    ) -> None:
        self.model = model
        self.optimizer = optimizer
        self.loader = loader
        self.next_step = 0
        self._spec = spec
        self.accumulation_steps = accumulation_steps
        self._goodput = goodput
        self._measure = measure
        self._isolate_documents = isolate_documents
        self._graphs_compiled = graphs_compiled or (lambda: 0)
        self.record_routing: RoutingWriter | None = None
        self._replay_routing = replay_routing
        self._routing_source: RoutingSource | None = replay_routing
        self._delay = delay
        self.readout_ns = 0
        self._clock = clock
        self._gc_interval_steps = gc_interval_steps
        self._pending_tags: list[str] = []
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        self._device = model.embedding.device

    def tag_next_step(self, tag: str) -> None:
        """Mark the coming step, e.g. the first one after a checkpoint."""
        self._pending_tags.append(tag)

    def step(self) -> StepResult:
        """Take one optimizer step."""
        step = self.next_step
        tags, self._pending_tags = self._pending_tags, []
        graphs_before = self._graphs_compiled()
        start_ns = self._clock()
        data_wait_ns = 0
        with self._goodput.span("step"):
            set_learning_rate(self.optimizer, learning_rate(step, self._spec))
            losses: list[Loss] = []
            to_follow: Sequence[MicroBatchIds | None] = [None] * self.accumulation_steps
            if self._routing_source is not None:
                wait_start_ns = self._clock()
                with self._goodput.span("data_wait"):
                    to_follow = self._routing_source.read(step, self._device)
                data_wait_ns += self._clock() - wait_start_ns
            for expert_ids in to_follow:
                wait_start_ns = self._clock()
                with self._goodput.span("data_wait"):
                    micro_batch = self._next_micro_batch()
                data_wait_ns += self._clock() - wait_start_ns
                losses.append(self._accumulate(*micro_batch, expert_ids))
            grad_norm = self._clip()
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            expert_loads = self.model.update_expert_bias()
            # Reading the loss waits for the device, so the step ends when its work has ended.
            loss, loss_parts, auxiliary_losses = _read(losses)
            if (step + 1) % self._gc_interval_steps == 0:
                with self._goodput.span("gc"):
                    gc.collect(1)
                tags.append("gc")
            if self._delay is not None:
                self._delay(start_ns)
        end_ns = self._clock()
        if self._graphs_compiled() != graphs_before:
            tags.append("compile")
        if self.record_routing is not None:
            self.record_routing.write(step, [loss.expert_ids for loss in losses])
        self.next_step = step + 1
        result = StepResult(
            step=step,
            duration_seconds=(end_ns - start_ns) / 1e9,
            data_wait_seconds=data_wait_ns / 1e9,
            loss=loss,
            grad_norm=grad_norm.item() if self._measure and grad_norm is not None else None,
            expert_loads=(
                expert_loads.cpu().numpy() if self._measure and expert_loads is not None else None
            ),
            tags=tuple(tags),
            loss_parts=loss_parts,
            auxiliary_losses=auxiliary_losses,
            # The device is idle since the loss was read, so this transfer waits for nothing.
            layer_losses=_read_layers(losses) if self._measure else {},
        )
        self.readout_ns += self._clock() - end_ns
        return result

    def untimed_step(self) -> None:
        """One more step that neither goodput nor the step count sees, for profiling at the end of a run."""
        goodput, self._goodput = self._goodput, GoodputClock(enabled=False)
        recorder, self.record_routing = self.record_routing, None
        step = self.next_step
        if self._replay_routing is not None:
            # No step of the run's own, so it may lie past the end of the recording: it follows the last step again.
            self._routing_source = self._replay_routing.again(max(step - 1, 0))
        try:
            self.step()
        finally:
            self._goodput, self.record_routing = goodput, recorder
            self._routing_source = self._replay_routing
            self.next_step = step

    def _next_micro_batch(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """Tokens, targets, and document ids if documents are isolated."""
        batch = self.loader.next()
        document_ids = self._to_device(batch.document_ids) if self._isolate_documents else None
        return self._to_device(batch.tokens), self._to_device(batch.targets), document_ids

    def _to_device(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(self._device, non_blocking=True)

    def _accumulate(
        self,
        tokens: Tensor,
        targets: Tensor,
        document_ids: Tensor | None,
        expert_ids: MicroBatchIds | None,
    ) -> Loss:
        loss: Loss = self.model(
            tokens,
            targets,
            document_ids=document_ids,
            expert_ids=expert_ids,
            step=self.next_step,
        )
        torch.autograd.backward(loss.total / self.accumulation_steps)
        return loss.detach()

    def _clip(self) -> Tensor | None:
        if self._spec.grad_clip_norm > 0 or self._measure:
            return clip_gradients(self._parameters, self._spec.grad_clip_norm)
        return None


def _read(losses: Sequence[Loss]) -> tuple[float, dict[str, float], dict[str, float]]:
    """Mean cross-entropy, parts and unweighted auxiliary losses of the micro-batches, in one transfer."""
    parts, unweighted = list(losses[0].parts), list(losses[0].unweighted)
    rows = [
        torch.stack([one.cross_entropy, *one.parts.values(), *one.unweighted.values()])
        for one in losses
    ]
    loss, *means = torch.stack(rows).mean(dim=0).tolist()
    return (
        loss,
        dict(zip(parts, means[: len(parts)], strict=True)),
        dict(zip(unweighted, means[len(parts) :], strict=True)),
    )


def _read_layers(losses: Sequence[Loss]) -> dict[tuple[int, str], float]:
    """Auxiliary losses of every layer, mean of the micro-batches, in one transfer; none without such layers."""
    names = list(losses[0].of_layers)
    if not names:
        return {}
    rows = [torch.stack([one.of_layers[name] for name in names]) for one in losses]
    return dict(zip(names, torch.stack(rows).mean(dim=0).tolist(), strict=True))


@contextlib.contextmanager
def manual_gc() -> Iterator[None]:
    """Switch the automatic collector off; what is alive now is never looked at again until the block ends."""
    was_enabled = gc.isenabled()
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.unfreeze()
        if was_enabled:
            gc.enable()
