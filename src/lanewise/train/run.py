"""One run from request to receipt: data → ops → model → optimizer → steps → exactly one receipt."""

from __future__ import annotations

import datetime as dt
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from lanewise.errors import UsageError
from lanewise.lane.built import require_built
from lanewise.lane.gpu import find_gpu
from lanewise.measure.goodput import GoodputClock
from lanewise.measure.memory import CPU_METHOD, live_tensors, measure_cpu_step, peak_rss_bytes
from lanewise.measure.steady import RULE, detect_warmup
from lanewise.measure.steps import StepRecorder
from lanewise.models.problems import lane_problems
from lanewise.ops.dispatch import capabilities
from lanewise.ops.opset import OpSet
from lanewise.parallel import compile_regions, recompute
from lanewise.receipts.environment import collect_environment, collect_machine
from lanewise.receipts.schema import CompileRecord, Memory, RunReceipt, Warmup
from lanewise.receipts.store import Store
from lanewise.train import checkpoint, routing, saved
from lanewise.train.build import build_model
from lanewise.train.data.corpus import check_vocab, open_corpus
from lanewise.train.data.packing import Loader
from lanewise.train.loop import StepResult, TrainingLoop
from lanewise.train.optim import parameter_groups
from lanewise.train.receipt import RunFacts, assemble, tokens_per_step
from lanewise.train.request import RunRequest
from lanewise.train.routing_receipt import LOAD_FIELDS

MIN_STEADY_STEPS = 8
"""Least steady steps of a run that detects its own warm-up."""

SWITCHED_OFF = "observability.{} is off"


@dataclass(frozen=True, kw_only=True, slots=True)
class Finished:
    """A run that wrote its receipt.

    Attributes:
        receipt: what was written, but for `artifacts`, which the store adds.
        location: file or URI of the receipt.
    """

    receipt: RunReceipt
    location: str

    @property
    def validity(self) -> str:
        """Whether the run may count as evidence."""
        return self.receipt.outcome.validity

    @property
    def reasons(self) -> tuple[str, ...]:
        """Name and detail of every check that failed."""
        checks = self.receipt.outcome.checks
        return tuple(f"{check.name}: {check.detail}" for check in checks if not check.ok)


class Run:
    """A lane being trained.

    Building it opens the data, chooses backends, draws weights and, on request, restores a checkpoint and compiles;
    all of it is accounted to goodput spans.

    Args:
        request: what to run.
        clock: monotonic nanoseconds.
        today: wall-clock time in UTC, for the receipt.
        host_allocator: what `prepare_process` answered, for the receipt.

    Attributes:
        goodput: the run's clock.
        messages: what a person should know about the build, e.g. a half-written checkpoint that was ignored.
    """

    def __init__(
        self,
        request: RunRequest,
        *,
        clock: Callable[[], int] = time.perf_counter_ns,
        today: Callable[[], dt.datetime] = lambda: dt.datetime.now(dt.UTC),
        host_allocator: str = "the C library's default",
    ) -> None:
        resolved = request.resolved
        require_built(resolved.lane)
        self.request = request
        self.lane = resolved.lane
        self._created_at = today().isoformat(timespec="seconds").replace("+00:00", "Z")
        self._clock = clock
        self._host_allocator = host_allocator
        self._start_ns = clock()
        watched = self.lane.observability
        self.goodput = GoodputClock(clock, enabled=watched.goodput)
        self.messages: list[str] = []
        self._recorder = StepRecorder()
        self._expert_loads: list[np.ndarray] = []
        self._auxiliary_losses: dict[str, list[float]] = {}
        self._gpu = find_gpu() if resolved.device_type == "cuda" else None
        self._origin: saved.Origin | None = None
        self._finished = False
        self._compile_seconds = 0.0
        with self.goodput.span("training_prep"):
            self._build(measure=watched.measurements)
            self._first_step = self._loop.next_step

    def _build(self, *, measure: bool) -> None:
        resolved, lane = self.request.resolved, self.lane
        device = torch.device(resolved.device_type)
        self.corpus = open_corpus(
            lane.data, path=self.request.data_path, sequence_length=lane.batch.sequence_length
        )
        check_vocab(self.corpus, lane.model.vocab_size)
        self._loader = Loader(
            self.corpus,
            micro_batch_size=lane.batch.micro_batch_size,
            sequence_length=lane.batch.sequence_length,
            seed=lane.data.seed,
        )
        offered = capabilities(resolved.device_type)
        self.ops = OpSet.resolve(
            resolved.op_preferences,
            lane_problems(lane, resolved.device_type, resolved.model_switches),
            offered,
        )
        self.model = build_model(
            lane,
            model_switches=resolved.model_switches,
            ops=self.ops,
            tokenizer=self.corpus.tokenizer,
        )
        self.model.reset_parameters(torch.Generator().manual_seed(lane.seed))
        if self.request.init_from is not None:
            with self.goodput.span("checkpoint_restore"):
                self._origin, notes = saved.start_from(Path(self.request.init_from), self.model)
            self.messages += notes
        self.model.to(device).train()
        compiled = resolved.runtime_switches.get("regional_compile", False)
        recompute.apply(self.model, lane.recompute, compiled=compiled)
        self._optimizer = self.ops.optimizer_step(
            parameter_groups(self.model, lane.optimizer),
            lane.optimizer.learning_rate,
            lane.optimizer.betas,
            lane.optimizer.eps,
        )
        data_digest = self.corpus.record.digest
        self._replay = routing.to_follow(self.request, data_digest)
        self._loop = TrainingLoop(
            model=self.model,
            optimizer=self._optimizer,
            loader=self._loader,
            spec=lane.optimizer,
            accumulation_steps=lane.batch.gradient_accumulation_steps,
            goodput=self.goodput,
            measure=measure,
            isolate_documents=lane.data.isolate_documents,
            graphs_compiled=compile_regions.graphs_compiled if compiled else None,
            replay_routing=self._replay,
            clock=self._clock,
        )
        if self.request.resume:
            with self.goodput.span("checkpoint_restore"):
                self._restore()
        if self._replay is not None and self.request.steps is not None:
            self._replay.require(range(self._loop.next_step, self.request.steps))
        self._record = routing.to_write(self.request, data_digest, first_step=self.next_step)
        self._loop.record_routing = self._record
        if compiled:
            compile_regions.compile_blocks(self.model.sub_layers, offered)
            start_ns = self._clock()
            with self.goodput.span("compile"):
                self._trigger_compilation(device)
            self._compile_seconds = (self._clock() - start_ns) / 1e9
        self.ops.reset_counters()

    def _trigger_compilation(self, device: torch.device) -> None:
        """One forward and backward on a made-up batch, so that no training step compiles; leaves no trace in the model."""
        batch = self.lane.batch
        shape = (batch.micro_batch_size, batch.sequence_length)
        tokens = torch.zeros(shape, dtype=torch.int64, device=device)
        loads = [buffer for name, buffer in self.model.named_buffers() if name.endswith("load")]
        before = [load.clone() for load in loads]
        # Called as a training step will call it, or the first step would compile again.
        document_ids = tokens if self.lane.data.isolate_documents else None
        expert_ids = None
        if self._replay is not None:
            (expert_ids, *_) = self._replay.peek(self._loop.next_step, device)
        loss = self.model(tokens, tokens, document_ids=document_ids, expert_ids=expert_ids)
        loss.total.backward()
        self._optimizer.zero_grad(set_to_none=True)
        for load, value in zip(loads, before, strict=True):
            load.copy_(value)

    def describe(self) -> str:
        """One line: parameters, data, tokens of a step."""
        num_parameters = sum(parameter.numel() for parameter in self.model.parameters())
        record = self.corpus.record
        return (
            f"{num_parameters / 1e6:.2f} M parameters · {record.source}, {record.num_tokens / 1e6:.2f} M "
            f"tokens, {record.digest[:15]}… · {self.tokens_per_step:,} tokens a step"
        )

    @property
    def tokens_per_step(self) -> int:
        """Tokens of one optimizer step."""
        return tokens_per_step(self.request.resolved)

    @property
    def next_step(self) -> int:
        """Number of the coming optimizer step, which is how many have been taken since step 0."""
        return self._loop.next_step

    @property
    def device_bytes(self) -> int | None:
        """Most memory this process has taken from its GPU for tensors, cached blocks included; None on a CPU."""
        if self._gpu is None:
            return None
        return torch.cuda.max_memory_reserved()

    def step(self) -> StepResult:
        """Take one optimizer step and record it."""
        start_ns = self._clock()
        result = self._loop.step()
        self._recorder.record(
            step=result.step,
            start_seconds=(start_ns - self._start_ns) / 1e9,
            duration_seconds=result.duration_seconds,
            data_wait_seconds=result.data_wait_seconds,
            loss=result.loss,
            grad_norm=math.nan if result.grad_norm is None else result.grad_norm,
            tags=result.tags,
            loss_parts=result.loss_parts,
        )
        if result.expert_loads is not None:
            self._expert_loads.append(result.expert_loads)
        for name, value in result.auxiliary_losses.items():
            self._auxiliary_losses.setdefault(name, []).append(value)
        return result

    def save_checkpoint(self) -> Path | None:
        """Write a checkpoint if the request names a directory; returns its folder."""
        if self.request.checkpoint_dir is None:
            return None
        with self.goodput.span("checkpoint_save"):
            path = checkpoint.save(
                Path(self.request.checkpoint_dir),
                model=self.model,
                optimizer=self._optimizer,
                progress=checkpoint.Progress(
                    next_step=self.next_step,
                    lane_digest=self.request.resolved.digest,
                    loader=self._loader.state(),
                    totals={"tokens": self.next_step * self.tokens_per_step},
                ),
                files=saved.files(self.request.resolved, self.corpus.tokenizer),
            )
        self._loop.tag_next_step("checkpoint")
        return path

    def _restore(self) -> None:
        directory = self.request.checkpoint_dir
        if directory is None:
            raise UsageError("resume needs a place to resume from; give --checkpoint-dir")
        found = checkpoint.newest(Path(directory))
        self.messages += found.messages
        if found.path is None:
            self.messages.append("no checkpoint to resume from; starting at step 0")
            return
        saved.check_switches(found.path, self.request.resolved)
        progress = checkpoint.load(
            found.path,
            model=self.model,
            optimizer=self._optimizer,
            lane_digest=self.request.resolved.digest,
        )
        self._loader.load_state(dict(progress.loader))
        self._loop.next_step = progress.next_step
        self.messages.append(f"resumed from {found.path.name}")

    def given_warmup(self, *, steps: int, steady: bool, reason: str) -> Warmup:
        """A warm-up decided outside, for both arms of a block."""
        return Warmup(
            rule=RULE, steps=min(steps, len(self._recorder)), steady=steady, reason=reason
        )

    def finish(self, *, warmup: Warmup | None = None, aborted: str | None = None) -> Finished:
        """Close the run and write its receipt; once.

        Args:
            warmup: steps to drop, decided by a campaign; None detects them here.
            aborted: why not all steps were taken, or None.
        """
        if self._finished:
            raise RuntimeError("finish was called twice; a run writes exactly one receipt")
        self._finished = True
        observations = dict(self.ops.observed())
        missing: dict[str, str] = {}
        memory = self._memory(missing, aborted)
        watched = self.lane.observability
        if not watched.measurements:
            reason = SWITCHED_OFF.format("measurements")
            missing["numerics.grad_norm_last"] = reason
            if "moe_experts" in self.ops.choices:
                missing |= dict.fromkeys(LOAD_FIELDS, reason)
        if not watched.goodput:
            missing["goodput"] = SWITCHED_OFF.format("goodput")
        resolved = self.request.resolved
        body = assemble(
            RunFacts(
                request=self.request,
                created_at=self._created_at,
                choices=self.ops.choices,
                observations=observations,
                recorder=self._recorder,
                expert_loads=self._expert_loads,
                auxiliary_losses=self._auxiliary_losses,
                warmup=warmup or self._detect_warmup(),
                goodput=self.goodput.summary(),
                compile=self._compile_record(),
                memory=memory,
                environment=collect_environment(
                    num_threads=self.request.num_threads, gpu=self._gpu
                ),
                machine=collect_machine(resolved.machine_class, gpu=self._gpu),
                data=self.corpus.record,
                missing=missing,
                initial_weights=None if self._origin is None else self._origin.model_dump(),
                host_allocator=self._host_allocator,
                routing_ids_digest=routing.ids_digest(self._replay, self._record),
                aborted=aborted,
            )
        )
        steps = self._recorder.series() if watched.temporal_perf else None
        receipt_id, location = Store(self.request.store_root).write_receipt(body, steps=steps)
        return Finished(receipt=RunReceipt(receipt_id=receipt_id, **body), location=location)

    def _detect_warmup(self) -> Warmup:
        return detect_warmup(
            self._recorder.durations_seconds,
            tagged=self._recorder.tagged("compile"),
            min_steady=MIN_STEADY_STEPS,
        )

    def _compile_record(self) -> CompileRecord:
        if not self.request.resolved.runtime_switches.get("regional_compile", False):
            return CompileRecord(
                enabled=False,
                cache_state="unused",
                compile_duration_seconds=0.0,
                graph_breaks=0,
                recompiles=0,
                graph_captures=0,
            )
        counts = compile_regions.compile_counts()
        return CompileRecord(
            enabled=True,
            cache_state=counts.cache_state,
            compile_duration_seconds=self._compile_seconds,
            graph_breaks=counts.graph_breaks,
            recompiles=counts.recompiles,
            graph_captures=0,
        )

    def _memory(self, missing: dict[str, str], aborted: str | None) -> Memory:
        if not self.lane.observability.measurements:
            missing["memory"] = SWITCHED_OFF.format("measurements")
            return Memory(
                method="none",
                peak_allocated_bytes=None,
                peak_reserved_bytes=None,
                peak_device_used_bytes=None,
                alloc_retries=None,
                ooms=None,
            )
        for counter in ("peak_reserved_bytes", "alloc_retries", "ooms"):
            missing[f"memory.{counter}"] = "the CPU allocator keeps no such counter"
        peak_rss = peak_rss_bytes()  # before the profiler, whose events take memory themselves
        peak_tensor_bytes: int | None = None
        if aborted is not None:
            missing["memory.peak_allocated_bytes"] = "the run was aborted before its profiled step"
        elif not self.request.measure_memory:
            missing["memory.peak_allocated_bytes"] = "no profiled step was asked for"
        else:
            with self.goodput.span("profiler"):
                live = live_tensors(self.model, [self._optimizer])
                peak_tensor_bytes = measure_cpu_step(self._loop.untimed_step, live).peak_bytes
        return Memory(
            method=CPU_METHOD,
            peak_allocated_bytes=peak_tensor_bytes,
            peak_reserved_bytes=None,
            peak_device_used_bytes=peak_rss,
            alloc_retries=None,
            ooms=None,
        )
