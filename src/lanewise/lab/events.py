"""What a campaign tells whoever watches it, in the order it happens. Blocks count from 1."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from lanewise.receipts.decision import CampaignRecord, Decision, Estimate, LookOutcome


@dataclass(frozen=True, kw_only=True, slots=True)
class PilotVisited:
    """One configuration was timed, or could not be; `name` is `base` or `feature=state`."""

    name: str
    step_seconds: float | None
    failure: str | None


@dataclass(frozen=True, kw_only=True, slots=True)
class PlanReady:
    """The plan, before anything is measured; `finished_blocks` is above 0 in a resumed campaign."""

    campaign: CampaignRecord
    finished_blocks: int


@dataclass(frozen=True, kw_only=True, slots=True)
class BlockStarted:
    """A block begins."""

    feature: str
    block: int
    num_blocks: int


@dataclass(frozen=True, kw_only=True, slots=True)
class BlockAdvanced:
    """Share of the running block that is done."""

    done_ratio: float


@dataclass(frozen=True, kw_only=True, slots=True)
class BlockFinished:
    """A block has its receipts; `estimate` is the live interval over this feature's blocks that count so far."""

    feature: str
    block: int
    num_blocks: int
    reasons: tuple[str, ...]
    estimate: Estimate | None


@dataclass(frozen=True, kw_only=True, slots=True)
class BlockDiscarded:
    """A block was thrown away because a process failed in it; it may be run again."""

    feature: str
    block: int
    num_blocks: int
    reason: str
    again: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class FeatureStopped:
    """A look ended a feature before its last planned block; a resumed campaign tells it again at its start."""

    feature: str
    blocks_run: int
    num_blocks: int
    outcome: LookOutcome


@dataclass(frozen=True, kw_only=True, slots=True)
class AttemptsUsedUp:
    """A resumed campaign finds blocks, `(feature, block)`, that failed as often as they may be tried; they are not run."""

    places: tuple[tuple[str, int], ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class OutOfBudget:
    """The budget ended before the plan did."""

    missing_blocks: int


Event = (
    PilotVisited
    | PlanReady
    | BlockStarted
    | BlockAdvanced
    | BlockFinished
    | BlockDiscarded
    | FeatureStopped
    | AttemptsUsedUp
    | OutOfBudget
)
Listener = Callable[[Event], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class CampaignResult:
    """How a campaign ended.

    Attributes:
        campaign: its document, as written to the store.
        decisions: one per feature, as written to the store.
        interrupted: whether the user stopped it; finished blocks are kept.
    """

    campaign: CampaignRecord
    decisions: tuple[Decision, ...]
    interrupted: bool
