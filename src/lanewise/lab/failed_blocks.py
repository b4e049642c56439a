"""Blocks that failed in a certain way: thrown away, as journals tell, or refused by a gate, as decisions do.

Receipts tell of runs that lived to write one. A process that was killed or stayed silent left its failure in the journal of
its campaign, and memory pressure, slowed clocks and arms that may not meet are found by the gates.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from lanewise.errors import LanewiseError
from lanewise.lab.campaign import CampaignFolder, plans_and_damaged
from lanewise.lab.plan import CampaignPlan
from lanewise.lab.schedule import ArmName
from lanewise.lane.digest import lane_digest
from lanewise.receipts.decision import BlockRecord, Decision
from lanewise.receipts.failures import FailureFamily
from lanewise.receipts.store import Store

_ARM = re.compile(r"arm ([AB])\b")
"""How a reason begins that is about one arm: with the label of its process, or as a gate names it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FailedBlock:
    """One block that did not count.

    Attributes:
        campaign: campaign id.
        feature: the feature under test, with its base where the campaign has both.
        block: from 1.
        attempt: which try was thrown away; None for a block that a gate refused.
        arm: the arm that failed; None where it was not one alone.
        family: kind of failure.
        reason: what happened.
        found_in: `journal` for a block thrown away, `decision` for one that a gate refused.
        since: when the campaign was planned, RFC 3339.
    """

    campaign: str
    feature: str
    block: int
    attempt: int | None
    arm: ArmName | None
    family: FailureFamily
    reason: str
    found_in: Literal["journal", "decision"]
    since: str


def failed_blocks(
    store: Store,
    family: FailureFamily,
    *,
    lane: str | None = None,
    campaign: str | None = None,
    feature: str | None = None,
) -> tuple[tuple[FailedBlock, ...], tuple[str, ...]]:
    """Every block that failed in this way, of the newest campaign first, and what could not be read.

    Args:
        store: a folder; a remote store holds no campaigns that run.
        family: kind of failure.
        lane: lane name, or the beginning of its digest (`sha256:9c2f`).
        campaign: campaign id.
        feature: the feature under test, with its base where the campaign has both.
    """
    plans, damaged = plans_and_damaged(store.root)
    problems: list[LanewiseError] = list(damaged)
    found: list[FailedBlock] = []
    for plan in plans:
        if campaign in (None, plan.campaign_id) and _is_of(plan, lane):
            try:
                found += _lost(store, plan)
            except LanewiseError as error:
                problems.append(error)
    since = {plan.campaign_id: plan.created_at for plan in plans}
    for decision in store.iter_decisions(problems):
        if campaign in (None, decision.campaign_id) and _names(
            lane, decision.lane.name, decision.lane.digest
        ):
            found += _refused(decision, since.get(decision.campaign_id, decision.created_at))
    kept = [each for each in found if each.family is family and feature in (None, each.feature)]
    kept.sort(key=lambda each: each.since, reverse=True)
    return tuple(kept), tuple(str(problem) for problem in problems)


def _lost(store: Store, plan: CampaignPlan) -> Iterator[FailedBlock]:
    for entry in CampaignFolder.find(store.root, plan.campaign_id).lost():
        if entry.failure_family is not None:
            yield FailedBlock(
                campaign=plan.campaign_id,
                feature=entry.feature,
                block=entry.block,
                attempt=entry.attempt,
                arm=_arm(entry.reason),
                family=entry.failure_family,
                reason=entry.reason,
                found_in="journal",
                since=plan.created_at,
            )


def _refused(decision: Decision, since: str) -> Iterator[FailedBlock]:
    for block in decision.blocks:
        if block.failure_family is not None:
            yield FailedBlock(
                campaign=decision.campaign_id,
                feature=decision.decision_id.removeprefix(f"{decision.campaign_id}-"),
                block=block.block,
                attempt=None,
                arm=_arm(_first_reason(block)),
                family=block.failure_family,
                reason=_first_reason(block),
                found_in="decision",
                since=since,
            )


def _first_reason(block: BlockRecord) -> str:
    return block.reasons[0] if block.reasons else "no reason"


def _arm(reason: str) -> ArmName | None:
    found = _ARM.match(reason)
    if found is None:
        return None
    return "A" if found.group(1) == "A" else "B"


def _is_of(plan: CampaignPlan, lane: str | None) -> bool:
    return lane is None or _names(lane, plan.lane.name, lane_digest(plan.lane))


def _names(lane: str | None, name: str, digest: str) -> bool:
    """Whether a filter means a lane, by the rule of the index of receipts."""
    if lane is None:
        return True
    return digest.startswith(lane) if lane.startswith("sha256:") else name == lane
