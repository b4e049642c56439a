"""From a lane and a budget to a plan: pilot, block design, allocation. Nothing is measured yet."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from lanewise.errors import UsageError
from lanewise.lab import protocol
from lanewise.lab.arms import ArmBuilder, Question, questions
from lanewise.lab.caches import CacheMode, CompileCaches
from lanewise.lab.children import Launcher
from lanewise.lab.conditions import Conditions
from lanewise.lab.detect import blocks_to_find, planned_mde, registered
from lanewise.lab.events import Listener, PilotVisited
from lanewise.lab.keys import Design, Verb
from lanewise.lab.margin import Noise, known_noise
from lanewise.lab.multiplicity import planned_alpha
from lanewise.lab.pilot import Pilot, PilotResult
from lanewise.lab.placement import Placement
from lanewise.lab.plan import (
    RESERVE_RATIO,
    ArmCost,
    CampaignPlan,
    FeaturePlan,
    allocate,
)
from lanewise.lab.protocol import BlockDesign, Claims
from lanewise.lane.machine import DeviceType
from lanewise.lane.schema import Lane
from lanewise.receipts.store import Store

FINISH_SECONDS = 0.3
"""Assumed cost of closing a visit: hashing, writing, and in block 1 a profiled step. The runner learns the real one."""

COLD_RUNS = 3
"""Fewest compilations from nothing that say how compile time spreads (P11)."""

MEMORY_HEADROOM = 0.8
"""Two copies may fill this share of the memory that is free before anything runs."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CampaignOptions:
    """What a person asked for.

    Attributes:
        lane: the lane, with their explicit feature states.
        machine_class: class of this machine.
        device_type: device the lane runs on.
        features: features by name; empty takes all that apply.
        budget_seconds: of the whole campaign, pilot included.
        design: base of the comparison.
        block_design: how a block is run; None decides by memory.
        blocks: blocks per feature; None lets the budget decide.
        effect_log: effect to find, from which blocks follow; None lets `blocks` or the budget decide.
        claims: what shares 5 %: each feature's looks, or those of all features together.
        seed: of every random order.
        num_threads: threads of each training process.
        data_path: replaces the lane's data; None keeps it.
        pin: keep training processes to processors of their own where the machine has enough.
        cache: state in which compiled runs find their caches.
        planted_ratio: delay of the positive control ÷ step time; None plants nothing.
        steps: optimizer steps that each arm takes in a block; None lets the budget decide.
        target_loss: loss in nats per token, the time to which is compared; None takes the worse of both arms' last losses.
        verb: the command that asks, and that resumes what it started.
    """

    lane: Lane
    machine_class: str
    device_type: Literal["cpu", "cuda"]
    features: tuple[str, ...]
    budget_seconds: float
    design: Design
    block_design: BlockDesign | None
    blocks: int | None
    seed: int
    num_threads: int
    data_path: str | None
    effect_log: float | None = None
    claims: Claims = "each"
    pin: bool = True
    cache: CacheMode = "warm"
    planted_ratio: float | None = None
    steps: int | None = None
    target_loss: float | None = None
    verb: Verb = "ablate"


def make_plan(
    options: CampaignOptions,
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
    """Time a pilot and spend the budget.

    Args:
        options: what was asked for.
        store: where earlier A/A decisions are.
        launcher: starts processes.
        clock: seconds.
        campaign_id: name of the campaign.
        created_at: RFC 3339 time.
        free_memory_bytes: device → memory that is free on it now, or None when the system does not tell.
        conditions: of this machine now, to be compared with those of earlier calibrations.
        listen: told about pilot visits.
        placement: processors of the pilot's processes.
        caches: compile caches that the pilot fills.

    Raises:
        UsageError: a feature cannot be measured, the lane replays routing, the budget is too small for one block or
            for the effect or steps asked for, that effect cannot be found, there is no block of so many steps, or a target
            loss was given and no feature changes the loss.
        ChildError: the base lane's process died.
    """
    lane, notes = measured_lane(options)
    builder = ArmBuilder(
        lane=lane,
        machine_class=options.machine_class,
        device_type=options.device_type,
        design=options.design,
        planted_ratio=options.planted_ratio,
    )
    asked = questions(builder, options.features)
    fixed_quads = None if options.steps is None else _quads_of(options.steps)
    _require_a_loss(options, asked)

    def noise_of(design: BlockDesign) -> Noise:
        return known_noise(
            store,
            builder.base(),
            design,
            parameters=protocol.parameters(
                design,
                num_threads=options.num_threads,
                pinned=placement.pinned,
                cache=caches.mode,
            ),
            conditions=conditions,
            now=created_at,
        )

    if options.effect_log is not None:
        # What cannot be found under the design that most lanes get is refused before the pilot takes its time.
        hoped_for = noise_of(options.block_design or "lockstep")
        # Fewer features than asked for may stay, which makes the level milder; so one feature's is the least refused.
        blocks_to_find(options.effect_log, [q.arms for q in asked], hoped_for)
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
    block_design, design_notes = _block_design(
        options.block_design, pilot.largest_resident_pair([q.arms for q in asked]), free_bytes
    )
    if not placement.pinned:
        notes = (*notes, f"processes are not pinned: {placement.reason}")
    noise, features = _allocated(
        options,
        asked,
        pilot,
        noise_of(block_design),
        block_design,
        fixed_quads,
    )
    _require_cold_runs(options, features)
    alpha = planned_alpha(options.claims, [f.feature for f in features if not f.skipped_reason])

    def looked_at(expected: Noise) -> tuple[FeaturePlan, ...]:
        return registered(
            features,
            [q.arms for q in asked],
            expected,
            looks_once=_looked_at_once(options, asked),
            alpha=alpha,
        )

    registered_features = looked_at(noise)
    found_log = planned_mde(noise.block_sd_log, registered_features)
    if noise.upper is not None:
        worst_log = planned_mde(noise.upper.block_sd_log, looked_at(noise.upper))
        noise = replace(noise, notes=(*noise.notes, *noise.uncertainty(found_log, worst_log)))
    if alpha < protocol.ALPHA:
        shared = round(protocol.ALPHA / alpha)
        notes = (
            *notes,
            f"{protocol.ALPHA:.0%} is shared by {shared} claims, each looked at with {alpha:.2%} (--claims family)",
        )
    return CampaignPlan(
        campaign_id=campaign_id,
        created_at=created_at,
        lane=lane,
        data_path=options.data_path,
        machine_class=options.machine_class,
        device_type=options.device_type,
        design=options.design,
        block_design=block_design,
        budget_seconds=options.budget_seconds,
        order_seed=options.seed,
        num_threads=options.num_threads,
        finish_seconds=FINISH_SECONDS,
        pilot_seconds=pilot.seconds,
        features=registered_features,
        margin=noise.margin,
        noise_log=noise.block_sd_log,
        noise_source=noise.source,
        planned_mde_log=found_log,
        pinned=placement.pinned,
        cache=caches.mode,
        claims=options.claims,
        effect_log=options.effect_log,
        planted_ratio=options.planted_ratio,
        steps=options.steps,
        target_loss=options.target_loss,
        started_by=options.verb,
        notes=(*design_notes, *notes, *noise.notes),
    )


def _allocated(
    options: CampaignOptions,
    asked: Sequence[Question],
    pilot: PilotResult,
    noise: Noise,
    block_design: BlockDesign,
    fixed_quads: int | None,
) -> tuple[Noise, tuple[FeaturePlan, ...]]:
    """Blocks and quads of every feature, and the noise that blocks of so many quads have.

    An effect takes blocks by the noise, the budget gives them quads, and few quads make noisier blocks: so blocks are
    counted again until both agree.
    """
    candidates = [pilot.candidate(question) for question in asked]
    alpha = planned_alpha(options.claims, [c.feature for c in candidates if c.failure is None])
    expected = noise
    while True:
        features = allocate(
            candidates,
            options.budget_seconds * (1.0 - RESERVE_RATIO) - pilot.seconds,
            finish_seconds=FINISH_SECONDS,
            design=block_design,
            blocks=options.blocks
            if options.effect_log is None
            else blocks_to_find(options.effect_log, [q.arms for q in asked], expected, alpha=alpha),
            claims=options.claims,
            fixed_quads=fixed_quads,
        )
        quads = min((f.quads for f in features if f.skipped_reason is None), default=0)
        found = noise.at(quads, block_design) if quads else noise
        if options.effect_log is None or found.block_sd_log <= expected.block_sd_log:
            return found, features
        expected = found


def _looked_at_once(options: CampaignOptions, asked: Sequence[Question]) -> frozenset[str]:
    """Features that no early look may end.

    A series that may stop because its mean is large is no fair sample of it. Differences of two such series, which a
    campaign from both bases takes, have no interval, nor has a time to a loss; and every seed that was asked for is run.
    """
    compares_losses = options.steps is not None or options.target_loss is not None
    return frozenset(
        q.arms.feature
        for q in asked
        if options.design == "both" or (compares_losses and not q.arms.equal_mathematics)
    )


def _quads_of(steps: int) -> int:
    quads = protocol.quads_of(steps)
    if quads is None:
        fewest, lead, quad = (
            protocol.steps_of(protocol.MIN_QUADS),
            protocol.LEAD_STEPS,
            protocol.STEPS_PER_QUAD,
        )
        near = max(fewest, steps + (steps - lead) % quad)
        raise UsageError(
            f"--steps {steps}: each arm of a block takes {lead} steps and then {quad} in every group of turns, "
            f"{fewest} at least; give {near}"
        )
    return quads


def _require_a_loss(options: CampaignOptions, asked: Sequence[Question]) -> None:
    if options.target_loss is None or any(not q.arms.equal_mathematics for q in asked):
        return
    names = ", ".join(dict.fromkeys(q.arms.subject for q in asked))
    raise UsageError(
        f"--target-loss {options.target_loss:g} compares how long both arms train to that loss, and {names} keeps the "
        "mathematics, so the losses are the same; name a feature that changes them, or leave it out"
    )


def measured_lane(options: CampaignOptions) -> tuple[Lane, tuple[str, ...]]:
    """The lane as the lab runs it, and what was changed for that.

    Raises:
        UsageError: it replays routing.
    """
    moe = options.lane.model.moe
    if moe is not None and moe.routing_mode == "replayed":
        raise UsageError(
            f"lane '{options.lane.name}' replays routing, and a campaign has no recording to follow; "
            "use --set model.moe.routing_mode=forced_balanced, with which both arms share their routing"
        )
    # The lab reads step series, whatever the lane says about keeping them; the switch is not part of its digest.
    observed = options.lane.observability.model_copy(update={"temporal_perf": True})
    lane = options.lane.model_copy(update={"observability": observed})
    if options.lane.observability.temporal_perf:
        return lane, ()
    return lane, ("observability.temporal_perf was switched on: the lab needs step series",)


def _require_cold_runs(options: CampaignOptions, features: tuple[FeaturePlan, ...]) -> None:
    fewest = min((f.blocks for f in features if f.skipped_reason is None), default=COLD_RUNS)
    if options.cache == "cold" and fewest < COLD_RUNS:
        raise UsageError(
            f"--cache cold measures how compile time spreads over {COLD_RUNS} or more runs, and {fewest} blocks are "
            f"planned; give a larger --budget, or --blocks {COLD_RUNS}"
        )


def _block_design(
    asked: BlockDesign | None, pair_bytes: int | None, free_bytes: int | None
) -> tuple[BlockDesign, tuple[str, ...]]:
    if asked is not None:
        return asked, ()
    if pair_bytes is None or free_bytes is None or pair_bytes <= MEMORY_HEADROOM * free_bytes:
        return "lockstep", ()
    note = (
        f"sequential blocks: two copies need {pair_bytes / 2**30:.1f} GiB and "
        f"{free_bytes / 2**30:.1f} GiB are free"
    )
    return "sequential", (note,)


def visited(name: str, cost: ArmCost | str) -> PilotVisited:
    """What to tell about a pilot visit."""
    if isinstance(cost, str):
        return PilotVisited(name=name, step_seconds=None, failure=cost)
    return PilotVisited(name=name, step_seconds=cost.step_seconds, failure=None)
