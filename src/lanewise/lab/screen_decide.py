"""Decisions of a screen: effects with intervals and false discovery rate, in words that can never graduate anything."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from lanewise.lab import judge, protocol
from lanewise.lab.arms import NO_FEATURE, PSEUDO, ArmBuilder, Arms
from lanewise.lab.decide import PRODUCER, Context, arm_record, tokens_per_step
from lanewise.lab.evidence import BlockEvidence
from lanewise.lab.judge import JudgedBlock
from lanewise.lab.keys import row_index
from lanewise.measure.factorial import (
    FALSE_DISCOVERY_RATE,
    MainEffect,
    mirrored_main_effects,
    plackett_burman,
)
from lanewise.measure.stats import (
    benjamini_hochberg,
    estimate_from_contrasts,
    paired_t_p,
)
from lanewise.receipts.decision import Decision, Estimate, MetricDelta, Verdict
from lanewise.receipts.failures import FailureFamily

METHODS: Final = {"toggle": "toggle-quads-t", "plackett-burman": "plackett-burman-mirrored-rows"}
METHOD_VERSION: Final = "1"

MIN_QUADS: Final = 3
"""Fewer quads have a spread that says nothing."""

MANY_AT_ONCE: Final = "every run switched all features, so this number belongs to none"


@dataclass(frozen=True, kw_only=True, slots=True)
class _Outcome:
    """What a screen found out about one feature."""

    estimate: Estimate | None
    failure: str | None
    verdict: Verdict
    """Of the failure; replaced where there is an estimate."""
    incomplete: str | None = None
    family: FailureFamily | None = None
    """Kind of the failure, where it is not that of a block's fault."""


def screen_decisions(
    context: Context, builder: ArmBuilder, evidence: Sequence[BlockEvidence]
) -> tuple[Decision, ...]:
    """Decisions of a screen, in the order of its plan, then the features that its design does without.

    Args:
        context: what all decisions share.
        builder: made the arms.
        evidence: finished blocks.
    """
    plan = context.plan
    blocks: dict[str, tuple[JudgedBlock, ...]] = {}
    for planned in plan.planned:
        own = [block for block in evidence if block.entry.feature == planned.feature]
        blocks[planned.feature] = judge.judge(own, builder.build(planned.feature), cache=plan.cache)
    if plan.screen_design == "toggle":
        judged = [
            (
                _arms(builder, feature.feature, usable=feature.skipped_reason is None),
                blocks.get(feature.feature, ()),
            )
            for feature in plan.features
        ]
        return _decisions(context, judged, [_toggled(context, *pair) for pair in judged])
    rows = tuple(block for own in blocks.values() for block in own)
    found = [(factor, rows) for factor in plan.factors] + [(key, ()) for key in plan.left_out]
    outcomes = _rows(context, len(plan.factors), rows) + [
        _Outcome(estimate=None, failure=reason, verdict=Verdict.NOT_MEASURED)
        for reason in plan.left_out.values()
    ]
    judged = [(_arms(builder, key, usable=key in plan.factors), own) for key, own in found]
    return _decisions(context, judged, outcomes)


def _arms(builder: ArmBuilder, key: str, *, usable: bool) -> Arms:
    return builder.build(key) if usable or key in PSEUDO else builder.placeholder(key)


def _toggled(context: Context, arms: Arms, blocks: Sequence[JudgedBlock]) -> _Outcome:
    planned = context.plan.feature(arms.feature)
    if planned.skipped_reason is not None:
        return _Outcome(estimate=None, failure=planned.skipped_reason, verdict=Verdict.NOT_MEASURED)
    if not blocks:
        return _Outcome(
            estimate=None,
            failure="its process was not run",
            verdict=Verdict.UNCLEAR,
            incomplete="its process was not run",
        )
    if (faults := _faults(blocks, structural=True)) is not None:
        return _Outcome(estimate=None, failure=faults, verdict=Verdict.INVALID)
    quads = [
        contrast for block in blocks if block.valid for contrast in block.evidence.quad_contrasts()
    ]
    if len(quads) < MIN_QUADS:
        reason = _faults(blocks, structural=False) or (
            f"{len(quads)} quads are left after {blocks[0].evidence.entry.warmup_steps} warm-up steps; give a larger --budget"
        )
        return _Outcome(
            estimate=None,
            failure=reason,
            verdict=Verdict.INVALID,
            family=judge.refused_family(blocks) or FailureFamily.UNSTEADY,
        )
    estimate = estimate_from_contrasts(quads, confidence=protocol.CONFIDENCE)
    return _Outcome(
        estimate=estimate.model_copy(update={"p_value": paired_t_p(quads), "unit": "quad"}),
        failure=None,
        verdict=Verdict.UNCLEAR,
    )


def _rows(context: Context, num_factors: int, blocks: Sequence[JudgedBlock]) -> list[_Outcome]:
    planned = sum(feature.blocks for feature in context.plan.planned)
    incomplete = None
    if len(blocks) < planned:
        incomplete = f"{len(blocks)} of {planned} runs of rows were made"
    refused = _faults(blocks, structural=True)
    faults = refused or _disagreement(blocks)
    if faults is not None:
        failed = _Outcome(
            estimate=None,
            failure=faults,
            verdict=Verdict.INVALID,
            incomplete=incomplete,
            family=None if refused else FailureFamily.COMPARABILITY,
        )
        return [failed] * num_factors
    counted = [
        (row, block.contrast_log)
        for block in blocks
        if block.valid
        and block.contrast_log is not None
        and (row := row_index(block.evidence.entry.feature)) is not None
    ]
    try:
        effects = mirrored_main_effects(
            [row for row, _ in counted],
            [contrast for _, contrast in counted],
            plackett_burman(num_factors),
            alpha=1 - protocol.CONFIDENCE,
        )
    except ValueError as error:
        reason = _faults(blocks, structural=False) or str(error)
        verdict = Verdict.UNCLEAR if incomplete else Verdict.INVALID
        failed = _Outcome(estimate=None, failure=reason, verdict=verdict, incomplete=incomplete)
        return [failed] * num_factors
    return [
        _Outcome(
            estimate=_estimate(effect, len(counted)),
            failure=None,
            verdict=Verdict.UNCLEAR,
            incomplete=incomplete,
        )
        for effect in effects
    ]


def _estimate(effect: MainEffect, num_runs: int) -> Estimate:
    half_width = (effect.high - effect.low) / 2
    # A contrast of every run carries every effect once, so the error of an effect is the SD of a run ÷ √runs.
    sd = effect.standard_error_log * math.sqrt(num_runs)
    return Estimate(
        log_ratio=effect.log_ratio,
        ratio=math.exp(effect.log_ratio),
        interval_low=math.exp(effect.low),
        interval_high=math.exp(effect.high),
        confidence=protocol.CONFIDENCE,
        num_blocks=num_runs,
        block_sd_log=sd,
        half_width_log=half_width,
        mde_log=effect.mde_log,
        sign_flip_p=None,
        p_value=effect.p_value,
        unit="row",
    )


def _decisions(
    context: Context,
    judged: Sequence[tuple[Arms, Sequence[JudgedBlock]]],
    outcomes: Sequence[_Outcome],
) -> tuple[Decision, ...]:
    # The family is all that was run: a feature that gave no p counts as p = 1 instead of making the others' correction
    # milder. An A/A claims nothing and keeps its own p.
    family = {
        index: 1.0 if outcome.estimate is None else outcome.estimate.p_value or 0.0
        for index, ((arms, _blocks), outcome) in enumerate(zip(judged, outcomes, strict=True))
        if outcome.verdict is not Verdict.NOT_MEASURED and arms.subject != NO_FEATURE
    }
    adjusted = dict(zip(family, benjamini_hochberg(list(family.values())), strict=True))
    return tuple(
        _decision(
            context,
            arms,
            blocks,
            outcome,
            adjusted.get(index) if outcome.estimate is not None else None,
        )
        for index, ((arms, blocks), outcome) in enumerate(zip(judged, outcomes, strict=True))
    )


def _decision(
    context: Context,
    arms: Arms,
    blocks: Sequence[JudgedBlock],
    outcome: _Outcome,
    adjusted_p: float | None,
) -> Decision:
    verdict, reason = _verdict(context, arms, outcome, adjusted_p)
    screen_design = context.plan.screen_design
    assert screen_design is not None, "only screens are decided here"
    alone = screen_design == "toggle"
    counted = [block for block in blocks if block.valid]
    control, treated = (
        (judge.step_seconds(counted, "A"), judge.step_seconds(counted, "B"))
        if alone
        else (None, None)
    )
    many = MetricDelta(control=None, treated=None, delta=None, reason=MANY_AT_ONCE)
    ratio = outcome.estimate.ratio if outcome.estimate else None
    return Decision(
        decision_id=f"{context.plan.campaign_id}-{arms.feature}",
        created_at=context.created_at,
        producer=PRODUCER,
        method=METHODS[screen_design],
        method_version=METHOD_VERSION,
        campaign_id=context.plan.campaign_id,
        status="INCOMPLETE" if outcome.incomplete else "COMPLETE",
        incomplete_reason=outcome.incomplete,
        lane=context.lane,
        machine=context.machine,
        feature=arms.subject,
        title=arms.title,
        role=arms.role,
        design=arms.design,
        versus=arms.versus,
        arms={"A": arm_record(arms, "A"), "B": arm_record(arms, "B")},
        estimate=outcome.estimate,
        control_step_seconds=control,
        treated_step_seconds=treated,
        tokens_per_second=judge.tokens_delta(counted, tokens_per_step(context.plan), ratio)
        if alone
        else many,
        peak_memory_bytes=MetricDelta(
            control=None,
            treated=None,
            delta=None,
            reason="both arms shared one process" if alone else MANY_AT_ONCE,
        ),
        goodput=judge.metric(counted, judge.goodput_ratio, reason="goodput is switched off")
        if alone
        else many,
        compile_seconds=judge.metric(counted, judge.compile_seconds, reason="not measured")
        if alone
        else many,
        loss_max_abs_diff=judge.loss_difference(counted, arms.control.lane.precision.compute)
        if arms.equal_mathematics
        else None,
        observed=judge.observed(blocks, arms) if alone else _observed_in_rows(blocks, arms),
        observed_ok=not any(fault.about_backend for block in blocks for fault in block.faults),
        verdict=verdict,
        reason=reason,
        failure_family=outcome.family or judge.refused_family(blocks)
        if verdict is Verdict.INVALID
        else None,
        stance=_advice(verdict),
        margin=context.plan.margin,
        tax_budget_ratio=arms.tax_budget_ratio,
        blocks=tuple(block.record() for block in blocks),
        mode="screen",
        adjusted_p=adjusted_p,
        adjustment=None if adjusted_p is None else "benjamini_hochberg",
    )


def _verdict(
    context: Context, arms: Arms, outcome: _Outcome, adjusted_p: float | None
) -> tuple[Verdict, str]:
    estimate = outcome.estimate
    if estimate is None or estimate.p_value is None:
        return outcome.verdict, outcome.failure or "nothing was measured"
    if outcome.incomplete is not None:
        return Verdict.UNCLEAR, f"INCOMPLETE: {outcome.incomplete}"
    margin = context.plan.margin.log_value
    q = estimate.p_value if adjusted_p is None else adjusted_p
    if q > FALSE_DISCOVERY_RATE:
        return (
            Verdict.UNCLEAR,
            f"q = {q:.2g} is above {FALSE_DISCOVERY_RATE:g}: it may be noise",
        )
    if abs(estimate.log_ratio) < margin:
        return Verdict.UNCLEAR, f"smaller than {math.expm1(margin):.1%}"
    found = Verdict.LIKELY_FASTER if estimate.log_ratio < 0 else Verdict.LIKELY_SLOWER
    reason = f"q = {q:.2g}, at most {FALSE_DISCOVERY_RATE:g}; a screen proves nothing"
    if arms.subject == NO_FEATURE:
        reason += ": both arms are the same, so this is the bias of the screen itself"
    return found, reason


def _advice(verdict: Verdict) -> str:
    return {
        Verdict.LIKELY_FASTER: "worth an ablate",
        Verdict.LIKELY_SLOWER: "ablate before turning off",
        Verdict.INVALID: "no evidence: mend the cause, then screen again",
        Verdict.NOT_MEASURED: "not screened",
    }.get(verdict, "ablate only if it matters")


def _faults(blocks: Sequence[JudgedBlock], *, structural: bool) -> str | None:
    texts = dict.fromkeys(
        f"{block.evidence.entry.feature} block {block.evidence.entry.block}: {fault.text}"
        for block in blocks
        for fault in block.faults
        if fault.structural or not structural
    )
    return "; ".join(texts) or None


def _disagreement(blocks: Sequence[JudgedBlock]) -> str | None:
    """Rows whose runs were on machines that disagree; rows differ among each other by design."""
    rows = dict.fromkeys(block.evidence.entry.feature for block in blocks)
    found = (
        (row, judge.machines_disagree([b for b in blocks if b.evidence.entry.feature == row]))
        for row in rows
    )
    return "; ".join(f"{row} {text}" for row, text in found if text is not None) or None


def _observed_in_rows(blocks: Sequence[JudgedBlock], arms: Arms) -> tuple[str, ...]:
    """Backends of this feature's ops in runs that had it on; its state where it sets no op."""
    on = arms.states["B"]
    receipts = [
        receipt
        for block in blocks
        for visits in block.evidence.receipts.values()
        for receipt in visits
        if any(f.key == arms.subject and f.effective == on for f in receipt.features)
    ]
    if not receipts:
        return ()
    if not arms.ops:
        return (on,)
    return tuple(
        sorted(
            {
                name
                for receipt in receipts
                for record in receipt.backends
                if record.op in arms.ops
                for name in record.observed
            }
        )
    )
