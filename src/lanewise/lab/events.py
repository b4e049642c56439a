"""What a campaign tells whoever watches it, in the order it happens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from lanewise.lab.plan import CampaignPlan
from lanewise.receipts.decision import Decision, Estimate


@dataclass(frozen=True, kw_only=True, slots=True)
class PilotVisited:
    """One configuration was timed, or could not be."""

    description: str
    step_seconds: float | None
    failure: str | None


@dataclass(frozen=True, kw_only=True, slots=True)
class PlanReady:
    """The plan, before anything is measured; `finished_blocks` is above 0 in a resumed campaign."""

    plan: CampaignPlan
    finished_blocks: int


@dataclass(frozen=True, kw_only=True, slots=True)
class BlockStarted:
    """A block begins. Blocks are counted from 1 here."""

    feature: str
    block: int
    num_blocks: int
    eta_seconds: float


@dataclass(frozen=True, kw_only=True, slots=True)
class BlockFinished:
    """A block has its receipts; `estimate` is the live interval over this feature's valid blocks so far."""

    feature: str
    block: int
    num_blocks: int
    valid: bool
    reasons: tuple[str, ...]
    estimate: Estimate | None
    eta_seconds: float
    done_ratio: float


@dataclass(frozen=True, kw_only=True, slots=True)
class BlockDiscarded:
    """A block was thrown away because a process failed in it."""

    feature: str
    block: int
    reason: str
    retried: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Decided:
    """A decision was written."""

    decision: Decision


Event = PilotVisited | PlanReady | BlockStarted | BlockFinished | BlockDiscarded | Decided
Listener = Callable[[Event], None]
