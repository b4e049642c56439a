"""From what a run knows to its receipt: every null has a reason, every check says what it saw.

A check is about whether the run may count as evidence, never about whether it was fast.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lanewise import __version__
from lanewise.lane.digest import digest, lane_identity
from lanewise.lane.features import BY_KEY
from lanewise.lane.resolved import FeatureDecision, ResolvedLane
from lanewise.measure.device_events import event_wall_gap_ratio
from lanewise.measure.steps import StepRecorder, summarise
from lanewise.ops.observe import Observation
from lanewise.ops.spec import Choice
from lanewise.receipts.environment import environment_digest
from lanewise.receipts.failures import Failure
from lanewise.receipts.instruments import ObserverCost
from lanewise.receipts.profile import BackendVersions, StepProfile
from lanewise.receipts.schema import (
    BackendRecord,
    CompileRecord,
    DataRecord,
    Environment,
    FeatureRecord,
    Goodput,
    GoodputByRank,
    LaneIdentity,
    Machine,
    Memory,
    Numerics,
    Outcome,
    Producer,
    StepSeries,
    Throughput,
    Timing,
    Warmup,
)
from lanewise.receipts.utilization import CitedCeiling
from lanewise.train.checks import run_checks
from lanewise.train.extensions import extensions
from lanewise.train.failure import Measured, failure_of_checks
from lanewise.train.flops_receipt import flops_record, tokens_per_step
from lanewise.train.loss_record import loss_extensions
from lanewise.train.planted import planted_record
from lanewise.train.profile import ledger_marks
from lanewise.train.readings import Readings
from lanewise.train.request import RunRequest
from lanewise.train.routing_receipt import routing_record

CLOCK = "perf_counter_ns"


@dataclass(frozen=True, kw_only=True, slots=True)
class RunFacts:
    """Everything measured in a run that its receipt is made of.

    Attributes:
        request: what was asked for.
        created_at: RFC 3339, UTC.
        choices: op → how its backend was chosen.
        observations: op → what ran during the steps.
        recorder: per-step series.
        between_seconds: per step, what the host did around its timed part.
        expert_loads: per step int64 [E layers, E + 1], picks per expert and of null slots; empty where not measured or
            without E layers.
        auxiliary_losses: name → unweighted value of every step that had it.
        layer_losses: (layer, auxiliary loss) → what that layer added in every step that had it.
        warmup: steps to drop.
        goodput: partition of wall time, None when switched off.
        compile: compile counts.
        memory: peaks.
        profile: shares of one step, None with a reason in `missing`.
        backend_versions: what the backends are built of.
        readings: the machine over the steps.
        environment: software and host.
        machine: class and instance.
        data: what was read.
        missing: reasons known to the run, by dotted path.
        initial_weights: lane digest and step of the checkpoint that step 0 started with; None when they were drawn.
        host_allocator: what malloc was told about freed memory.
        routing_ids_digest: digest of the routing recorded or followed; None without either.
        aborted: None when all steps were taken, else why not.
        failure: what stopped it, if the run knows; failed checks name their own.
        ceiling: measured matmul ceiling of this machine, or why there is none.
        observer: what observing cost; None where it is not accounted.
        goodput_by_rank: all ranks' goodput, folded by `measure.ranks.fold_ranks`; None in a run of one process.
    """

    request: RunRequest
    created_at: str
    choices: Mapping[str, Choice]
    observations: Mapping[str, Observation]
    recorder: StepRecorder
    between_seconds: Sequence[float]
    expert_loads: Sequence[np.ndarray]
    auxiliary_losses: Mapping[str, Sequence[float]]
    layer_losses: Mapping[tuple[int, str], Sequence[float]]
    warmup: Warmup
    goodput: Goodput | None
    compile: CompileRecord
    memory: Memory
    profile: StepProfile | None
    backend_versions: BackendVersions
    readings: Readings
    environment: Environment
    machine: Machine
    data: DataRecord
    missing: Mapping[str, str]
    initial_weights: Mapping[str, str | int] | None
    host_allocator: str
    routing_ids_digest: str | None
    aborted: str | None
    failure: Failure | None = None
    ceiling: CitedCeiling | str = "nobody looked for a ceiling; `lanewise doctor` measures it"
    goodput_by_rank: GoodputByRank | None = None
    observer: ObserverCost | None = None


def assemble(facts: RunFacts) -> dict[str, Any]:
    """The body of a run's receipt: the fields of `RunReceipt` but its id and artifacts, which the store adds."""
    resolved = facts.request.resolved
    series = facts.recorder.series()
    missing = dict(facts.missing)
    timing = _timing(facts, series, missing)
    checks = run_checks(
        series,
        warmup=facts.warmup,
        goodput=facts.goodput,
        choices=facts.choices,
        observations=facts.observations,
        in_campaign=facts.request.experiment is not None,
    )
    backends = tuple(
        _backend(choice, facts.observations[op]) for op, choice in facts.choices.items()
    )
    failed = [check.name for check in checks if not check.ok]
    failure = facts.failure or failure_of_checks(
        failed,
        Measured(
            series=series,
            warmup=facts.warmup,
            goodput=facts.goodput,
            memory=facts.memory,
            telemetry=facts.readings.telemetry,
            backends=backends,
        ),
    )
    return {
        "created_at": facts.created_at,
        "producer": Producer(name="lanewise", version=__version__),
        "lane": lane_identity_record(resolved),
        "config_digest": resolved.config_digest,
        "protocol_digest": digest(facts.request.protocol),
        "environment_digest": environment_digest(facts.environment),
        "data_digest": facts.data.digest,
        "machine": facts.machine,
        "features": tuple(_feature(decision, facts) for decision in resolved.features),
        "backends": backends,
        "experiment": facts.request.experiment,
        "timing": timing,
        "throughput": _throughput(facts, timing, missing),
        "goodput": facts.goodput,
        "goodput_by_rank": facts.goodput_by_rank,
        "compile": facts.compile,
        "memory": facts.memory,
        "profile": facts.profile,
        "backend_versions": facts.backend_versions,
        "ledger": ledger_marks(resolved),
        "flops": flops_record(
            resolved,
            timing.step_duration_seconds,
            missing,
            ceiling=facts.ceiling,
            activity=facts.readings.tensor_activity,
        ),
        "routing": routing_record(resolved.lane, facts.expert_loads[facts.warmup.steps :], missing),
        "telemetry": facts.readings.telemetry,
        "host": facts.readings.host,
        "numerics": _numerics(series, missing),
        "environment": facts.environment,
        "data": facts.data,
        "outcome": Outcome(
            status="success" if facts.aborted is None else "aborted",
            validity="invalid" if failed else "valid",
            checks=checks,
            error=facts.aborted,
            failure_family=None if failure is None else failure.family,
            failure=failure,
        ),
        "missing": _without_present(missing, facts),
        "extensions": extensions(
            resolved.lane.model,
            host_allocator=facts.host_allocator,
            protocol=facts.request.protocol,
            losses=loss_extensions(
                facts.auxiliary_losses, facts.recorder.loss_parts(), facts.layer_losses
            ),
            routing_ids_digest=facts.routing_ids_digest,
            initial_weights=facts.initial_weights,
            observer=facts.observer,
            planted=planted_record(facts.request),
        ),
    }


def lane_identity_record(resolved: ResolvedLane) -> LaneIdentity:
    """Which lane, exactly: names, digest and the tables that decide what is computed."""
    lane = resolved.lane
    return LaneIdentity(
        name=lane.name,
        canonical_name=resolved.canonical_name,
        digest=resolved.digest,
        layer_pattern=lane.model.pattern,
        num_layers=lane.model.num_layers,
        spec=lane_identity(lane),
    )


def _feature(decision: FeatureDecision, facts: RunFacts) -> FeatureRecord:
    return FeatureRecord(
        key=decision.key,
        role=decision.role,
        requested=decision.state,
        effective=_effective_state(decision, facts),
        source=decision.source,
    )


def _effective_state(decision: FeatureDecision, facts: RunFacts) -> str:
    """The state whose backends were chosen for the ops this lane runs.

    `other` when a pin or a fallback chose none of them, or when the lane runs no op that the state sets.
    """
    device = facts.request.resolved.device_type
    settings = BY_KEY[decision.key].settings
    for state in (decision.state, *settings):
        asked = {op: by_device.get(device, ()) for op, by_device in settings[state].ops.items()}
        run = asked.keys() & facts.choices.keys()
        if bool(run) == bool(asked) and all(_matches(facts.choices[op], asked[op]) for op in run):
            return state
    return "other"


def _matches(choice: Choice, names: tuple[str, ...]) -> bool:
    return choice.chosen == names[0] if names else not choice.requested


def _backend(choice: Choice, observation: Observation) -> BackendRecord:
    rejected = {rejection.backend: rejection.reason for rejection in choice.rejected}
    return BackendRecord(
        op=choice.op,
        requested=choice.requested,
        chosen=choice.chosen,
        observed=observation.backends,
        launches=observation.launches,
        proof=observation.proof,
        rejected=rejected,
        fallback_reason="; ".join(f"{name}: {why}" for name, why in rejected.items())
        if choice.fallback
        else None,
    )


def _timing(facts: RunFacts, series: StepSeries, missing: dict[str, str]) -> Timing:
    steady = series.duration_seconds[facts.warmup.steps :]
    window = None
    if not steady:
        missing["timing.step_duration_seconds"] = "no steady steps"
        missing["timing.window_duration_seconds"] = "no steady steps"
    elif facts.request.steps is None:
        missing["timing.window_duration_seconds"] = "steps of the two arms alternate"
    else:
        first = facts.warmup.steps
        window = (
            series.start_seconds[-1] + series.duration_seconds[-1] - series.start_seconds[first]
        )
    between = None
    if steady:
        between = math.fsum(facts.between_seconds[facts.warmup.steps :]) / len(steady)
    else:
        missing["timing.between_steps_seconds"] = "no steady steps"
    gap = None
    if isinstance(facts.readings.device_step_seconds, str):
        missing["timing.event_wall_gap_ratio"] = facts.readings.device_step_seconds
    else:
        gap = event_wall_gap_ratio(facts.readings.device_step_seconds[facts.warmup.steps :], steady)
        if gap is None:
            missing["timing.event_wall_gap_ratio"] = "no steady steps"
    return Timing(
        clock=CLOCK,
        warmup=facts.warmup,
        step_duration_seconds=summarise(steady) if steady else None,
        window_duration_seconds=window,
        event_wall_gap_ratio=gap,
        step_tags=facts.recorder.tag_counts(),
        between_steps_seconds=between,
    )


def _throughput(facts: RunFacts, timing: Timing, missing: dict[str, str]) -> Throughput:
    per_step = tokens_per_step(facts.request.resolved)
    summary = timing.step_duration_seconds
    rate = None if summary is None else per_step / summary.mean
    if rate is None:
        missing["throughput"] = "no steady steps"
    return Throughput(
        tokens_per_second=rate,
        tokens_per_second_per_device=rate,
        tokens_real=per_step * len(facts.recorder),
        tokens_padded=0,
    )


def _numerics(series: StepSeries, missing: dict[str, str]) -> Numerics:
    missing["numerics.paired_loss_max_abs_diff"] = "a single run; decisions compare the arms"
    if not series.step:
        missing["numerics.loss_first"] = missing["numerics.loss_last"] = "no steps"
        missing.setdefault("numerics.grad_norm_last", "no steps")
    else:
        for key, value in (("loss_first", series.loss[0]), ("loss_last", series.loss[-1])):
            if value is None:
                missing[f"numerics.{key}"] = "not finite"
    grad_norm_unmeasured = "numerics.grad_norm_last" in missing
    if not grad_norm_unmeasured and series.grad_norm[-1] is None:
        missing["numerics.grad_norm_last"] = "not finite"
    return Numerics(
        loss_first=series.loss[0] if series.step else None,
        loss_last=series.loss[-1] if series.step else None,
        losses_finite=None not in series.loss,
        grad_norm_last=series.grad_norm[-1] if series.step else None,
        grad_norm_finite=grad_norm_unmeasured or None not in series.grad_norm,
    )


def _without_present(missing: Mapping[str, str], facts: RunFacts) -> dict[str, str]:
    always: dict[str, Any] = {}
    if facts.goodput is not None:
        always["goodput.overlapped_seconds"] = "host time of one thread: spans never overlap"
        if facts.observer is None:
            always["goodput.observer_seconds"] = "no step was taken"
    if facts.environment.device_model is None:
        always["environment.device_model"] = "no GPU"
        always["environment.device_driver_version"] = "no GPU"
    for key in ("vcs_revision", "vcs_dirty"):
        if getattr(facts.environment, key) is None:
            always[f"environment.{key}"] = "lanewise runs from an installed package, not a checkout"
    if facts.request.experiment is None:
        always["experiment"] = "not part of a campaign"
    return dict(sorted({**missing, **always}.items()))
