"""One feature's blocks → its decision document."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from lanewise import __version__
from lanewise.lab import judge, protocol
from lanewise.lab.arms import NO_FEATURE, Arms
from lanewise.lab.break_even import break_evens
from lanewise.lab.gates.timing import host_bound
from lanewise.lab.judge import JudgedBlock
from lanewise.lab.plan import CampaignPlan, FeaturePlan
from lanewise.lab.stance import advice
from lanewise.lab.stopping import asked, confidence, contrasts, looks_at
from lanewise.measure.looks import Look
from lanewise.measure.quality import quality
from lanewise.measure.stats import estimate_from_contrasts
from lanewise.receipts.decision import ArmRecord, Decision, Estimate, LookRecord, Verdict
from lanewise.receipts.failures import FailureFamily
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
    failure_family: FailureFamily | None = None


def decide(context: Context, arms: Arms, blocks: Sequence[JudgedBlock]) -> Decision:
    """Draw the decision of one feature from its finished blocks, valid or not.

    Args:
        context: what all decisions share.
        arms: the feature.
        blocks: in the order they were run.
    """
    planned = context.plan.feature(arms.feature)
    counted = [block for block in blocks if block.valid]
    course = _course(context.plan, planned, arms, blocks)
    estimate, incomplete = course.estimate, course.incomplete
    finding = _finding(planned, arms, blocks, course)
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
        method_version=protocol.DECISION_VERSION,
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
        compile_runs=judge.compile_runs([block for block in blocks if block.comparable]),
        loss_max_abs_diff=judge.loss_difference(counted, arms.control.lane.precision.compute)
        if arms.equal_mathematics
        else None,
        loss_equal_steps=None
        if arms.equal_mathematics
        else judge.losses_at(counted, lambda found: found.equal_steps),
        loss_equal_time=None
        if arms.equal_mathematics
        else judge.losses_at(counted, lambda found: found.equal_time),
        observed=judge.observed(blocks, arms),
        backend_versions=judge.backend_versions(blocks, arms),
        host_bound=next((said for block in blocks if (said := host_bound(block.evidence))), None),
        observed_ok=not any(fault.about_backend for block in blocks for fault in block.faults),
        verdict=finding.verdict,
        reason=finding.reason,
        failure_family=finding.failure_family,
        stance=planned.skipped_reason
        or ("undecided until --resume" if incomplete else None)
        or advice(
            arms,
            finding.verdict,
            estimate=estimate,
            question=None if planned.skipped_reason else asked(context.plan, arms),
            compile_seconds=compile_delta,
            control_step_seconds=control_seconds,
            treated_step_seconds=treated_seconds,
            break_even=paid_back,
        ),
        margin=context.plan.margin,
        tax_budget_ratio=arms.tax_budget_ratio,
        blocks=tuple(block.record() for block in blocks),
        break_even=paid_back,
        mode=context.plan.mode,
        boundary=None if planned.skipped_reason else asked(context.plan, arms).boundary,
        looks=course.records,
        quality=None
        if arms.equal_mathematics
        else quality(judge.seed_runs(counted), target_loss=context.plan.target_loss),
    )


def tokens_per_step(plan: CampaignPlan) -> int:
    """Tokens of one optimizer step on one process."""
    batch = plan.lane.batch
    return batch.sequence_length * batch.micro_batch_size * batch.gradient_accumulation_steps


@dataclass(frozen=True, kw_only=True, slots=True)
class _Course:
    """How far a feature got.

    Attributes:
        estimate: of the last look, or of the blocks so far where none was reached; None without blocks that count.
        look: the look that ended the feature, as planned or early; None while blocks are missing or too few count.
        records: planned looks that were reached, and what was left over at the end.
        incomplete: which blocks are missing, None when none is.
    """

    estimate: Estimate | None
    look: Look | None
    records: tuple[LookRecord, ...]
    incomplete: str | None


def _course(
    plan: CampaignPlan, planned: FeaturePlan, arms: Arms, blocks: Sequence[JudgedBlock]
) -> _Course:
    known = contrasts(blocks)
    if planned.skipped_reason is not None:
        return _Course(estimate=None, look=None, records=(), incomplete=None)
    all_run = len(blocks) >= planned.blocks
    looks = looks_at(plan, arms, blocks, ended=all_run) if known else ()
    records = tuple(look.record for look in looks)
    if looks and looks[-1].stops:
        return _Course(
            estimate=looks[-1].estimate, look=looks[-1], records=records, incomplete=None
        )
    level = confidence(plan, arms)
    estimate = estimate_from_contrasts(known, confidence=level) if known else None
    return _Course(
        estimate=estimate,
        look=None,
        records=records,
        incomplete=None if all_run else f"{len(blocks)} of {planned.blocks} blocks were run",
    )


def _finding(
    planned: FeaturePlan, arms: Arms, blocks: Sequence[JudgedBlock], course: _Course
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
        return _Finding(
            verdict=Verdict.INVALID,
            reason="; ".join(structural),
            failure_family=judge.refused_family(blocks),
        )
    if course.incomplete is not None:
        return _Finding(verdict=Verdict.INCONCLUSIVE, reason=f"INCOMPLETE: {course.incomplete}")
    if course.look is None:
        noisy = [
            f"block {block.evidence.entry.block}: {fault.text}"
            for block in blocks
            for fault in block.faults
        ]
        return _Finding(
            verdict=Verdict.INVALID,
            reason=f"fewer than {protocol.MIN_BLOCKS} blocks count: {'; '.join(noisy)}",
            failure_family=judge.refused_family(blocks),
        )
    if (disagreement := judge.machines_disagree(blocks)) is not None:
        return _Finding(
            verdict=Verdict.INVALID,
            reason=disagreement,
            failure_family=FailureFamily.COMPARABILITY,
        )
    if arms.subject == NO_FEATURE:
        return _Finding(verdict=Verdict.NOISE, reason=_noise(course.look.estimate))
    early = len(blocks) < planned.blocks
    reason = course.look.reason
    if early:
        reason = f"{reason}; stopped at {len(blocks)} of {planned.blocks} blocks"
    return _Finding(verdict=course.look.verdict, reason=reason)


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
