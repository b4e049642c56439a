"""From journal and receipts to decisions. Nothing kept in memory is used, so a verdict can be drawn again later."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from lanewise.lab.arms import FULL_STACK, ArmBuilder, Arms
from lanewise.lab.campaign import CampaignFolder
from lanewise.lab.decide import PRODUCER, Context, decide
from lanewise.lab.evidence import BlockEvidence, read_blocks
from lanewise.lab.interactions import interaction_table
from lanewise.lab.journal import BlockLost
from lanewise.lab.judge import judge
from lanewise.lab.keys import split_key
from lanewise.lab.multiplicity import adjusted
from lanewise.lab.plan import CampaignPlan
from lanewise.lab.screen_decide import screen_decisions
from lanewise.lane.digest import lane_identity
from lanewise.receipts.decision import (
    CampaignRecord,
    Decision,
    PlannedFeature,
    Verdict,
)
from lanewise.receipts.interaction import InteractionTable
from lanewise.receipts.machine import collect_machine
from lanewise.receipts.schema import LaneIdentity, Machine
from lanewise.receipts.store import Store

VISITS_PER_BLOCK = {"lockstep": 2, "sequential": 4, "toggle": 1}

Status = Literal["PLANNED", "RUNNING", "COMPLETE", "INCOMPLETE"]

PROVEN = (Verdict.FASTER, Verdict.SLOWER, Verdict.EQUIVALENT)


def analyse_campaign(
    store: Store, campaign_id: str, *, now: str, locations: Mapping[str, str] | None = None
) -> tuple[CampaignRecord, tuple[Decision, ...]]:
    """Draw every decision of a campaign from what is in the store. Writes nothing.

    Args:
        store: holds the campaign's folder and its receipts.
        campaign_id: which campaign.
        now: RFC 3339 time stamped on the documents.
        locations: receipt id → path, where the caller has listed the store already.

    Raises:
        UsageError: there is no such campaign.
        CampaignError: its plan or journal is damaged.
    """
    folder = CampaignFolder.find(store.root, campaign_id)
    plan = folder.plan()
    finished = folder.finished()
    evidence = read_blocks(store, tuple(finished.values()), locations)
    lost = folder.lost()
    decisions = _with_cause(decide_all(plan, evidence, now=now), plan, lost)
    record = campaign_record(
        plan,
        status="INCOMPLETE" if any(d.status == "INCOMPLETE" for d in decisions) else "COMPLETE",
        finished_at=now,
        decisions=decisions,
        discarded=tuple(f"{e.feature} block {e.block}: {e.reason}" for e in lost),
        used_up=tuple(f"{feature} block {block}" for feature, block in folder.used_up()),
        evidence=evidence,
    )
    return record, decisions


def _with_cause(
    decisions: Sequence[Decision], plan: CampaignPlan, lost: Sequence[BlockLost]
) -> tuple[Decision, ...]:
    """Decisions of features that lack blocks, with the kind of failure that the last lost block was lost to."""
    causes = {f"{plan.campaign_id}-{entry.feature}": entry.failure_family for entry in lost}
    return tuple(
        decision.model_copy(update={"failure_family": causes[decision.decision_id]})
        if decision.status == "INCOMPLETE"
        and decision.failure_family is None
        and decision.decision_id in causes
        else decision
        for decision in decisions
    )


def decide_all(
    plan: CampaignPlan, evidence: Sequence[BlockEvidence], *, now: str
) -> tuple[Decision, ...]:
    """Decisions of all features of a plan, in its order.

    Args:
        plan: the plan.
        evidence: finished blocks in the order they were run, which is the order in which looks see them.
        now: RFC 3339 time stamped on the documents.
    """
    lane, machine = identity(plan, evidence)
    context = Context(plan=plan, lane=lane, machine=machine, created_at=now)
    if plan.screen_design is not None:
        return screen_decisions(context, arm_builder(plan), evidence)
    builder = arm_builder(plan)
    decisions = []
    for feature in plan.features:
        arms = arms_of(builder, plan, feature.feature)
        blocks = [block for block in evidence if block.entry.feature == feature.feature]
        decisions.append(decide(context, arms, judge(blocks, arms, cache=plan.cache)))
    return adjusted(decisions, plan.mode)


def arm_builder(plan: CampaignPlan) -> ArmBuilder:
    """The builder that made the plan's arms."""
    return ArmBuilder(
        lane=plan.lane,
        machine_class=plan.machine_class,
        device_type=plan.device_type,
        design=plan.design,
        factors=plan.factors,
        planted_ratio=plan.planted_ratio,
    )


def arms_of(builder: ArmBuilder, plan: CampaignPlan, feature: str) -> Arms:
    """Arms of a planned feature; a description only where the plan says that it cannot be run."""
    if plan.feature(feature).skipped_reason is not None and feature != FULL_STACK:
        return builder.placeholder(feature)
    return builder.build(feature)


def campaign_record(
    plan: CampaignPlan,
    *,
    status: Status,
    finished_at: str | None = None,
    decisions: Sequence[Decision] = (),
    discarded: tuple[str, ...] = (),
    used_up: tuple[str, ...] = (),
    evidence: Sequence[BlockEvidence] = (),
) -> CampaignRecord:
    """The campaign's document at some point of its life."""
    lane, machine = identity(plan, evidence)
    return CampaignRecord(
        campaign_id=plan.campaign_id,
        created_at=plan.created_at,
        finished_at=finished_at,
        producer=PRODUCER,
        status=status,
        lane=lane,
        machine=machine,
        design=plan.design,
        block_design=plan.block_design,
        budget_seconds=plan.budget_seconds,
        order_seed=plan.order_seed,
        planned_mde_log=plan.planned_mde_log,
        planned_noise_log=plan.noise_log,
        noise_source=plan.noise_source,
        features=planned_features(plan),
        decisions=tuple(decision.decision_id for decision in decisions),
        discarded_blocks=discarded,
        stack_ratio=_stack_ratio(decisions),
        notes=plan.notes,
        screen_design=plan.screen_design,
        started_by=plan.started_by,
        used_up_blocks=used_up,
        interactions=_interactions(plan, decisions),
        mode=plan.mode,
        planned_effect_log=plan.effect_log,
        planned_steps=plan.steps,
        planned_target_loss=plan.target_loss,
    )


def planned_features(plan: CampaignPlan) -> tuple[PlannedFeature, ...]:
    """The plan per feature, as the campaign's document tells it."""
    return tuple(
        PlannedFeature(
            feature=split_key(feature.feature)[0],
            design=split_key(feature.feature)[1],
            planned_blocks=feature.blocks,
            visits=feature.blocks * VISITS_PER_BLOCK[plan.block_design],
            estimated_seconds=feature.blocks * feature.block_seconds,
            skipped_reason=feature.skipped_reason,
            boundary=feature.boundary,
            detectable_log=feature.detectable_log,
        )
        for feature in plan.features
    )


def identity(plan: CampaignPlan, evidence: Sequence[BlockEvidence]) -> tuple[LaneIdentity, Machine]:
    """Lane and machine as a receipt states them; drawn from the plan while there is none.

    Blocks of a feature that changes the mathematics differ in seed, which the lane's digest covers: a lane is taken from a
    run that has the seed of the plan.
    """
    seen = [receipts[0] for block in evidence for receipts in block.receipts.values() if receipts]
    of_the_plan = next((r.lane for r in seen if r.lane.spec.get("seed") == plan.lane.seed), None)
    if of_the_plan is not None:
        return of_the_plan, seen[0].machine
    base = arm_builder(plan).base()
    lane = LaneIdentity(
        name=plan.lane.name,
        canonical_name=base.canonical_name,
        digest=base.digest,
        layer_pattern=plan.lane.model.pattern,
        num_layers=plan.lane.model.num_layers,
        spec=lane_identity(plan.lane),
    )
    return lane, seen[0].machine if seen else collect_machine(plan.machine_class)


def _interactions(plan: CampaignPlan, decisions: Sequence[Decision]) -> InteractionTable | None:
    if plan.design != "both" or not decisions:
        return None
    stack = arm_builder(plan).build(FULL_STACK)
    return interaction_table(decisions, stack_features=stack.declared)


def _stack_ratio(decisions: Sequence[Decision]) -> float | None:
    for decision in decisions:
        proven = decision.verdict in PROVEN and decision.status == "COMPLETE"
        if decision.feature == FULL_STACK and proven and decision.estimate is not None:
            return decision.estimate.ratio
    return None
