"""One run from request to receipt: data → ops → model → optimizer → steps → exactly one receipt."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime as dt
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from lanewise.errors import LanewiseError, RunFailed, UsageError
from lanewise.lane.built import require_built
from lanewise.lane.gpu import find_gpu
from lanewise.measure.goodput import GoodputClock
from lanewise.measure.host import Host, SystemHost
from lanewise.measure.memory import live_tensors, measure_cpu_step
from lanewise.measure.steady import detect_warmup
from lanewise.models.problems import lane_problems
from lanewise.ops.dispatch import capabilities
from lanewise.ops.opset import OpSet
from lanewise.parallel import compile_regions, recompute
from lanewise.receipts.document import short
from lanewise.receipts.environment import collect_environment
from lanewise.receipts.failures import Failure
from lanewise.receipts.machine import collect_machine
from lanewise.receipts.schema import CompileRecord, RunReceipt, Warmup
from lanewise.receipts.store import Store
from lanewise.train import checkpoint, routing, saved
from lanewise.train.build import build_model
from lanewise.train.compiling import compile_record, trigger_compilation
from lanewise.train.data.corpus import check_vocab, open_corpus
from lanewise.train.data.packing import Loader
from lanewise.train.failure import (
    circumstances,
    failure_of,
    in_words,
    is_compiler_error,
    is_out_of_memory,
)
from lanewise.train.finished import Finished
from lanewise.train.flops_receipt import stored_ceiling, tokens_per_step
from lanewise.train.loop import StepResult, TrainingLoop
from lanewise.train.memory_receipt import explain_switches, memory_record
from lanewise.train.meters import RESERVE_TAG
from lanewise.train.observer import observer_cost, with_observer
from lanewise.train.optim import parameter_groups
from lanewise.train.planted import planted_delay
from lanewise.train.profile import backend_versions, profile_run
from lanewise.train.readings import MachineWatch
from lanewise.train.receipt import RunFacts, assemble
from lanewise.train.request import RunRequest
from lanewise.train.step_log import StepLog

MIN_STEADY_STEPS = 8
"""Least steady steps of a run that detects its own warm-up."""


class Run:
    """A lane being trained.

    Building it opens the data, chooses backends, draws weights and, on request, restores a checkpoint and compiles;
    all of it is accounted to goodput spans.

    Args:
        request: what to run.
        clock: monotonic nanoseconds.
        today: wall-clock time in UTC, for the receipt.
        host_allocator: what `prepare_process` answered, for the receipt.
        cache_digest: of the run's private compile cache before it compiled; None without one.
        host: the machine, watched over the steps of a run that no campaign watches.

    Attributes:
        goodput: the run's clock.
        log: what was written down of every step.
        messages: what a person should know about the build, e.g. a half-written checkpoint that was ignored.
    """

    def __init__(
        self,
        request: RunRequest,
        *,
        clock: Callable[[], int] = time.perf_counter_ns,
        today: Callable[[], dt.datetime] = lambda: dt.datetime.now(dt.UTC),
        host_allocator: str = "the C library's default",
        cache_digest: str | None = None,
        host: Host | None = None,
    ) -> None:
        resolved = request.resolved
        require_built(resolved.lane)
        self.request = request
        self.lane = resolved.lane
        self._created_at = today().isoformat(timespec="seconds").replace("+00:00", "Z")
        self._clock = clock
        self._host_allocator = host_allocator
        self._cache_digest = cache_digest
        self._start_ns = clock()
        watched = self.lane.observability
        self.goodput = GoodputClock(clock, enabled=watched.goodput)
        self.messages: list[str] = []
        self.log = StepLog(clock)
        self._gpu = find_gpu() if resolved.device_type == "cuda" else None
        self._watch = MachineWatch(self._gpu, host or SystemHost(), request)
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
            delay=planted_delay(self.request, self._clock),
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
            try:
                with self.goodput.span("compile"):
                    trigger_compilation(
                        self.model, self._optimizer, lane, replay=self._replay, step=self.next_step
                    )
            except Exception as error:
                # Everything a receipt needs is built by now, and a compiler that gives up is evidence.
                self._compile_seconds = (self._clock() - start_ns) / 1e9
                raise self.give_up(error) from error
            self._compile_seconds = (self._clock() - start_ns) / 1e9
        self.ops.reset_counters()

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
        """Memory this process has taken from its GPU for tensors, cached blocks included; None on a CPU."""
        return self._watch.meters.reserved_bytes

    def step(self) -> StepResult:
        """Take one optimizer step and record it."""
        if not self._watch.is_started:
            with self.goodput.span("training_prep"):
                self._watch.start()
        asked_ns = self._clock()
        self._watch.before_step()
        start_ns = self._clock()
        result = self._loop.step()
        ended_ns = self._clock()
        more_tags = self._watch.after_step()
        if more_tags:
            result = dataclasses.replace(result, tags=(*result.tags, *more_tags))
        self.log.watching_ns += start_ns - asked_ns + self._clock() - ended_ns
        self.log.take(result, start_seconds=(start_ns - self._start_ns) / 1e9)
        around_seconds = (self._clock() - asked_ns) / 1e9
        self.log.between_seconds.append(around_seconds - result.duration_seconds)
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

    def give_up(self, error: Exception) -> Exception:
        """Write the receipt of a run that an error has ended; returns what to raise.

        That is the error itself, or, for one that only torch can read, a line a person can act on. Where no receipt can
        be written either, the error speaks alone.
        """
        failure = failure_of(
            error,
            circumstances(
                step=self.next_step if self.log.recorder else None,
                compiled=self._compile_record({}),
            ),
        )
        line = in_words(failure, error)
        kept = ""
        with contextlib.suppress(LanewiseError):
            finished = self.finish(aborted=line, failure=failure)
            kept = f"; receipt {short(finished.receipt.receipt_id)} has the facts"
        if is_compiler_error(error) or is_out_of_memory(error):
            return RunFailed(line + kept)
        return error

    def finish(
        self,
        *,
        warmup: Warmup | None = None,
        aborted: str | None = None,
        failure: Failure | None = None,
        host: Mapping[str, Any] | None = None,
    ) -> Finished:
        """Close the run and write its receipt; once.

        Args:
            warmup: steps to drop, decided by a campaign; None detects them here.
            aborted: why not all steps were taken, or None.
            failure: the facts of what stopped it, or None where nothing did or the checks of the receipt tell.
            host: what a campaign saw of the host over the steps (`train.request`); None reads it here.
        """
        if self._finished:
            raise RuntimeError("finish was called twice; a run writes exactly one receipt")
        self._finished = True
        readings = self._watch.close(host)  # before anything else makes the machine busy
        missing = dict(readings.missing)
        observations = dict(self.ops.observed())
        observer = observer_cost(self.log, self.goodput, self._loop, observations)
        watched = self.lane.observability
        memory = memory_record(
            missing,
            is_measured=watched.measurements,
            is_profiled=self.request.measure_memory,
            is_alone=self._watch.is_alone,
            aborted=aborted,
            meters=self._watch.meters,
            peak_tensor_bytes=self._peak_tensor_bytes,
        )
        profile = profile_run(
            self.request, self._loop, self.ops, self.goodput, aborted=aborted, missing=missing
        )
        explain_switches(watched, missing, has_experts="moe_experts" in self.ops.choices)
        machine = collect_machine(self.request.resolved.machine_class, gpu=self._gpu)
        body = assemble(
            RunFacts(
                request=self.request,
                created_at=self._created_at,
                choices=self.ops.choices,
                observations=observations,
                recorder=self.log.recorder,
                between_seconds=self.log.between_seconds,
                expert_loads=self.log.expert_loads,
                auxiliary_losses=self.log.auxiliary_losses,
                layer_losses=self.log.layer_losses,
                warmup=self._detect_warmup()
                if warmup is None
                else warmup.model_copy(update={"steps": min(warmup.steps, len(self.log.recorder))}),
                goodput=with_observer(self.goodput.summary(), observer),
                observer=observer,
                compile=self._compile_record(missing),
                memory=memory,
                profile=profile,
                backend_versions=backend_versions(self.request.resolved, self.ops),
                readings=readings,
                environment=collect_environment(
                    num_threads=self.request.num_threads, gpu=self._gpu
                ),
                machine=machine,
                data=self.corpus.record,
                missing=missing,
                initial_weights=None if self._origin is None else self._origin.model_dump(),
                host_allocator=self._host_allocator,
                routing_ids_digest=routing.ids_digest(self._replay, self._record),
                aborted=aborted,
                failure=failure,
                ceiling=stored_ceiling(self.request, machine, self._created_at),
            )
        )
        steps = self.log.recorder.series() if watched.temporal_perf else None
        receipt_id, location = Store(self.request.store_root).write_receipt(body, steps=steps)
        return Finished(receipt=RunReceipt(receipt_id=receipt_id, **body), location=location)

    def _detect_warmup(self) -> Warmup:
        return detect_warmup(
            self.log.recorder.durations_seconds,
            tagged=self.log.recorder.tagged("compile", RESERVE_TAG),
            min_steady=MIN_STEADY_STEPS,
        )

    def _compile_record(self, missing: dict[str, str]) -> CompileRecord:
        enabled = self.request.resolved.runtime_switches.get("regional_compile", False)
        return compile_record(
            enabled=enabled,
            seconds=self._compile_seconds,
            cache_digest=self._cache_digest,
            missing=missing,
        )

    def _peak_tensor_bytes(self) -> int:
        with self.goodput.span("profiler"):
            live = live_tensors(self.model, [self._optimizer])
            return measure_cpu_step(self._loop.untimed_step, live).peak_bytes
