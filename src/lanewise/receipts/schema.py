"""Receipt schema 1.2: the immutable record of one run.

Units are in the names. A value that was not measured is null and `missing` holds the reason under its dotted path
(`memory.peak_reserved_bytes`). Validity (may this count as evidence) and merit (was it fast) are separate.
Hashing: RFC 8785 canonical JSON → sha256; `receipt_id` hashes the body without itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal

from pydantic import Field

from lanewise.receipts.failures import Failure, FailureFamily
from lanewise.receipts.flops import ComponentFlops as ComponentFlops
from lanewise.receipts.flops import Flops as Flops
from lanewise.receipts.goodput import BADPUT_CATEGORIES as BADPUT_CATEGORIES
from lanewise.receipts.goodput import Goodput as Goodput
from lanewise.receipts.goodput import GoodputByRank as GoodputByRank
from lanewise.receipts.goodput import RankRange as RankRange
from lanewise.receipts.profile import BackendVersions, LedgerMark, StepProfile
from lanewise.receipts.record import Digest as Digest
from lanewise.receipts.record import FiniteOrNull as FiniteOrNull
from lanewise.receipts.record import NonNegativeInt as NonNegativeInt
from lanewise.receipts.record import Record as Record
from lanewise.receipts.record import Seconds as Seconds
from lanewise.receipts.telemetry import HostWindow
from lanewise.receipts.telemetry import Telemetry as Telemetry
from lanewise.receipts.warmup_policy import WarmupPolicy

SCHEMA_VERSION = "1.2.0"
STEPS_SCHEMA_VERSION = "1.1.0"
"""1.1 brought `loss_parts`."""
FIELDS_SINCE: Mapping[str, str] = MappingProxyType(
    {
        "flops.hardware_flops_per_token": "1.1.0",
        "flops.six_n_active_flops_per_token": "1.1.0",
        "routing.expert_picks": "1.1.0",
        "routing.expert_picks_cv": "1.1.0",
        "routing.null_ratio": "1.1.0",
        "machine.instance_source": "1.2.0",
        "timing.between_steps_seconds": "1.2.0",
        "goodput_by_rank": "1.2.0",
        "profile": "1.2.0",
        "backend_versions": "1.2.0",
        "ledger": "1.2.0",
        "compile.cache_digest": "1.2.0",
        "host": "1.2.0",
        "compile.warmup_policy": "1.2.0",
        "flops.ceiling": "1.2.0",
        "flops.tensor_activity": "1.2.0",
        "flops.flags": "1.2.0",
        "outcome.failure_family": "1.2.0",
        "outcome.failure": "1.2.0",
        "routing.expert_ranks": "1.2.0",
        "routing.tokens_between_ranks": "1.2.0",
    }
)
"""Optional fields of a receipt → the version that brought them; older receipts lack them and need no reason for that."""


class Producer(Record):
    """The program that wrote the record."""

    name: str
    version: str


class LaneIdentity(Record):
    """Which lane, exactly."""

    name: str
    canonical_name: str
    digest: Digest
    layer_pattern: str
    num_layers: int
    spec: dict[str, Any]
    """The lane's tables as resolved: model, batch, data, optimizer, precision, topology, seed."""


class Machine(Record):
    """Which machine: the class is comparable, the instance is a salted hash."""

    class_name: str
    class_digest: Digest
    instance_digest: Digest
    instance_source: Literal["gpu_uuid", "installation", "boot"] | None = None
    """What the instance is told by: a card's UUID, the id of an operating system's installation, or, where a container has
    none, the id of the present boot, which the next boot replaces and which therefore never shows another machine."""


class FeatureRecord(Record):
    """One feature as asked for and as it took effect."""

    key: str
    role: str
    requested: str
    effective: str
    source: str


class BackendRecord(Record):
    """One op: asked for, observed, and the proof."""

    op: str
    requested: tuple[str, ...]
    """Backends asked for in order; empty is the op's own order."""
    chosen: str
    observed: tuple[str, ...]
    """Backends whose launch counter moved during the steps; empty when the op never ran."""
    launches: NonNegativeInt
    proof: Literal["counter", "trace", "kernel_name", "none"]
    rejected: dict[str, str] = Field(default_factory=dict)
    fallback_reason: str | None = None


class Experiment(Record):
    """Place of the run in a campaign."""

    campaign_id: str
    ablation_id: str
    """Feature under test, or `none` for an A/A."""
    arm: Literal["A", "B"]
    """A is the control."""
    block: NonNegativeInt
    position: NonNegativeInt
    """Position in the block: for lockstep 0 or 1 (who was started first), for ABBA 0–3."""
    design: Literal["lockstep", "sequential", "toggle"]
    order_seed: int


class StepSummary(Record):
    """Steady steps, in seconds."""

    count: NonNegativeInt
    median: Seconds
    mean: Seconds
    p10: Seconds
    p90: Seconds
    mad: Seconds


class Warmup(Record):
    """How warm-up was recognised."""

    rule: str
    steps: NonNegativeInt
    steady: bool
    reason: str
    """Why these steps, or why no steady state was found."""


class Timing(Record):
    """When steps happened and how long they took."""

    clock: str
    warmup: Warmup
    step_duration_seconds: StepSummary | None
    window_duration_seconds: Seconds | None
    event_wall_gap_ratio: float | None
    step_tags: dict[str, NonNegativeInt] = Field(default_factory=dict)
    """Tag → number of steps carrying it (`gc`, `checkpoint`, `eval`, `compile`)."""
    between_steps_seconds: Seconds | None = None
    """What the host does around the timed part of a steady step, mean: reading results out, writing them down, meters. No
    step's duration contains it, and device events around a step contain it in part."""


class Throughput(Record):
    """Tokens of the steady steps."""

    tokens_per_second: float | None
    tokens_per_second_per_device: float | None
    tokens_real: NonNegativeInt
    tokens_padded: NonNegativeInt


class CompileRecord(Record):
    """torch.compile, Triton and graph capture."""

    enabled: bool
    cache_state: Literal["cold", "warm", "mixed", "unused"]
    compile_duration_seconds: Seconds | None
    graph_breaks: NonNegativeInt | None
    recompiles: NonNegativeInt | None
    graph_captures: NonNegativeInt | None
    cache_digest: Digest | None = None
    """Names and sizes of all files in the run's private compile cache before it compiled; null without one."""
    warmup_policy: WarmupPolicy | None = None
    """Whether graphs were compiled before step 0, and why or why not."""


class Memory(Record):
    """Peaks. On a CPU `peak_allocated_bytes` counts tensor storage, `peak_device_used_bytes` is the process's peak RSS."""

    method: str
    peak_allocated_bytes: NonNegativeInt | None
    peak_reserved_bytes: NonNegativeInt | None
    peak_device_used_bytes: NonNegativeInt | None
    alloc_retries: NonNegativeInt | None
    ooms: NonNegativeInt | None


class Routing(Record):
    """How tokens were spread over experts."""

    mode: Literal["learned", "forced_balanced", "replayed"]
    top_k: NonNegativeInt
    expert_load_cv: float | None
    """Coefficient of variation of picks per expert in one step, mean over the steady steps and E layers."""
    dropped_ratio: float
    expert_picks: tuple[tuple[NonNegativeInt, ...], ...] | None = None
    """Picks of every expert over all steady steps, one list per E layer in order."""
    expert_picks_cv: tuple[float, ...] | None = None
    """Coefficient of variation of each of those lists."""
    null_ratio: float | None = None
    """Share of picks that fell on null slots and computed nothing; 0 in a lane without null slots."""
    expert_ranks: tuple[NonNegativeInt, ...] | None = None
    """Rank of the expert-parallel group that holds expert 0, 1, …; the same in every E layer."""
    tokens_between_ranks: tuple[tuple[NonNegativeInt, ...], ...] | None = None
    """Row: sending rank, column: receiving rank; token copies over all steady steps and E layers. What stays on its
    rank is not sent, so the diagonal is 0."""


class Numerics(Record):
    """Loss in nats per token."""

    loss_first: FiniteOrNull
    loss_last: FiniteOrNull
    losses_finite: bool
    grad_norm_last: FiniteOrNull
    grad_norm_finite: bool
    paired_loss_max_abs_diff: float | None = None
    """Null in a single run; decisions compare the arms."""


class Environment(Record):
    """Software and host, without names of people, hosts or paths."""

    host_arch: str
    host_cpu_model_name: str | None
    host_cpu_count: NonNegativeInt
    host_memory_bytes: NonNegativeInt | None
    os_description: str
    python_version: str
    vcs_revision: str | None
    vcs_dirty: bool | None
    device_model: str | None
    device_driver_version: str | None
    packages: dict[str, str]
    variables: dict[str, str]
    """Allow-listed environment variables."""
    num_threads: NonNegativeInt | None


class DataRecord(Record):
    """What was read."""

    source: str
    tokenizer: str
    num_documents: NonNegativeInt
    num_tokens: NonNegativeInt
    digest: Digest
    """Over the file list with sizes and content digests, the tokenizer and the packing rule."""
    unigram_entropy_nats: float | None = None


class Check(Record):
    """One structural check; never a performance threshold."""

    name: str
    ok: bool
    detail: str = ""


class Outcome(Record):
    """How it ended, and whether it may count."""

    status: Literal["success", "aborted"]
    validity: Literal["valid", "invalid"]
    checks: tuple[Check, ...]
    error: str | None = None
    failure_family: FailureFamily | None = None
    """Kind of what went wrong first; null in a run that counts, and in receipts before 1.2."""
    failure: Failure | None = None
    """The facts of that kind of failure."""


class Artifact(Record):
    """A file beside the receipt, by content."""

    kind: str
    uri: str
    """Relative to the receipt's folder."""
    sha256: Digest
    size_bytes: NonNegativeInt
    trigger: str = "always"


class RunReceipt(Record):
    """The record of one run."""

    schema_version: str = SCHEMA_VERSION
    receipt_id: Digest
    kind: Literal["run", "calibration"] = "run"
    created_at: str
    """RFC 3339, UTC."""
    producer: Producer
    supersedes: tuple[Digest, ...] = ()
    lane: LaneIdentity
    config_digest: Digest
    protocol_digest: Digest
    environment_digest: Digest
    data_digest: Digest
    machine: Machine
    features: tuple[FeatureRecord, ...]
    backends: tuple[BackendRecord, ...]
    experiment: Experiment | None
    timing: Timing
    throughput: Throughput
    goodput: Goodput | None
    goodput_by_rank: GoodputByRank | None = None
    """All ranks of a run of several processes, folded; null in a run of one."""
    compile: CompileRecord
    memory: Memory
    profile: StepProfile | None = None
    backend_versions: BackendVersions | None = None
    ledger: dict[str, LedgerMark] | None = None
    """Feature → what the ledger had to say about it; null where it had nothing to say about this lane."""
    flops: Flops
    routing: Routing | None
    telemetry: Telemetry
    host: HostWindow | None = None
    numerics: Numerics
    environment: Environment
    data: DataRecord
    outcome: Outcome
    artifacts: tuple[Artifact, ...] = ()
    missing: dict[str, str] = Field(default_factory=dict)
    """Dotted path of a null value → why it is null."""
    extensions: dict[str, Any] = Field(default_factory=dict)
    """Reverse-DNS keys."""


class StepSeries(Record):
    """Sidecar of a receipt: one entry per step, in order."""

    schema_version: str = STEPS_SCHEMA_VERSION
    step: tuple[int, ...]
    """Optimizer step, 0-based."""
    start_seconds: tuple[float, ...]
    """Since the run began."""
    duration_seconds: tuple[float, ...]
    data_wait_seconds: tuple[float, ...]
    loss: tuple[FiniteOrNull, ...]
    grad_norm: tuple[FiniteOrNull, ...]
    """Null where the value was not finite."""
    tags: dict[str, tuple[int, ...]] = Field(default_factory=dict)
    """Tag → indices into the lists above."""
    loss_parts: dict[str, tuple[FiniteOrNull, ...]] = Field(default_factory=dict)
    """Auxiliary loss by name → what it added to `loss` in every step, weighted; null where the step had none of it."""
