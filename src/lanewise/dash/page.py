"""The report as data: what each section shows, in words and numbers, before any HTML."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from lanewise.dash import format as fmt
from lanewise.dash.badput import ArmPartition, badput, categories_present, partitions
from lanewise.dash.calibration import CalibrationView, calibration_view
from lanewise.dash.costs import anatomy, memory
from lanewise.dash.decision_view import DecisionView, Pairs, decision_view, log_percent
from lanewise.dash.evidence import Evidence, compare_environments
from lanewise.dash.forest import forest
from lanewise.dash.interactions import (
    HEAD,
    additivity_sentence,
    interaction_chart,
    interaction_rows,
    interaction_sentence,
)
from lanewise.dash.looks import adjustment_sentence, boundary_words
from lanewise.dash.losses import LossChart, loss_charts
from lanewise.dash.rows import Column, columns, rows
from lanewise.dash.summary import (
    FULL_STACK,
    gaps,
    resume_command,
    stack_sentence,
    tokens_per_step,
    verdict_sentence,
)
from lanewise.dash.waterfall import waterfall
from lanewise.receipts.decision import (
    CampaignRecord,
    Decision,
    Verdict,
)
from lanewise.receipts.schema import RunReceipt


@dataclass(frozen=True, kw_only=True, slots=True)
class InteractionSection:
    """What a campaign from both bases says beyond single effects."""

    sentence: str
    waterfall: str | None
    chart: str | None
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Page:
    """The report, top to bottom."""

    title: str
    campaign: CampaignRecord
    verdict: str
    """The sentence up to its first semicolon, and what follows it."""
    rest: str
    gaps: tuple[str, ...]
    resume: str
    figures: Pairs
    lane: Pairs
    settings: Pairs
    components: tuple[tuple[str, ...], ...]
    component_notes: str
    columns: tuple[Column, ...]
    decisions: tuple[DecisionView, ...]
    multiplicity: str | None
    """What the corrected p-values mean; None where there are none."""
    not_measured: Pairs
    interactions: InteractionSection | None
    forest: str | None
    calibrations: tuple[CalibrationView, ...]
    anatomy: str | None
    memory: str | None
    losses: tuple[LossChart, ...]
    badput: str | None
    partition_head: tuple[str, ...]
    partition_rows: tuple[tuple[str, ...], ...]
    shared: Mapping[str, str]
    differing: Mapping[str, Mapping[str, int]]
    method: tuple[str, ...]
    status: Pairs
    unreadable: Mapping[str, str]


def build_page(evidence: Evidence, *, now: datetime) -> Page:
    """Draw every section from the documents; what they do not hold is absent or says why."""
    campaign, decisions = evidence.campaign, evidence.decisions
    receipts = tuple(evidence.receipts.values())
    verdict, semicolon, rest = verdict_sentence(campaign, decisions).partition(";")
    shared, differing = compare_environments(receipts)
    named = _named(decisions)
    parts = partitions(named, evidence.receipts)
    head, table = _partition_table(parts)
    return Page(
        title=f"{campaign.lane.name}: which features move step time",
        campaign=campaign,
        verdict=verdict + semicolon,
        rest=rest.strip(),
        gaps=gaps(campaign, decisions),
        resume=resume_command(campaign),
        figures=_figures(evidence),
        lane=_lane_identity(campaign, receipts),
        settings=tuple(_settings(campaign.lane.spec)),
        components=_components(receipts),
        component_notes=_component_notes(receipts),
        columns=_verdict_first(columns(decisions)),
        decisions=tuple(
            decision_view(d, row, evidence)
            for d, row in zip(decisions, rows(decisions), strict=True)
        ),
        multiplicity=adjustment_sentence(decisions),
        not_measured=_not_measured(campaign, decisions),
        interactions=_interactions(campaign, decisions),
        forest=forest(named),
        calibrations=tuple(calibration_view(one) for one in evidence.calibrations),
        anatomy=anatomy(named),
        memory=memory(named),
        losses=loss_charts(decisions, evidence.series),
        badput=badput(parts),
        partition_head=head,
        partition_rows=table,
        shared=shared,
        differing=differing,
        method=_method(campaign, decisions, receipts),
        status=_status(evidence, now),
        unreadable=evidence.unreadable,
    )


def _named(decisions: Sequence[Decision]) -> tuple[Decision, ...]:
    """The decisions as charts label them: where a campaign has two bases, each name says which."""
    if len({d.design for d in decisions}) < 2:
        return tuple(decisions)
    return tuple(
        d
        if d.feature == FULL_STACK
        else d.model_copy(update={"feature": fmt.on_base(d.feature, d.design)})
        for d in decisions
    )


def _verdict_first(shown: Sequence[Column]) -> tuple[Column, ...]:
    """What a reader came for stands left, where a wide table in a narrow window does not hide it."""
    first = ("feature", "base", "verdict", "step_time", "interval")
    return tuple(sorted(shown, key=lambda c: first.index(c.key) if c.key in first else len(first)))


def _figures(evidence: Evidence) -> Pairs:
    campaign = evidence.campaign
    figures = []
    final = not gaps(campaign, evidence.decisions)
    if final and campaign.stack_ratio is not None and campaign.stack_ratio > 0:
        figures.append(
            (
                fmt.times(1 / campaign.stack_ratio),
                "as fast as the bare lane: fastest proven combination",
            )
            if campaign.stack_ratio < 1
            else (
                fmt.times(1 / campaign.stack_ratio),
                "as fast as the bare lane: the full stack is no faster",
            )
        )
    treated = sorted(
        d.treated_step_seconds for d in evidence.decisions if d.treated_step_seconds is not None
    )
    if treated and campaign.design == "leave-one-out":
        figures.append((fmt.seconds(treated[len(treated) // 2]), "a step of the full stack"))
    num_blocks = sum(b.valid for d in evidence.decisions for b in d.blocks)
    num_all = sum(len(d.blocks) for d in evidence.decisions)
    figures.append((f"{num_blocks} of {num_all}", "blocks count as evidence"))
    figures.append((str(len(evidence.receipts) + len(evidence.unreadable)), "receipts cited"))
    return tuple(figures)


def _lane_identity(campaign: CampaignRecord, receipts: Sequence[RunReceipt]) -> Pairs:
    lane = campaign.lane
    identity = [
        ("lane", lane.name),
        ("canonical name", lane.canonical_name),
        ("digest", lane.digest),
        ("pattern", f"{lane.layer_pattern} over {fmt.plural(lane.num_layers, 'layer')}"),
        ("machine class", campaign.machine.class_name),
    ]
    if tokens := tokens_per_step(lane.spec):
        identity.append(("tokens a step", f"{tokens}"))
    if receipts:
        first = receipts[0]
        identity.append(
            (
                "data",
                f"{first.data.source}, {first.data.tokenizer}, "
                f"{fmt.si(first.data.num_tokens, '')} tokens of "
                f"{fmt.plural(first.data.num_documents, 'document')}",
            )
        )
        identity.append(("data digest", first.data.digest))
    return tuple(identity)


def _settings(table: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, str]]:
    """Every setting of the lane's resolved tables: dotted path and value."""
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from _settings(value, f"{path}{key}.")
        else:
            yield f"{path}{key}", fmt.MISSING if value is None else str(value)


def _components(receipts: Sequence[RunReceipt]) -> tuple[tuple[str, ...], ...]:
    if not receipts:
        return ()
    flops = receipts[0].flops
    whole = flops.training_flops_per_token or 1.0
    lines = [
        (
            c.component,
            str(c.count),
            fmt.si(c.params, ""),
            fmt.si(c.active_params, ""),
            fmt.si(c.training_flops_per_token, "FLOP"),
            fmt.percent(c.training_flops_per_token / whole),
        )
        for c in flops.components
    ]
    total = (
        "all",
        "",
        fmt.si(flops.params_total, ""),
        fmt.si(flops.params_active, ""),
        fmt.si(flops.training_flops_per_token, "FLOP"),
        fmt.percent(1.0),
    )
    return (*lines, total)


def _component_notes(receipts: Sequence[RunReceipt]) -> str:
    if not receipts:
        return "No receipt could be read, so parameters and FLOPs are unknown."
    flops = receipts[0].flops
    return (
        f"FLOPs by formula, convention {flops.convention} {flops.convention_version}, "
        f"causal factor {flops.causal_factor}, MLA {flops.mla_form}, routing {flops.routing_mode}."
    )


def _interactions(
    campaign: CampaignRecord, decisions: Sequence[Decision]
) -> InteractionSection | None:
    if campaign.interactions is None:
        return None
    sentences = (
        stack_sentence(campaign, decisions),
        f"{interaction_sentence(campaign)}.",
        f"{additivity_sentence(campaign)}.",
    )
    return InteractionSection(
        sentence=" ".join(sentence for sentence in sentences if sentence),
        waterfall=waterfall(campaign, decisions),
        chart=interaction_chart(campaign),
        head=HEAD,
        rows=tuple(interaction_rows(campaign.interactions)),
    )


def _not_measured(campaign: CampaignRecord, decisions: Sequence[Decision]) -> Pairs:
    both = campaign.design == "both"
    decided = {
        fmt.on_base(d.feature, d.design if both else None): d.reason
        for d in decisions
        if d.verdict is Verdict.NOT_MEASURED
    }
    skipped = {
        fmt.on_base(f.feature, f.design): f.skipped_reason
        for f in campaign.features
        if f.skipped_reason
    }
    return tuple((skipped | decided).items())


def _partition_table(
    parts: Sequence[ArmPartition],
) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]:
    present = categories_present(parts)
    head = ("feature", "arm", "receipts", "wall", "steps", *(c.replace("_", " ") for c in present))
    table = tuple(
        (
            part.feature,
            part.state,
            str(part.num_receipts),
            fmt.seconds(part.wall_seconds),
            fmt.seconds(part.step_seconds),
            *(fmt.seconds(part.badput_seconds.get(c, 0.0)) for c in present),
        )
        for part in parts
    )
    return head, table


def _method(
    campaign: CampaignRecord, decisions: Sequence[Decision], receipts: Sequence[RunReceipt]
) -> tuple[str, ...]:
    rules = sorted({r.timing.warmup.rule for r in receipts}) or ["unknown"]
    methods = sorted({f"{d.method} {d.method_version}" for d in decisions}) or ["unknown"]
    margins = sorted({f"{log_percent(d.margin.log_value)} ({d.margin.source})" for d in decisions})
    base = {
        "leave-one-out": "One feature at a time is taken out of the full stack and compared with its named control",
        "add-one": "One feature at a time is added to the bare lane and compared with its named control",
        "both": "Every feature is added to the bare lane and, in the same rounds, taken out of the full stack",
    }[campaign.design]
    if campaign.screen_design == "plackett-burman":
        base = "A screen: every run switches all features at once, rows of a design beside their mirror images"
    turns = {
        "lockstep": "one fresh process per arm; after warm-up they take turns, one step at a time, in random ABBA or "
        "BAAB quads, never both at once",
        "sequential": "a fresh process per visit, in random ABBA or BAAB order, one at a time",
        "toggle": "one process holds both arms, which take turns in random ABBA or BAAB quads; sharing a process biases, so "
        "this screen ranks and proves nothing",
    }[campaign.block_design]
    return (
        f"{base}; lane, data, protocol and machine are the same in both arms.",
        f"The unit of evidence is the block: {turns} (order seed {campaign.order_seed}).",
        f"Warm-up is detected, not assumed (rule {', '.join(rules)}); both arms drop the longer one.",
        f"A block's contrast is the median of log treated − log control; the effect is their mean over blocks "
        f"with a Student interval, given as a ratio ({', '.join(methods)}).{_looked(decisions)}",
        "A run counts only when every check holds and the observed backend is the one its arm asks for; "
        f"effects within the margin δ = {', '.join(margins) or 'none'} do not matter, "
        "taxes are held to their own budget.",
    )


def _looked(decisions: Sequence[Decision]) -> str:
    """How often a campaign looked before it ended, and that the interval knows it."""
    looks = sorted({boundary_words(d.boundary) for d in decisions if d.boundary is not None})
    if not looks:
        return ""
    return (
        f" Looks were planned before the first block: {'; '.join(looks)}. Where a campaign could stop early, the "
        "interval orders outcomes by look, so it covers as often as it says."
    )


def _status(evidence: Evidence, now: datetime) -> Pairs:
    campaign = evidence.campaign
    return (
        ("campaign", campaign.campaign_id),
        ("status", campaign.status),
        ("started", campaign.created_at),
        ("finished", campaign.finished_at or "not finished"),
        ("design", f"{campaign.design}, {campaign.block_design} blocks"),
        ("budget", fmt.duration(campaign.budget_seconds)),
        (
            "planned to detect",
            f"≥ {log_percent(campaign.planned_mde_log)} "
            f"(noise {log_percent(campaign.planned_noise_log)}, {campaign.noise_source})",
        ),
        ("written by", f"{campaign.producer.name} {campaign.producer.version}"),
        ("report drawn", now.strftime("%Y-%m-%d %H:%M %Z").strip()),
    )
