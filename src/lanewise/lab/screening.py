"""From a lane and a budget to the plan of a screen: many features cheaply, to choose which deserve a campaign.

    toggle             one process for each feature holds both its arms and takes their steps in turns
    plackett-burman    every run switches all features at once; rows of the design beside their mirror images, in lockstep
                       blocks of fresh processes, so each run says something about every feature

A screen never decides anything: its documents carry mode `screen` and verdict words of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from lanewise.errors import UsageError
from lanewise.lab import protocol
from lanewise.lab.arms import FULL_STACK, PSEUDO, ArmBuilder, Question, questions
from lanewise.lab.caches import CompileCaches
from lanewise.lab.children import Launcher
from lanewise.lab.conditions import Conditions
from lanewise.lab.events import Listener
from lanewise.lab.keys import row_key
from lanewise.lab.margin import Noise, known_noise
from lanewise.lab.pilot import Pilot, PilotResult
from lanewise.lab.placement import Placement
from lanewise.lab.plan import (
    RESERVE_RATIO,
    ArmCost,
    CampaignPlan,
    Candidate,
    FeaturePlan,
    block_seconds,
)
from lanewise.lab.prepare import (
    FINISH_SECONDS,
    MEMORY_HEADROOM,
    CampaignOptions,
    measured_lane,
    visited,
)
from lanewise.lane.machine import DeviceType
from lanewise.measure.factorial import MAX_FACTORS, plackett_burman
from lanewise.measure.stats import mde
from lanewise.receipts.store import Store
from lanewise.train.request import sharing_fault

ScreenDesign = Literal["toggle", "plackett-burman"]

MIN_REPLICATES: Final = 2
"""Each row of a design is run this often at least: the noise is what replicates differ by."""

MAX_REPLICATES: Final = 8

FEWEST_QUADS: Final = 8
"""Fewest quads of a toggle: warm-up takes some, and its interval stands on the others."""

ROW_QUADS: Final = 6
"""Quads that a row's block gets before more replicates are bought: more of them sharpen one process only."""

SHARED_NOTE: Final = "a screen by toggling shares one process between the arms, which is known to bias results: it ranks, it proves nothing"
MIRROR_NOTE: Final = (
    "main effects only: rows run beside their mirror images, so interactions of two features cancel and cannot be seen; "
    "those of three are mixed in"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Survey:
    """What is known before the budget is spent.

    Attributes:
        builder: makes arms.
        asked: the features.
        pilot: what they cost.
        noise: of lockstep blocks on this lane.
        available_seconds: left after pilot and reserve.
    """

    builder: ArmBuilder
    asked: tuple[Question, ...]
    pilot: PilotResult
    noise: Noise
    available_seconds: float
    pair_limit_bytes: float | None


def make_screen_plan(
    options: CampaignOptions,
    screen_design: ScreenDesign,
    *,
    store: Store,
    launcher: Launcher,
    clock: Callable[[], float],
    campaign_id: str,
    created_at: str,
    free_memory_bytes: Callable[[DeviceType], int | None],
    conditions: Callable[[], Conditions],
    listen: Listener,
    placement: Placement,
    caches: CompileCaches,
) -> CampaignPlan:
    """Time a pilot and spend the budget on a screen.

    Args:
        options: what was asked for; features are varied around the full stack, and design and blocks are not looked at.
        screen_design: how features are varied.
        store: where earlier A/A decisions are.
        launcher: starts processes.
        clock: seconds.
        campaign_id: name of the screen.
        created_at: RFC 3339 time.
        free_memory_bytes: device → memory that is free on it now, or None when the system does not tell.
        conditions: of this machine now, to be compared with those of earlier calibrations.
        listen: told about pilot visits.
        placement: processors of the pilot's processes.
        caches: compile caches that the pilot fills.

    Raises:
        UsageError: a feature cannot be measured, there are too many or too few, two copies do not fit in memory, or the
            budget is too small.
        ChildError: the base lane's process died.
    """
    lane, notes = measured_lane(options)
    if not placement.pinned:
        notes = (*notes, f"processes are not pinned: {placement.reason}")
    builder = ArmBuilder(
        lane=lane,
        machine_class=options.machine_class,
        device_type=options.device_type,
        design="leave-one-out",
    )
    features = options.features or tuple(
        key for key in builder.default_features() if key != FULL_STACK
    )
    _check_features(features, screen_design)
    asked = questions(builder, features) if options.features else _defaults(builder)
    free_bytes = free_memory_bytes(options.device_type)
    pilot = Pilot(
        launcher=launcher,
        clock=clock,
        store_root=store.root,
        num_threads=options.num_threads,
        data_path=options.data_path,
        budget_seconds=options.budget_seconds,
        on_visit=lambda name, cost: listen(visited(name, cost)),
        cores=placement.cores,
        caches=caches,
    ).run(builder.base(), asked)
    survey = _Survey(
        builder=builder,
        asked=asked,
        pilot=pilot,
        noise=known_noise(
            store,
            builder.base(),
            "lockstep",
            parameters=protocol.parameters(
                "lockstep",
                num_threads=options.num_threads,
                pinned=placement.pinned,
                cache=caches.mode,
            ),
            conditions=conditions,
            now=created_at,
        ),
        available_seconds=options.budget_seconds * (1.0 - RESERVE_RATIO) - pilot.seconds,
        pair_limit_bytes=None if free_bytes is None else MEMORY_HEADROOM * free_bytes,
    )
    plan_features, factors, left_out = (
        (_toggles(survey), (), {}) if screen_design == "toggle" else _rows(survey)
    )
    noise_log = (
        protocol.ASSUMED_NOISE_LOG["toggle"]
        if screen_design == "toggle"
        else survey.noise.block_sd_log
    )
    return CampaignPlan(
        campaign_id=campaign_id,
        created_at=created_at,
        lane=lane,
        data_path=options.data_path,
        machine_class=options.machine_class,
        device_type=options.device_type,
        design="leave-one-out",
        block_design="toggle" if screen_design == "toggle" else "lockstep",
        budget_seconds=options.budget_seconds,
        order_seed=options.seed,
        num_threads=options.num_threads,
        finish_seconds=FINISH_SECONDS,
        pilot_seconds=pilot.seconds,
        features=plan_features,
        margin=survey.noise.margin,
        noise_log=noise_log,
        noise_source="assumed" if screen_design == "toggle" else survey.noise.source,
        planned_mde_log=mde(noise_log, _num_contrasts(plan_features, screen_design)),
        notes=(*notes, SHARED_NOTE if screen_design == "toggle" else MIRROR_NOTE),
        mode="screen",
        started_by="screen",
        confirm_noise_log=survey.noise.block_sd_log,
        pinned=placement.pinned,
        cache=caches.mode,
        screen_design=screen_design,
        factors=factors,
        left_out=left_out,
    )


def _check_features(features: Sequence[str], screen_design: ScreenDesign) -> None:
    if screen_design == "toggle":
        return
    for pseudo in sorted(PSEUDO):
        if pseudo in features:
            raise UsageError(
                f"{pseudo!r} is no feature that a design of many features could switch; leave it out, or use "
                "--design toggle"
            )
    if len(set(features)) > MAX_FACTORS:
        raise UsageError(
            f"{len(set(features))} features were asked for and a design takes {MAX_FACTORS}; name fewer with --feature"
        )


def _defaults(builder: ArmBuilder) -> tuple[Question, ...]:
    return tuple(q for q in questions(builder, ()) if q.arms.feature != FULL_STACK)


def _memory_fault(survey: _Survey, question: Question) -> str | None:
    needed, limit = survey.pilot.largest_resident_pair([question.arms]), survey.pair_limit_bytes
    if needed is None or limit is None or needed <= limit:
        return None
    return (
        f"two copies need {needed / 2**30:.1f} GiB and {limit / 2**30:.1f} GiB may be used; "
        "`lanewise ablate --block-design sequential` runs one at a time"
    )


def _toggles(survey: _Survey) -> tuple[FeaturePlan, ...]:
    """One process for each feature, with as many quads as the budget pays for."""
    candidates = []
    for question in survey.asked:
        candidate = survey.pilot.candidate(question)
        fault = candidate.failure or sharing_fault(question.arms.control, question.arms.treated)
        fault = fault or _memory_fault(survey, question)
        candidates.append(
            Candidate(
                feature=candidate.feature,
                control=candidate.control,
                treated=candidate.treated,
                failure=fault,
            )
        )
    usable = sorted(
        (c for c in candidates if c.failure is None), key=lambda c: _toggle_seconds(c, 1)
    )

    def fits(quads: int) -> bool:
        return sum(_toggle_seconds(c, quads) for c in usable) <= survey.available_seconds

    while usable and not fits(FEWEST_QUADS):
        usable.pop()
    if not usable and any(c.failure is None for c in candidates):
        raise UsageError(
            f"the budget leaves {max(survey.available_seconds, 0.0):.0f} s after the pilot, too little to screen the "
            "cheapest feature; give a larger --budget"
        )
    quads = FEWEST_QUADS
    while quads < protocol.MAX_QUADS and fits(quads + 1):
        quads += 1
    return tuple(_toggle(candidate, candidate in usable, quads) for candidate in candidates)


def _toggle(candidate: Candidate, is_usable: bool, quads: int) -> FeaturePlan:
    reason = candidate.failure
    if reason is None and not is_usable:
        reason = f"over budget: needs ~{_toggle_seconds(candidate, FEWEST_QUADS):.0f} s"
    return FeaturePlan(
        feature=candidate.feature,
        blocks=0 if reason else 1,
        quads=0 if reason else quads,
        block_seconds=0.0 if reason else _toggle_seconds(candidate, quads),
        control=candidate.control,
        treated=candidate.treated,
        skipped_reason=reason,
    )


def _toggle_seconds(candidate: Candidate, quads: int) -> float:
    assert candidate.control is not None, "a candidate without a failure has costs"
    assert candidate.treated is not None, "a candidate without a failure has costs"
    return block_seconds(
        candidate.control, candidate.treated, quads, finish_seconds=FINISH_SECONDS, design="toggle"
    )


def _rows(survey: _Survey) -> tuple[tuple[FeaturePlan, ...], tuple[str, ...], dict[str, str]]:
    """Rows of the design of all features that can run, replicated as often as the budget pays for."""
    left_out: dict[str, str] = {}
    factors: list[str] = []
    costs: list[ArmCost] = []
    for question in survey.asked:
        candidate = survey.pilot.candidate(question)
        fault = candidate.failure or _memory_fault(survey, question)
        if fault is not None or candidate.control is None or candidate.treated is None:
            left_out[candidate.feature] = fault or "it has no cost"
        else:
            factors.append(candidate.feature)
            costs += [candidate.control, candidate.treated]
    if len(factors) < 2:
        raise UsageError(
            f"{len(factors)} of {len(survey.asked)} features can run here, and a design of many needs two at least; "
            "use --design toggle"
        )
    # Half of a row's features are on, so its cost lies among theirs; the dearest keeps the promise of the budget.
    cost = ArmCost(
        setup_seconds=max(c.setup_seconds for c in costs),
        first_step_seconds=max(c.first_step_seconds for c in costs),
        step_seconds=max(c.step_seconds for c in costs),
        resident_bytes=None,
    )
    num_rows = len(plackett_burman(len(factors)))

    def seconds(replicates: int, quads: int) -> float:
        return (
            replicates
            * num_rows
            * block_seconds(cost, cost, quads, finish_seconds=FINISH_SECONDS, design="lockstep")
        )

    replicates, quads = MIN_REPLICATES, protocol.MIN_QUADS
    if seconds(replicates, quads) > survey.available_seconds:
        raise UsageError(
            f"the budget leaves {max(survey.available_seconds, 0.0):.0f} s after the pilot, and {num_rows} rows of "
            f"{len(factors)} features, each run {replicates} times, need about {seconds(replicates, quads):.0f} s; "
            "give a larger --budget, name fewer with --feature, or use --design toggle"
        )
    while quads < ROW_QUADS and seconds(replicates, quads + 1) <= survey.available_seconds:
        quads += 1
    while (
        replicates < MAX_REPLICATES and seconds(replicates + 1, quads) <= survey.available_seconds
    ):
        replicates += 1
    planned = tuple(
        FeaturePlan(
            feature=row_key(row),
            blocks=replicates,
            quads=quads,
            block_seconds=seconds(1, quads) / num_rows,
            control=cost,
            treated=cost,
        )
        for row in range(num_rows)
    )
    return planned, tuple(factors), left_out


def _num_contrasts(features: Sequence[FeaturePlan], screen_design: ScreenDesign) -> int:
    """Contrasts behind the effect of each feature: quads of its process, or all runs of all rows."""
    planned = [feature for feature in features if feature.skipped_reason is None]
    if screen_design == "toggle":
        return max(2, min((feature.quads for feature in planned), default=2))
    return sum(feature.blocks for feature in planned)
