"""Calibrations: what A/A blocks say about the noise of a lane on a machine, for how long, and under which conditions.

A calibration cites the blocks it was drawn from and can be recomputed from their receipts. It holds for one lane, one
machine class, one software environment and one measurement protocol, until `valid_until`.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from lanewise.receipts.decision import Margin
from lanewise.receipts.record import Digest, LogEffect, NonNegativeInt, Record
from lanewise.receipts.schema import Environment, LaneIdentity, Machine, Producer

CALIBRATION_SCHEMA_VERSION = "1.0.0"


class Interval(Record):
    """Two-sided 95 % interval."""

    low: float
    high: float


class CalibrationBlock(Record):
    """One A/A block that counts."""

    campaign_id: str
    block: int
    contrast_log: LogEffect
    num_quads: NonNegativeInt
    """Quads run, warm-up included, as a plan counts them."""
    wall_seconds: float
    receipts: dict[str, tuple[Digest, ...]]


class FalsePositives(Record):
    """How often pseudo-campaigns drawn from the A/A blocks call a difference; signs are random, so none is true."""

    looks: tuple[int, ...]
    """Blocks at each look; one entry is a plan without early looks."""
    margin_log: LogEffect
    """Smallest mean that got a verdict: 0 tests the statistics alone, δ is what a campaign does."""
    trials: int
    called: int
    rate: float
    interval: Interval
    """Of the trials (Wilson). How few blocks they are drawn from is not in it."""


class Detectable(Record):
    """Smallest effect that a plan of so many blocks, with its looks, calls a difference with 80 % power."""

    num_blocks: int
    effect_log: LogEffect


class ControlResult(Record):
    """A campaign with a delay of known size in arm B: the positive control."""

    campaign_id: str
    decision_id: str
    planted_log: LogEffect
    planned_blocks: int
    num_blocks: int
    verdict: str
    log_ratio: LogEffect | None
    interval_log: Interval | None
    found: bool
    """Called SLOWER."""
    covered: bool
    """The interval contains what was planted."""


class ObserverResult(Record):
    """What observation costs a step: accounted in the process, and as a campaign of a bare against an observed loop."""

    in_step_ratio: float
    """Median over runs of what the timed step contains, ÷ step time."""
    total_ratio: float
    """The same with what lies between steps, messages to the lab left out: no training run exchanges any."""
    campaign_id: str | None = None
    log_ratio: LogEffect | None = None
    interval_log: Interval | None = None
    contains_direct: bool | None = None
    """Whether the campaign's interval contains the cost accounted inside the timed step; null without a campaign."""
    strict_interval_log: Interval | None = None
    """The campaign's interval at 99.9 %, shared by its looks, by which it is a cross-check of the accounting."""
    contradicts_direct: bool | None = None
    """Whether the accounted cost lies outside of the strict interval; null without a campaign."""


class CalibrationRecord(Record):
    """Noise, bias and false-positive rate of a lane on a machine class, and the margin δ that follows."""

    schema_version: str = CALIBRATION_SCHEMA_VERSION
    calibration_id: str
    kind: Literal["noise_calibration"] = "noise_calibration"
    created_at: str
    valid_until: str
    producer: Producer
    lane: LaneIdentity
    machine: Machine
    environment: Environment
    environment_digest: Digest
    protocol: dict[str, str | int | float | bool]
    """Parameters behind `protocol_digest`."""
    protocol_digest: Digest
    data_digest: Digest
    design: Literal["leave-one-out", "add-one"]
    """Base of the comparison: both arms were the full stack, or the bare lane."""
    block_design: Literal["lockstep", "sequential"]
    num_threads: int
    campaigns: tuple[str, ...]
    """A/A campaigns pooled, oldest first."""
    blocks: tuple[CalibrationBlock, ...]
    num_blocks: int
    discarded_blocks: tuple[str, ...] = ()
    """Blocks that were run and do not count, with the reason."""
    quads_per_block: float
    """Median over blocks; a campaign of fewer quads is noisier than this calibration says."""
    seconds_per_block: float
    block_sd_log: LogEffect
    block_sd_interval: Interval
    bias_log: LogEffect
    """Mean contrast of arms that do not differ."""
    bias_interval: Interval
    bias_p: float
    biased: bool
    """The interval of the bias does not contain 0."""
    autocorrelation: float
    """Of consecutive blocks of a campaign: drift that outlasts a block."""
    autocorrelation_p: float
    drifting: bool
    false_positives: tuple[FalsePositives, ...]
    half_width_log: LogEffect
    margin: Margin
    detectable: tuple[Detectable, ...]
    control: ControlResult | None = None
    observer: ObserverResult | None = None
    notes: tuple[str, ...] = Field(default_factory=tuple)
