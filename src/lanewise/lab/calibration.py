"""From the receipts of A/A campaigns to a calibration. Nothing kept in memory is used, so it can be drawn again later.

**Pooling.** A/A campaigns of one lane, machine class, software, protocol and data are pooled while the earlier
calibration still holds, so that calibrating again narrows δ instead of starting over. An earlier campaign joins only when
neither its spread (Brown–Forsythe) nor its mean (Welch) differs from the newest one's at the 5 % level: a machine that has
become noisier or quieter speaks for itself alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, median, stdev
from typing import Final

from lanewise.errors import CampaignError
from lanewise.lab import protocol
from lanewise.lab.analyse import arm_builder
from lanewise.lab.arms import NO_FEATURE
from lanewise.lab.campaign import CampaignFolder
from lanewise.lab.conditions import Conditions, valid_until, why_not
from lanewise.lab.decide import PRODUCER
from lanewise.lab.evidence import BlockEvidence, read_blocks
from lanewise.lab.judge import JudgedBlock, judge, machines_disagree
from lanewise.lab.plan import CampaignPlan
from lanewise.lane.digest import digest
from lanewise.measure.boundary import plan_boundary, smallest_effect
from lanewise.measure.looks import Question, single_look
from lanewise.measure.noise import (
    agree,
    autocorrelation,
    false_positives,
    mean_interval,
    sd_interval,
)
from lanewise.measure.stats import margin_log, paired_t_p
from lanewise.receipts.calibration import (
    CalibrationBlock,
    CalibrationRecord,
    Detectable,
    FalsePositives,
    ObserverResult,
)
from lanewise.receipts.decision import Margin
from lanewise.receipts.instruments import OBSERVER_KEY, ObserverCost
from lanewise.receipts.schema import RunReceipt
from lanewise.receipts.store import Store

PSEUDO_BLOCKS: Final = (4, 8, 12)
"""Blocks of the pseudo-campaigns that the false-positive rate is read off."""

DETECTABLE_BLOCKS: Final = (4, 8, 12, 24)

FLAG_P: Final = 0.05
"""Below this, bias and drift are flagged; one calibration in twenty is flagged by chance."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Trials:
    """Pseudo-campaigns behind every false-positive rate; looks cost about forty times a single test."""

    single: int = 1000
    looks: int = 200


@dataclass(frozen=True, kw_only=True, slots=True)
class _Campaign:
    plan: CampaignPlan
    counted: tuple[JudgedBlock, ...]
    discarded: tuple[str, ...]

    @property
    def contrasts(self) -> list[float]:
        found = [block.contrast_log for block in self.counted]
        return [contrast for contrast in found if contrast is not None]

    @property
    def first(self) -> RunReceipt:
        return self.counted[0].evidence.receipts["A"][0]


def draw_calibration(
    store: Store, campaign_id: str, *, now: str, trials: Trials | None = None
) -> CalibrationRecord:
    """The calibration that an A/A campaign gives, pooled with earlier ones that agree. Writes nothing.

    Args:
        store: holds the campaign.
        campaign_id: a complete A/A campaign.
        now: RFC 3339 time stamped on it.
        trials: pseudo-campaigns; fewer in tests.

    Raises:
        UsageError: there is no such campaign.
        CampaignError: it is no A/A, lacks blocks, or too few of them count.
    """
    newest = _read(store, campaign_id)
    pooled, notes = _pooled(store, newest, now=now)
    return _calibration(
        (*pooled, newest), created_at=now, trials=trials or Trials(), notes=tuple(notes)
    )


def redraw_calibration(
    store: Store, calibration: CalibrationRecord, *, trials: Trials | None = None
) -> CalibrationRecord:
    """The same calibration from its campaigns' receipts, for whoever does not believe the document.

    Control and observer are campaigns with decisions of their own and are taken over; `analyse_campaign` redraws those.
    """
    drawn = _calibration(
        tuple(_read(store, campaign_id) for campaign_id in calibration.campaigns),
        created_at=calibration.created_at,
        trials=trials or Trials(),
        notes=calibration.notes,
    )
    observer = drawn.observer
    if calibration.observer is not None and calibration.observer.campaign_id is not None:
        observer = calibration.observer
    return drawn.model_copy(update={"control": calibration.control, "observer": observer})


def _read(store: Store, campaign_id: str) -> _Campaign:
    folder = CampaignFolder.find(store.root, campaign_id)
    plan = folder.plan()
    if tuple(plan.blocks) != (NO_FEATURE,):
        measured = ", ".join(plan.blocks) or "nothing"
        raise CampaignError(
            f"campaign {campaign_id} measured {measured}; a calibration is drawn from an A/A alone, "
            f"run `lanewise calibrate {plan.lane.name}`"
        )
    missing = folder.missing()
    if missing:
        raise CampaignError(
            f"campaign {campaign_id} lacks {len(missing)} of {plan.blocks[NO_FEATURE]} blocks; "
            f"finish it with `lanewise calibrate {plan.lane.name} --resume {campaign_id}`"
        )
    arms = arm_builder(plan).build(NO_FEATURE)
    entries = tuple(folder.finished().values())
    blocks = judge(read_blocks(store, entries), arms, cache=plan.cache)
    discarded = tuple(
        f"{campaign_id} block {block.evidence.entry.block}: {fault.text}"
        for block in blocks
        for fault in block.faults
    )
    counted = tuple(block for block in blocks if block.valid)
    if (disagreement := machines_disagree(counted)) is not None:
        raise CampaignError(f"A/A campaign {campaign_id} is no calibration: {disagreement}")
    if len(counted) < protocol.CALIBRATION_BLOCKS:
        why = f" ({'; '.join(discarded[:3])})" if discarded else ""
        raise CampaignError(
            f"{len(counted)} of {len(blocks)} A/A blocks of campaign {campaign_id} count and "
            f"{protocol.CALIBRATION_BLOCKS} are needed{why}; run `lanewise calibrate {plan.lane.name}` with more "
            "--blocks or on a quieter machine"
        )
    return _Campaign(plan=plan, counted=counted, discarded=discarded)


def _pooled(store: Store, newest: _Campaign, *, now: str) -> tuple[list[_Campaign], list[str]]:
    """Earlier campaigns that join the newest, oldest first, and a line for each that could have and does not."""
    plan, first = newest.plan, newest.first
    earlier = [
        calibration
        for calibration in store.iter_calibrations([])
        if plan.campaign_id not in calibration.campaigns
        and calibration.design == plan.design
        and calibration.data_digest == first.data_digest
        and not why_not(
            calibration,
            lane_digest=first.lane.digest,
            block_design=plan.block_design,
            protocol=_parameters(plan),
            conditions=Conditions(machine=first.machine, environment=first.environment),
            now=now,
        )
    ]
    # Oldest first; a calibration cites what was pooled into it, so campaigns repeat.
    ids = dict.fromkeys(
        campaign
        for calibration in sorted(earlier, key=lambda one: one.created_at)
        for campaign in calibration.campaigns
    )
    joined: list[_Campaign] = []
    notes: list[str] = []
    for campaign_id in ids:
        try:
            candidate = _read(store, campaign_id)
        except CampaignError as error:
            notes.append(f"not pooled: {error}")
            continue
        if agree(candidate.contrasts, newest.contrasts):
            joined.append(candidate)
        else:
            notes.append(
                f"not pooled: A/A campaign {campaign_id} has another spread or mean "
                f"(block SD {stdev(candidate.contrasts):.2%} against {stdev(newest.contrasts):.2%})"
            )
    return joined, notes


def _calibration(
    campaigns: Sequence[_Campaign], *, created_at: str, trials: Trials, notes: tuple[str, ...]
) -> CalibrationRecord:
    newest = campaigns[-1]
    plan, first = newest.plan, newest.first
    groups = [campaign.contrasts for campaign in campaigns]
    contrasts = [contrast for group in groups for contrast in group]
    sd, bias = stdev(contrasts), fmean(contrasts)
    bias_interval = mean_interval(contrasts)
    half_width = (bias_interval.high - bias_interval.low) / 2
    # The second term is larger exactly when the interval leaves out 0: then δ covers what is known of the bias.
    margin = max(margin_log(half_width), abs(bias) + half_width)
    correlation, correlation_p = autocorrelation(groups)
    bias_p = paired_t_p(contrasts)
    identifier = f"{plan.campaign_id}-calibration"
    blocks = tuple(
        _block(campaign.plan.campaign_id, block)
        for campaign in campaigns
        for block in campaign.counted
    )
    return CalibrationRecord(
        calibration_id=identifier,
        created_at=created_at,
        valid_until=valid_until(created_at),
        producer=PRODUCER,
        lane=first.lane,
        machine=first.machine,
        environment=first.environment,
        environment_digest=first.environment_digest,
        protocol=_checked_parameters(plan, first),
        protocol_digest=first.protocol_digest,
        data_digest=first.data_digest,
        design=plan.design,
        block_design=plan.block_design,
        num_threads=plan.num_threads,
        campaigns=tuple(campaign.plan.campaign_id for campaign in campaigns),
        blocks=blocks,
        num_blocks=len(contrasts),
        discarded_blocks=tuple(text for campaign in campaigns for text in campaign.discarded),
        quads_per_block=median(block.num_quads for block in blocks),
        seconds_per_block=fmean(block.wall_seconds for block in blocks),
        block_sd_log=sd,
        block_sd_interval=sd_interval(sd, len(contrasts)),
        bias_log=bias,
        bias_interval=bias_interval,
        bias_p=bias_p,
        biased=bias_p < FLAG_P,
        autocorrelation=correlation,
        autocorrelation_p=correlation_p,
        drifting=correlation_p < FLAG_P,
        false_positives=_false_positives(contrasts, margin, trials),
        half_width_log=half_width,
        margin=Margin(log_value=margin, source=identifier),
        detectable=tuple(
            Detectable(
                num_blocks=num_blocks,
                effect_log=smallest_effect(sd, plan_boundary(num_blocks), margin_log=margin),
            )
            for num_blocks in DETECTABLE_BLOCKS
        ),
        observer=_accounted(campaigns),
        notes=notes,
    )


def _false_positives(
    contrasts: Sequence[float], margin: float, trials: Trials
) -> tuple[FalsePositives, ...]:
    """The plain test at each size, then the looks of the largest plan: the test alone, and with δ as campaigns run it."""
    singles = [
        false_positives(contrasts, single_look(size, margin_log=0.0), trials=trials.single)
        for size in PSEUDO_BLOCKS
    ]
    boundary = plan_boundary(PSEUDO_BLOCKS[-1])
    planned = [
        false_positives(
            contrasts, Question(boundary=boundary, margin_log=each), trials=trials.looks
        )
        for each in (0.0, margin)
    ]
    return (*singles, *planned)


def _block(campaign_id: str, block: JudgedBlock) -> CalibrationBlock:
    contrast = block.contrast_log
    assert contrast is not None, "a block that counts has a contrast"
    entry = block.evidence.entry
    return CalibrationBlock(
        campaign_id=campaign_id,
        block=entry.block,
        contrast_log=contrast,
        num_quads=_quads_run(block.evidence),
        wall_seconds=entry.wall_seconds,
        receipts=entry.receipts,
    )


def _quads_run(block: BlockEvidence) -> int:
    """Quads as a plan counts them: steps of one visit after the lead steps, two a quad."""
    steps = len(block.steps["A"][0].step)
    return (steps - protocol.LEAD_STEPS) // protocol.STEPS_PER_QUAD


def _accounted(campaigns: Sequence[_Campaign]) -> ObserverResult | None:
    """What the runs themselves say that observing cost them; None when none says it."""
    costs = [
        ObserverCost.model_validate(receipt.extensions[OBSERVER_KEY])
        for campaign in campaigns
        for block in campaign.counted
        for receipts in block.evidence.receipts.values()
        for receipt in receipts
        if OBSERVER_KEY in receipt.extensions
    ]
    if not costs:
        return None
    return ObserverResult(
        in_step_ratio=median(cost.in_step_ratio for cost in costs),
        total_ratio=median(cost.total_ratio for cost in costs),
    )


def _parameters(plan: CampaignPlan) -> dict[str, str | int | float | bool]:
    return protocol.parameters(
        plan.block_design, num_threads=plan.num_threads, pinned=plan.pinned, cache=plan.cache
    )


def _checked_parameters(
    plan: CampaignPlan, first: RunReceipt
) -> dict[str, str | int | float | bool]:
    """The parameters whose digest the receipts carry.

    Raises:
        CampaignError: the runs followed another protocol than this program's.
    """
    parameters = _parameters(plan)
    if digest(parameters) != first.protocol_digest:
        raise CampaignError(
            f"campaign {plan.campaign_id} was run under another version of the protocol; run "
            f"`lanewise calibrate {plan.lane.name}` again"
        )
    return parameters
