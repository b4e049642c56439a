"""Sentences about a campaign, drawn from its documents: header, verdict, what is missing, closing lines."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lanewise.dash import format as fmt
from lanewise.dash.interactions import additivity_sentence, interaction_sentence
from lanewise.dash.looks import adjustment_sentence, detection_lines
from lanewise.dash.rows import verdict_word
from lanewise.receipts.decision import CampaignRecord, Decision, PlannedFeature, Verdict
from lanewise.receipts.schema import RunReceipt

FULL_STACK = "full_stack"
"""Pseudo-feature of the lab: all default-on features at once against the bare lane; it counts as no feature."""
DECIDED = (Verdict.FASTER, Verdict.SLOWER, Verdict.EQUIVALENT)


@dataclass(frozen=True, kw_only=True, slots=True)
class LaneFacts:
    """What a receipt knows about the lane and the machine beyond the campaign's own record."""

    hardware: str
    torch_version: str | None
    corpus: str
    params_total: int
    params_active: int
    training_flops_per_step: float

    @classmethod
    def from_receipt(cls, receipt: RunReceipt) -> LaneFacts:
        """Read the facts from any receipt of the campaign."""
        environment, data = receipt.environment, receipt.data
        device = environment.device_model or "no GPU"
        return cls(
            hardware=f"{environment.host_cpu_count} × {environment.host_arch} cores, {device}",
            torch_version=environment.packages.get("torch"),
            corpus=f"{data.source}, {fmt.si(data.num_tokens, '')} tokens, {fmt.short_digest(data.digest)}",
            params_total=receipt.flops.params_total,
            params_active=receipt.flops.params_active,
            training_flops_per_step=receipt.flops.training_flops_per_token
            * tokens_per_step(receipt.lane.spec),
        )


def tokens_per_step(spec: Mapping[str, Any]) -> int:
    """Tokens of one optimizer step on one data-parallel rank, from a lane's resolved tables."""
    batch = spec.get("batch", {})
    return (
        int(batch.get("sequence_length", 0))
        * int(batch.get("micro_batch_size", 0))
        * int(batch.get("gradient_accumulation_steps", 1))
    )


def lane_phrase(campaign: CampaignRecord) -> str:
    """The lane in one breath: `nam56r-tiny · AEMEAEMEAEMR · h128 · s64×mb16 · fp32 · adamw · sha256:9c2f81aa…`."""
    lane, spec = campaign.lane, campaign.lane.spec
    model, batch = _table(spec, "model"), _table(spec, "batch")
    parts = [lane.name, f"{lane.layer_pattern}, {fmt.plural(lane.num_layers, 'layer')}"]
    if "hidden_size" in model:
        parts.append(f"h{model['hidden_size']}")
    if "sequence_length" in batch:
        accumulation = batch.get("gradient_accumulation_steps", 1)
        parts.append(
            f"s{batch['sequence_length']}×mb{batch.get('micro_batch_size', 1)}"
            + (f"×ga{accumulation}" if accumulation != 1 else "")
        )
    for table, key in (("precision", "compute"), ("optimizer", "name")):
        if key in _table(spec, table):
            parts.append(str(_table(spec, table)[key]))
    return " · ".join([*parts, fmt.short_digest(lane.digest)])


def _table(spec: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A table of a lane as a record holds it, which no schema vouches for."""
    found = spec.get(name)
    return found if isinstance(found, Mapping) else {}


def header_lines(campaign: CampaignRecord, facts: LaneFacts | None = None) -> tuple[str, ...]:
    """What is about to run, before anything runs: machine, lane, plan.

    Args:
        campaign: the plan.
        facts: what a receipt or the lane's own formulas know in addition.
    """
    machine = [f"{campaign.producer.name} {campaign.producer.version}", campaign.machine.class_name]
    if facts:
        machine += [facts.hardware]
        machine += [f"torch {facts.torch_version}"] if facts.torch_version else []
        machine += [f"corpus: {facts.corpus}"]
    lines = [" · ".join(machine), f"lane    {lane_phrase(campaign)}"]
    if facts:
        lines.append(
            f"        {fmt.si(facts.params_total, '')} parameters ({fmt.si(facts.params_active, '')} active)"
            f" · {fmt.si(facts.training_flops_per_step, 'FLOP')}/step"
        )
    return (*lines, *plan_lines(campaign))


def plan_lines(campaign: CampaignRecord) -> tuple[str, ...]:
    """Cost and power of the plan, and what it leaves out, each with its reason."""
    planned = [f for f in campaign.features if f.skipped_reason is None]
    blocks = sorted({f.planned_blocks for f in planned}) or [0]
    num_blocks = str(blocks[0]) if len(blocks) == 1 else f"{blocks[0]} to {blocks[-1]}"
    noise = (
        "assumed noise; `lanewise calibrate` measures it"
        if campaign.noise_source == "assumed"
        else f"noise from {campaign.noise_source}"
    )
    num_features = len({f.feature for f in planned if f.feature != FULL_STACK})
    from_both = ", each on both bases," if campaign.design == "both" else ""
    whole = " and the full stack" if any(f.feature == FULL_STACK for f in planned) else ""
    if campaign.mode == "screen":
        return (_screen_plan(campaign, planned), *_left_out(campaign))
    first = (
        f"plan    {fmt.plural(num_features, 'feature')}{from_both}{whole} × {num_blocks} {campaign.block_design} blocks"
        f" = {fmt.plural(sum(f.visits for f in planned), 'process', 'es')},"
        f" {fmt.duration(sum(f.estimated_seconds for f in planned))}"
        f" of {'at most ' if campaign.planned_effect_log is not None else ''}{fmt.duration(campaign.budget_seconds)}"
        f" · detects ≥ {fmt.percent(math.expm1(campaign.planned_mde_log))} ({noise})"
    )
    if campaign.planned_effect_log is not None:
        effect = fmt.percent(math.expm1(campaign.planned_effect_log))
        first += f" · blocks chosen to find {effect} with 80 % power"
    if campaign.planned_steps is not None:
        first += f" · {fmt.plural(campaign.planned_steps, 'step')} of each arm in every block"
    if campaign.planned_target_loss is not None:
        first += f" · time to a loss of {fmt.nats(campaign.planned_target_loss)}"
    more = (f"        {line}" for line in detection_lines(campaign))
    return (first, *more, *_left_out(campaign))


def _left_out(campaign: CampaignRecord) -> tuple[str, ...]:
    lines = [
        f"{fmt.on_base(f.feature, f.design)}: {f.skipped_reason}"
        for f in campaign.features
        if f.skipped_reason
    ]
    return tuple(f"        not measured · {line}" for line in dict.fromkeys(lines))


def _screen_plan(campaign: CampaignRecord, planned: Sequence[PlannedFeature]) -> str:
    what = (
        f"{fmt.plural(len(planned), 'feature')}, one process each"
        if campaign.screen_design == "toggle"
        else f"{len(planned)} rows of all features beside their mirror images × {planned[0].planned_blocks if planned else 0}"
    )
    return (
        f"screen  {what} = {fmt.plural(sum(f.visits for f in planned), 'process', 'es')}, "
        f"{fmt.duration(sum(f.estimated_seconds for f in planned))} of "
        f"{fmt.duration(campaign.budget_seconds)} · ranks candidates, proves nothing"
    )


_CLAUSES: tuple[tuple[str, str, str], ...] = (
    ("FASTER", "feature shortens the step", "features shorten the step"),
    ("SLOWER", "feature lengthens the step", "features lengthen the step"),
    ("EQUIVALENT", "makes no difference", "make no difference"),
    ("WITHIN_BUDGET", "tax stays within its budget", "taxes stay within their budget"),
    ("OVER_BUDGET", "tax is over its budget", "taxes are over their budget"),
    ("INCONCLUSIVE", "cannot be told from noise yet", "cannot be told from noise yet"),
    ("INVALID", "did not run as asked", "did not run as asked"),
    ("LIKELY_FASTER", "feature looks faster", "features look faster"),
    ("LIKELY_SLOWER", "feature looks slower", "features look slower"),
    ("UNCLEAR", "shows nothing", "show nothing"),
    ("NOISE", "A/A comparison shows the noise", "A/A comparisons show the noise"),
    ("NOT_MEASURED", "was not measured", "were not measured"),
)


def verdict_sentence(campaign: CampaignRecord, decisions: Sequence[Decision]) -> str:
    """The report in one sentence."""
    if gaps(campaign, decisions):
        return f"This campaign on {campaign.lane.name} is incomplete and decides nothing yet."
    if campaign.design == "both":
        # One count per feature: what it does in the full stack, which is what people run.
        decisions = [d for d in decisions if d.design == "leave-one-out"]
    counts = Counter(verdict_word(d) for d in decisions if d.feature != FULL_STACK)
    counts["NOT_MEASURED"] += sum(
        f.skipped_reason is not None and all(d.feature != f.feature for d in decisions)
        for f in campaign.features
        if f.feature != FULL_STACK
    )
    leader = largest_effect(decisions)
    clauses = []
    for word, one, many in _CLAUSES:
        if not counts[word]:
            continue
        clause = f"{counts[word]} {one if counts[word] == 1 else many}"
        if leader and leader.estimate and leader.verdict.value == word != "EQUIVALENT":
            clause += f", led by {leader.feature} ({fmt.signed_percent(leader.estimate.ratio - 1)})"
        clauses.append(clause)
    if not clauses:
        return f"Nothing was measured on {campaign.lane.name}."
    screened = "a screen, which proves nothing: " if campaign.mode == "screen" else ""
    return f"On {campaign.lane.name}, {screened}{'; '.join(clauses)}."


def largest_effect(decisions: Sequence[Decision]) -> Decision | None:
    """The decided feature with the largest effect, or None."""
    decided = [
        d
        for d in decisions
        if d.estimate
        and d.verdict in DECIDED
        and d.status == "COMPLETE"
        and d.feature != FULL_STACK
    ]
    return max(
        decided, key=lambda d: abs(d.estimate.log_ratio) if d.estimate else 0.0, default=None
    )


def gaps(campaign: CampaignRecord, decisions: Sequence[Decision]) -> tuple[str, ...]:
    """What a campaign lacks to be final: one line per missing feature, arm or block; empty when it is complete."""
    if campaign.mode == "screen":
        return _screen_gaps(campaign, decisions)
    by_feature: dict[tuple[str, str | None], Decision] = {}
    for decision in decisions:
        by_feature[decision.feature, decision.design] = decision
        by_feature[decision.feature, None] = decision
    lines = [
        line
        for planned in campaign.features
        if planned.skipped_reason is None
        for line in _feature_gaps(
            fmt.on_base(planned.feature, planned.design),
            planned.planned_blocks,
            by_feature.get((planned.feature, planned.design)),
        )
    ]
    if not lines and campaign.status != "COMPLETE":
        lines.append(f"the campaign is {campaign.status}")
    return tuple(lines)


def _screen_gaps(campaign: CampaignRecord, decisions: Sequence[Decision]) -> tuple[str, ...]:
    lines = [
        f"{d.feature}: {fmt.with_family(d.incomplete_reason or 'no reason', d.failure_family)}"
        for d in decisions
        if d.status == "INCOMPLETE"
    ]
    if campaign.status != "COMPLETE" and not lines:
        lines.append(f"the screen is {campaign.status}")
    return tuple(lines)


def _feature_gaps(feature: str, planned_blocks: int, decision: Decision | None) -> list[str]:
    if decision is None:
        return [f"{feature}: no decision, 0 of {fmt.plural(planned_blocks, 'block')}"]
    if decision.status == "COMPLETE":
        return []
    valid = sum(block.valid for block in decision.blocks)
    missing = [
        f"block {block.block} arm {arm}"
        for block in decision.blocks
        for arm in ("A", "B")
        if not block.receipts.get(arm)
    ]
    reason = decision.incomplete_reason or f"{valid} of {fmt.plural(planned_blocks, 'block')}"
    reason = fmt.with_family(reason, decision.failure_family)
    return [f"{feature}: {reason}" + (f" ({', '.join(missing)} missing)" if missing else "")]


def resume_command(campaign: CampaignRecord) -> str:
    """What to type to finish an incomplete campaign."""
    verb = campaign.started_by or ("screen" if campaign.mode == "screen" else "ablate")
    again = " --retry-crashed" if campaign.used_up_blocks else ""
    return f"lanewise {verb} {campaign.lane.name} --resume {campaign.campaign_id}{again}"


def receipt_ids(decisions: Sequence[Decision]) -> tuple[str, ...]:
    """Every receipt the decisions cite, once, in order."""
    return tuple(
        dict.fromkeys(
            receipt_id
            for decision in decisions
            for block in decision.blocks
            for arm in sorted(block.receipts)
            for receipt_id in block.receipts[arm]
        )
    )


def stack_sentence(campaign: CampaignRecord, decisions: Sequence[Decision] = ()) -> str | None:
    """How much faster the full stack is than the bare lane, or that it is not proven; None when nobody asked."""
    ratio = campaign.stack_ratio
    if ratio is None:
        stack = next((d for d in decisions if d.feature == FULL_STACK), None)
        if stack is None:
            return None
        return (
            f"No combination is proven: the full stack is {verdict_word(stack)} ({stack.reason})."
        )
    if ratio < 1.0:
        return f"Fastest proven combination: {fmt.times(1.0 / ratio)} as fast as the bare lane."
    return f"The full stack takes {fmt.times(ratio)} the step time of the bare lane: nothing to combine."


def closing_lines(
    campaign: CampaignRecord,
    decisions: Sequence[Decision],
    *,
    store_root: str,
    report_path: str | None = None,
) -> tuple[str, ...]:
    """The last lines of a campaign: the sum of it, what is missing, where the proof lies."""
    missing = gaps(campaign, decisions)
    sentences = (
        stack_sentence(campaign, decisions),
        _stop(interaction_sentence(campaign)),
        _stop(additivity_sentence(campaign)),
    )
    lines = [] if missing else [" ".join(s for s in sentences if s)]
    lines = [line for line in lines if line]
    corrected = adjustment_sentence(decisions)
    lines += [] if missing or corrected is None else [corrected]
    lines += campaign.notes
    lines += [f"{d.feature} is {d.host_bound}." for d in decisions if d.host_bound is not None]
    if missing:
        lines.append(f"INCOMPLETE: {'; '.join(missing)}. Finish with `{resume_command(campaign)}`.")
    proof = (
        f"{fmt.plural(len(receipt_ids(decisions)), 'receipt')}, "
        f"{fmt.plural(len(decisions), 'decision')} in {store_root}"
    )
    return (*lines, proof + (f" · report: {report_path}" if report_path else ""))


def _stop(sentence: str | None) -> str | None:
    return None if sentence is None else f"{sentence}."
