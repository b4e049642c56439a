"""One feature's blocks → its decision document."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from lanewise import __version__
from lanewise.lab import judge, protocol
from lanewise.lab.arms import NO_FEATURE, Arms
from lanewise.lab.break_even import break_evens
from lanewise.lab.judge import JudgedBlock
from lanewise.lab.plan import CampaignPlan, FeaturePlan
from lanewise.lab.stance import advice
from lanewise.measure.stats import estimate_from_contrasts, verdict
from lanewise.receipts.decision import ArmRecord, Decision, Estimate, Verdict
from lanewise.receipts.schema import LaneIdentity, Machine, Producer

PRODUCER = Producer(name="lanewise", version=__version__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Context:
    """What all decisions of a campaign share."""

    plan: CampaignPlan
    lane: LaneIdentity
    machine: Machine
    created_at: str


@dataclass(frozen=True, kw_only=True, slots=True)
class _Finding:
    verdict: Verdict
    reason: str


def decide(context: Context, arms: Arms, blocks: Sequence[JudgedBlock]) -> Decision:
    """Draw the decision of one feature from its finished blocks, valid or not."""
    planned = context.plan.feature(arms.feature)
    counted = [block for block in blocks if block.valid]
    contrasts = [block.contrast_log for block in counted]
    known = [contrast for contrast in contrasts if contrast is not None]
    estimate = estimate_from_contrasts(known, confidence=protocol.CONFIDENCE) if known else None
    missing = planned.blocks - len(blocks)
    incomplete = None
    if planned.skipped_reason is None and missing > 0:
        incomplete = f"{len(blocks)} of {planned.blocks} blocks were run"
    finding = _finding(context.plan, arms, planned, blocks, estimate, incomplete)
    compile_delta = judge.metric(counted, judge.compile_seconds, reason="not measured")
    control_seconds, treated_seconds = (
        judge.step_seconds(counted, "A"),
        judge.step_seconds(counted, "B"),
    )
    paid_back = break_evens(counted, estimate, control_seconds)
    return Decision(
        decision_id=f"{context.plan.campaign_id}-{arms.feature}",
        created_at=context.created_at,
        producer=PRODUCER,
        method=protocol.METHOD,
        method_version=protocol.METHOD_VERSION,
        campaign_id=context.plan.campaign_id,
        status="INCOMPLETE" if incomplete else "COMPLETE",
        incomplete_reason=incomplete,
        lane=context.lane,
        machine=context.machine,
        feature=arms.subject,
        title=arms.title,
        role=arms.role,
        design=arms.design,
        versus=arms.versus,
        arms={name: arm_record(arms, name) for name in ("A", "B")},
        estimate=estimate,
        control_step_seconds=control_seconds,
        treated_step_seconds=treated_seconds,
        tokens_per_second=judge.tokens_delta(
            counted, tokens_per_step(context.plan), estimate.ratio if estimate else None
        ),
        peak_memory_bytes=judge.metric(
            # Tensors take the same room in a block whose step times never got steady.
            [block for block in blocks if block.comparable],
            judge.allocated_bytes,
            reason="profiled in block 1 only, which is missing or not comparable",
        ),
        goodput=judge.metric(counted, judge.goodput_ratio, reason="goodput is switched off"),
        compile_seconds=compile_delta,
        loss_max_abs_diff=judge.loss_difference(counted) if arms.equal_mathematics else None,
        loss_equal_steps=None
        if arms.equal_mathematics
        else judge.losses_at(counted, lambda found: found.equal_steps),
        loss_equal_time=None
        if arms.equal_mathematics
        else judge.losses_at(counted, lambda found: found.equal_time),
        observed=judge.observed(blocks, arms),
        observed_ok=not any(fault.about_backend for block in blocks for fault in block.faults),
        verdict=finding.verdict,
        reason=finding.reason,
        stance=planned.skipped_reason
        or ("undecided until --resume" if incomplete else None)
        or advice(
            arms,
            finding.verdict,
            estimate=estimate,
            margin=context.plan.margin,
            compile_seconds=compile_delta,
            control_step_seconds=control_seconds,
            treated_step_seconds=treated_seconds,
            break_even=paid_back,
        ),
        margin=context.plan.margin,
        tax_budget_ratio=arms.tax_budget_ratio,
        blocks=tuple(block.record() for block in blocks),
        break_even=paid_back,
    )


def tokens_per_step(plan: CampaignPlan) -> int:
    """Tokens of one optimizer step on one process."""
    batch = plan.lane.batch
    return batch.sequence_length * batch.micro_batch_size * batch.gradient_accumulation_steps


def _finding(
    plan: CampaignPlan,
    arms: Arms,
    planned: FeaturePlan,
    blocks: Sequence[JudgedBlock],
    estimate: Estimate | None,
    incomplete: str | None,
) -> _Finding:
    if planned.skipped_reason is not None:
        return _Finding(verdict=Verdict.NOT_MEASURED, reason=planned.skipped_reason)
    structural = [
        f"block {block.evidence.entry.block}: {fault.text}"
        for block in blocks
        for fault in block.faults
        if fault.structural
    ]
    if structural:
        return _Finding(verdict=Verdict.INVALID, reason="; ".join(structural))
    if incomplete is not None:
        return _Finding(verdict=Verdict.INCONCLUSIVE, reason=f"INCOMPLETE: {incomplete}")
    if estimate is None or estimate.num_blocks < protocol.MIN_BLOCKS:
        noisy = [
            f"block {block.evidence.entry.block}: {fault.text}"
            for block in blocks
            for fault in block.faults
        ]
        return _Finding(
            verdict=Verdict.INVALID,
            reason=f"fewer than {protocol.MIN_BLOCKS} blocks count: {'; '.join(noisy)}",
        )
    if arms.subject == NO_FEATURE:
        return _Finding(verdict=Verdict.NOISE, reason=_noise(estimate))
    found, reason = verdict(
        estimate, margin_log=plan.margin.log_value, tax_budget_ratio=arms.tax_budget_ratio
    )
    return _Finding(verdict=found, reason=reason)


def _noise(estimate: Estimate) -> str:
    sd, half = estimate.block_sd_log or 0.0, estimate.half_width_log or 0.0
    return (
        f"block SD {math.expm1(sd):.2%}, half width {math.expm1(half):.2%} over {estimate.num_blocks} blocks, "
        f"bias {math.expm1(estimate.log_ratio):+.2%}"
    )


def arm_record(arms: Arms, name: str) -> ArmRecord:
    """One arm as a decision states it."""
    resolved = arms.control if name == "A" else arms.treated
    return ArmRecord(
        state=arms.states[name],
        requested={
            op: resolved.op_preferences[op] for op in arms.ops if op in resolved.op_preferences
        },
    )
