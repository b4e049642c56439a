"""Decisions and campaigns: documents that cite receipts and can be recomputed from them.

Effects are stated as treated ÷ control (arm B ÷ arm A) on step time: a ratio of 0.69 is a step 31 % shorter.
"""

from __future__ import annotations

import enum
from itertools import pairwise
from typing import Annotated, Literal

from pydantic import Field, PositiveInt, field_validator

from lanewise.receipts.failures import Failure, FailureFamily
from lanewise.receipts.interaction import InteractionTable
from lanewise.receipts.profile import BackendVersions
from lanewise.receipts.record import LogEffect
from lanewise.receipts.schema import Check, Digest, LaneIdentity, Machine, Producer, Record

DECISION_SCHEMA_VERSION = "1.2.0"


class Verdict(enum.StrEnum):
    """What a decision says about step time."""

    FASTER = "FASTER"
    SLOWER = "SLOWER"
    EQUIVALENT = "EQUIVALENT"
    INCONCLUSIVE = "INCONCLUSIVE"
    INVALID = "INVALID"
    WITHIN_BUDGET = "WITHIN_BUDGET"
    OVER_BUDGET = "OVER_BUDGET"
    NOT_MEASURED = "NOT_MEASURED"
    """Nothing was measured; `reason` says why (no compiler, over budget, not applicable)."""
    NOISE = "NOISE"
    """An A/A campaign: both arms are the same, the estimate is noise."""
    LIKELY_FASTER = "LIKELY_FASTER"
    """Of a screen, as are the next two: worth a campaign. None of them proves anything."""
    LIKELY_SLOWER = "LIKELY_SLOWER"
    UNCLEAR = "UNCLEAR"


class Estimate(Record):
    """Effect on log step time over the valid blocks : the mean block contrast and its t-interval."""

    log_ratio: LogEffect
    ratio: float
    interval_low: float
    """Lower end of the two-sided interval of the ratio."""
    interval_high: float
    confidence: float
    num_blocks: int
    block_sd_log: LogEffect | None
    """SD of the block contrasts; null with one block."""
    half_width_log: LogEffect | None
    mde_log: LogEffect | None
    """Smallest effect this many blocks detect with 80 % power at this SD."""
    sign_flip_p: float | None
    median_unbiased_log: LogEffect | None = None
    """Effect of which the outcome is the median; differs from the mean where earlier looks could have stopped."""
    p_value: float | None = None
    """Two-sided, of no effect (of the budget for a tax), earlier looks accounted for."""
    unit: Literal["block", "quad", "row"] = "block"
    """What `num_blocks` counts: blocks; in a screen the quads of one process, or the runs of mirrored rows."""


class Boundary(Record):
    """A group-sequential test, written down before the first block (`measure.boundary`)."""

    looks: Annotated[tuple[PositiveInt, ...], Field(min_length=1)]
    """Blocks that count at each look, ascending; the last is the whole plan."""
    alpha: float
    """Two-sided chance of a false difference over all looks together."""
    nominal_alpha: float
    """Two-sided level of every single look."""

    @field_validator("looks")
    @classmethod
    def _ascends(cls, looks: tuple[int, ...]) -> tuple[int, ...]:
        if any(later <= earlier for earlier, later in pairwise(looks)):
            raise ValueError(f"looks after {list(looks)} blocks do not ascend")
        return looks


LookOutcome = Literal["go_on", "difference", "equivalent", "futile", "last"]


class LookRecord(Record):
    """One look at a feature's blocks, and why the campaign went on or stopped."""

    num_blocks: int
    """Blocks that count so far."""
    log_ratio: LogEffect
    nominal_p: float
    """Two-sided p of the plain t test at this look, compared with the boundary's level."""
    outcome: LookOutcome


class MetricDelta(Record):
    """A secondary metric in both arms; null with a reason when it was not measured."""

    control: float | None
    treated: float | None
    delta: float | None
    """treated − control; for `tokens_per_second` treated ÷ control − 1."""
    reason: str | None = None


class BreakEven(Record):
    """Steps after which saved step time has paid for extra compile time, from one state of the compile cache."""

    cache_state: Literal["cold", "warm", "mixed"]
    control_seconds: float | None
    """Compile time of the control, median over the blocks that count."""
    treated_seconds: float | None
    steps: int | None = None
    """0 where nothing extra is paid; null with a reason."""
    steps_low: int | None = None
    """At the end of the interval that favours the feature."""
    steps_high: int | None = None
    """At the other end; null where that never pays."""
    reason: str | None = None


class Margin(Record):
    """Practical margin δ on the log scale and where it comes from."""

    log_value: LogEffect
    source: str


class ArmRecord(Record):
    """One arm as it was asked to be."""

    state: str
    requested: dict[str, tuple[str, ...]]
    """Op → backends asked for, only ops this feature sets."""


class BlockRecord(Record):
    """One block: fresh processes of both arms, interleaved."""

    block: int
    design: Literal["lockstep", "sequential", "toggle"]
    valid: bool
    reasons: tuple[str, ...]
    contrast_log: LogEffect | None
    """Median over quads of mean log B − mean log A (lockstep), or B visits − A visits (sequential)."""
    num_quads: int
    warmup_steps: int
    """Steps dropped at the start of both arms."""
    control_seconds: float | None
    treated_seconds: float | None
    """Median steady step of each arm."""
    receipts: dict[str, tuple[Digest, ...]]
    """Arm → receipt ids."""
    gates: tuple[Check, ...] = ()
    """Every validity gate with what it received and its rule; empty in documents before 1.2."""
    failure_family: FailureFamily | None = None
    """Kind of the first reason; null in a block that counts, and in documents before 1.2."""
    failure: Failure | None = None
    """The facts of that kind, where the gate has them."""


class CompileRuns(Record):
    """How long the runs of one arm compiled, over the blocks whose arms are comparable."""

    arm: Literal["A", "B"]
    cache_state: Literal["cold", "warm", "mixed", "unused"]
    num_runs: int
    median_seconds: float
    low_seconds: float
    high_seconds: float


class SeedQuality(Record):
    """Losses of both arms of one matched seed, in nats per token, and the step time to a target."""

    block: int
    seed: int
    num_steps: int
    """Where the losses at equal steps were read."""
    control_equal_steps: float
    treated_equal_steps: float
    control_equal_time: float
    treated_equal_time: float
    target_loss: float
    control_seconds_to_target: float | None
    treated_seconds_to_target: float | None


class QualityDelta(Record):
    """Mean over seeds; the interval is of the mean difference, null with one seed."""

    control: float
    treated: float
    delta: float
    """treated − control: below zero the feature helps."""
    low: float | None
    high: float | None


class TimeToTarget(Record):
    """Cumulated step time to a target loss, treated ÷ control, geometric mean over seeds."""

    target_loss: float | None
    """Null: for each seed the larger of the two last losses."""
    control_reached: int
    treated_reached: int
    ratio: float | None = None
    low: float | None = None
    high: float | None = None
    reason: str | None = None
    """Why there is no ratio."""


class QualityRecord(Record):
    """What a feature that changes the mathematics does to the loss, over matched seeds (`measure.quality`)."""

    seeds: tuple[SeedQuality, ...]
    equal_steps: QualityDelta
    equal_time: QualityDelta
    time_to_target: TimeToTarget


class Decision(Record):
    """Estimate, interval, verdict and stance of one feature on one lane."""

    schema_version: str = DECISION_SCHEMA_VERSION
    decision_id: str
    kind: Literal["decision"] = "decision"
    created_at: str
    producer: Producer
    method: str
    method_version: str
    campaign_id: str
    status: Literal["COMPLETE", "INCOMPLETE"]
    incomplete_reason: str | None = None
    lane: LaneIdentity
    machine: Machine
    feature: str
    title: str
    role: str
    design: Literal["leave-one-out", "add-one"]
    versus: str
    """Name of the control, e.g. `recurrence.torch`."""
    arms: dict[str, ArmRecord]
    """`A` control, `B` treated."""
    estimate: Estimate | None
    control_step_seconds: float | None
    treated_step_seconds: float | None
    tokens_per_second: MetricDelta
    peak_memory_bytes: MetricDelta
    goodput: MetricDelta
    compile_seconds: MetricDelta
    compile_runs: tuple[CompileRuns, ...] = ()
    """Spread of compile time per arm that compiled; with `ablate --cache cold` of compilations from nothing."""
    loss_max_abs_diff: float | None
    """Largest difference of the arms' losses over paired steps; null if the feature changes the mathematics."""
    loss_equal_steps: MetricDelta | None = None
    """Loss in nats per token after equally many steps, in the block of the median delta; null if the mathematics are the same."""
    loss_equal_time: MetricDelta | None = None
    """The same after equal cumulated step time, where the slower arm has taken fewer steps."""
    observed: tuple[str, ...]
    """Backends observed in arm B for the ops this feature sets, or the state for other features."""
    observed_ok: bool
    verdict: Verdict
    reason: str
    failure_family: FailureFamily | None = None
    """Kind of the first reason of INVALID, or of what the last lost block of an INCOMPLETE feature was lost to; else null."""
    stance: str
    """Advice in words, e.g. `default on`, `9 more blocks would tell`, `stays opt-in (budget 1 %)`."""
    margin: Margin
    tax_budget_ratio: float | None
    blocks: tuple[BlockRecord, ...]
    mode: Literal["confirm", "screen"] = "confirm"
    """A screen ranks candidates and can never graduate anything."""
    boundary: Boundary | None = None
    """The test as planned; null in documents before 1.2, which knew one look at 5 %."""
    looks: tuple[LookRecord, ...] = ()
    adjusted_p: float | None = None
    """`estimate.p_value` corrected for the other features of the campaign."""
    adjustment: Literal["holm", "benjamini_hochberg"] | None = None
    break_even: tuple[BreakEven, ...] = ()
    """For a cold and for a warm compile cache; empty where neither arm compiles, and in documents before 1.2."""
    quality: QualityRecord | None = None
    """Loss over matched seeds; null if the mathematics are the same."""
    backend_versions: BackendVersions = Field(default_factory=dict)
    """Of both arms, for the ops this feature sets; the evidence expires when one of them changes."""
    host_bound: str | None = None
    """Which arms leave their device idle for much of a step, in words: such a ratio is one of the host's time. Null where the
    device works, and where nothing is known about it, as on a CPU."""


class PlannedFeature(Record):
    """What a campaign means to do for one feature."""

    feature: str
    planned_blocks: int
    visits: int
    """Processes started."""
    estimated_seconds: float
    """Of all its blocks."""
    skipped_reason: str | None = None
    boundary: Boundary | None = None
    detectable_log: LogEffect | None = None
    """Smallest effect that these looks call a difference with 80 % power at the planned noise and margin."""
    design: Literal["leave-one-out", "add-one"] | None = None
    """Base of this feature in a campaign that measures from both; null where the campaign has one design."""


class CampaignRecord(Record):
    """A campaign: the plan made before anything ran, and what became of it."""

    schema_version: str = DECISION_SCHEMA_VERSION
    campaign_id: str
    kind: Literal["campaign"] = "campaign"
    created_at: str
    finished_at: str | None
    producer: Producer
    status: Literal["PLANNED", "RUNNING", "COMPLETE", "INCOMPLETE"]
    lane: LaneIdentity
    machine: Machine
    design: Literal["leave-one-out", "add-one", "both"]
    block_design: Literal["lockstep", "sequential", "toggle"]
    budget_seconds: float
    order_seed: int
    planned_mde_log: LogEffect
    planned_noise_log: LogEffect
    noise_source: str
    """`assumed` or the id of a calibration."""
    features: tuple[PlannedFeature, ...]
    decisions: tuple[str, ...] = ()
    discarded_blocks: tuple[str, ...] = ()
    """`feature block: reason` of every block thrown away."""
    stack_ratio: float | None = None
    """Step time of the full stack ÷ bare lane, from its own blocks; null when not measured."""
    notes: tuple[str, ...] = Field(default_factory=tuple)
    mode: Literal["confirm", "screen"] = "confirm"
    planned_effect_log: LogEffect | None = None
    """Effect that the blocks were chosen to find (`--effect`); null where the budget or a number of blocks decided."""
    planned_steps: int | None = None
    """Optimizer steps of each arm in a block (`--steps`); null where the clock decided."""
    planned_target_loss: float | None = None
    """Loss in nats per token to reach (`--target-loss`); null where none was named."""
    screen_design: Literal["toggle", "plackett-burman"] | None = None
    """How a screen varied the features; null in a campaign that is none."""
    started_by: Literal["ablate", "calibrate", "screen"] | None = None
    """The command that started it, which alone resumes it; null in campaigns that did not say."""
    used_up_blocks: tuple[str, ...] = ()
    """`feature block` of every missing block whose attempts have failed; `--resume --retry-crashed` gives it new ones."""
    interactions: InteractionTable | None = None
    """Of a campaign that measured features from both bases; recomputed from its decisions."""
