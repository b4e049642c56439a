"""How a budget is spent: which features, how many blocks, how many quads. Decided before anything is measured.

A block's contrast has variance σ_b² + σ_q²/q over q quads, a block costs its setup and q quads, and few blocks pay in t
quantiles. For every number of blocks the budget buys some quads; the pair that detects the smallest effect is taken, with
σ_q/σ_b as `protocol.QUAD_NOISE_RATIO` has it. What does not fit is dropped by name, the most expensive first, because a
cheap feature gives the same information for less. Where a person names the effect to find, blocks follow from it
(`lab.detect`), and the budget only has to hold them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import Field

from lanewise.errors import UsageError
from lanewise.lab import protocol
from lanewise.lab.keys import Design, Verb, split_key
from lanewise.lab.multiplicity import planned_alpha
from lanewise.lab.protocol import BlockDesign, Claims
from lanewise.lane.schema import Lane
from lanewise.measure.stats import mde
from lanewise.receipts.decision import Boundary, Margin
from lanewise.receipts.schema import Record

PLAN_SCHEMA_VERSION = "1.1.0"
"""One version a release: fields gather under the next minor until it is released. A newer minor than its own no program runs.

1.0  one look at 5 %, after all blocks.
1.1  looks, detectable effects, and `FIELDS_SINCE_1_1`; blocks that toggle both arms in one process.
"""

FIELDS_SINCE_1_1 = frozenset(
    (
        *("planted_ratio", "pinned", "cache", "mode", "claims", "effect_log", "steps"),
        *("target_loss", "screen_design", "confirm_noise_log", "factors", "left_out", "started_by"),
    )
)
"""Optional fields of a plan that 1.0 did not know; each has the default that a plan of 1.0 means."""

RESERVE_RATIO = 0.06
"""Share of the budget kept for analysis, the report and a machine that turns slow."""

PARALLEL_SETUP_RATIO = 0.4
"""Two children that build at the same time take the longer setup and about this share of the shorter one (2 cores)."""


class ArmCost(Record):
    """What one process of one configuration costs, from its pilot visit. Seconds."""

    setup_seconds: float
    first_step_seconds: float
    step_seconds: float
    resident_bytes: int | None


class FeaturePlan(Record):
    """One feature's share of the campaign.

    `skipped_reason` set means that nothing will be measured and why; then the numbers are 0 and there is no boundary.
    """

    feature: str
    blocks: int
    quads: int
    block_seconds: float
    control: ArmCost | None
    treated: ArmCost | None
    skipped_reason: str | None = None
    boundary: Boundary | None = None
    """Looks and levels; null in plans of 1.0, which looked once."""
    detectable_log: float | None = None
    """Smallest effect (of a tax: distance from its budget) that these looks find with 80 % power at the planned noise."""


class CampaignPlan(Record):
    """Everything a campaign needs to run, and to be resumed or analysed without the command that started it."""

    schema_version: str = PLAN_SCHEMA_VERSION
    campaign_id: str
    created_at: str
    lane: Lane
    data_path: str | None
    machine_class: str
    device_type: Literal["cpu", "cuda"]
    design: Design
    block_design: BlockDesign
    budget_seconds: float
    order_seed: int
    num_threads: int
    finish_seconds: float
    pilot_seconds: float
    features: tuple[FeaturePlan, ...]
    margin: Margin
    noise_log: float
    noise_source: str
    planned_mde_log: float
    planted_ratio: float | None = None
    pinned: bool = False
    """Whether training processes are kept to processors of their own."""
    cache: Literal["warm", "cold"] | None = None
    """State of the private compile caches; None in plans that left the compilers' own."""
    notes: tuple[str, ...] = ()
    screen_design: Literal["toggle", "plackett-burman"] | None = None
    """How a screen varies the features; null in a campaign that is none."""
    confirm_noise_log: float | None = None
    """Expected SD of a lockstep block, by which a screen prices the campaign it suggests; null in a campaign that is none."""
    factors: tuple[str, ...] = ()
    """Features of a screening design, in the order of its columns."""
    left_out: dict[str, str] = Field(default_factory=dict)
    """Features that a screening design does without, and why."""
    mode: Literal["confirm", "screen"] = "confirm"
    claims: Claims = "each"
    """What shares 5 %: the looks of each feature, or those of all features together. It is in their boundaries."""
    effect_log: float | None = None
    """Effect that the blocks were chosen to find; null where the budget or a number of blocks decided."""
    steps: int | None = None
    """Optimizer steps of each run, neither more nor fewer; null where the clock decides how many quads a block has."""
    target_loss: float | None = None
    """Loss in nats per token whose time is compared; null takes the worse of both arms' last losses of each seed."""
    started_by: Verb | None = None
    """The command that made the plan, which alone resumes it; null in plans that did not say."""

    @property
    def planned(self) -> tuple[FeaturePlan, ...]:
        """Features that will be measured."""
        return tuple(feature for feature in self.features if feature.skipped_reason is None)

    @property
    def blocks(self) -> dict[str, int]:
        """Feature → number of blocks."""
        return {feature.feature: feature.blocks for feature in self.planned}

    @property
    def estimated_seconds(self) -> float:
        """What all blocks are expected to take."""
        return sum(feature.blocks * feature.block_seconds for feature in self.planned)

    def feature(self, key: str) -> FeaturePlan:
        """The plan of one feature."""
        return next(feature for feature in self.features if feature.feature == key)


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """A feature with what its arms cost; `failure` set means that it cannot be measured."""

    feature: str
    control: ArmCost | None
    treated: ArmCost | None
    failure: str | None = None


def block_seconds(
    control: ArmCost, treated: ArmCost, quads: int, *, finish_seconds: float, design: BlockDesign
) -> float:
    """Expected seconds of one block of fresh processes.

    Args:
        control: cost of arm A.
        treated: cost of arm B.
        quads: quads in lockstep; in a sequential block each of the two visits of an arm takes as many steps as all
            quads give one arm.
        finish_seconds: from the last step of a visit to its receipt.
        design: lockstep starts each arm once, sequential twice, toggle builds both in one process.
    """
    steps = protocol.steps_of(quads) - 1
    stepping = sum(arm.first_step_seconds + steps * arm.step_seconds for arm in (control, treated))
    setups = sorted((control.setup_seconds, treated.setup_seconds))
    if design == "toggle":
        return sum(setups) + 2 * finish_seconds + stepping
    if design == "lockstep":
        return PARALLEL_SETUP_RATIO * setups[0] + setups[1] + 2 * finish_seconds + stepping
    return 2 * (sum(setups) + 2 * finish_seconds + stepping)


def allocate(
    candidates: Sequence[Candidate],
    available_seconds: float,
    *,
    finish_seconds: float,
    design: BlockDesign,
    blocks: int | Mapping[str, int] | None = None,
    claims: Claims = "each",
    fixed_quads: int | None = None,
) -> tuple[FeaturePlan, ...]:
    """Spend the seconds on blocks and quads, in the order of the candidates.

    Args:
        candidates: features with their costs.
        available_seconds: what is left of the budget after the pilot and the reserve.
        finish_seconds: overhead of closing a visit.
        design: how a block is run.
        blocks: blocks per feature, fixed by the user; None lets the budget decide. Feature → blocks are what an effect
            needs: then none of them is dropped for the budget.
        claims: what shares 5 %; a stricter level is better served by more and shorter blocks.
        fixed_quads: quads of every block, fixed by the user; None lets the budget decide.

    Raises:
        UsageError: not even the cheapest feature fits, or not all of those whose blocks an effect asks for.
    """
    fewest_quads = fixed_quads or protocol.MIN_QUADS
    prices = _Prices(
        finish_seconds=finish_seconds,
        design=design,
        fewest_quads=fewest_quads,
        most_quads=fixed_quads or protocol.MAX_QUADS,
    )
    kept = sorted(
        (c for c in candidates if c.failure is None),
        key=lambda candidate: prices.block(candidate, fewest_quads),
    )
    if isinstance(blocks, Mapping):
        counts, fewest = dict(blocks), protocol.VERDICT_BLOCKS
        quads = _promised(kept, blocks, prices, available_seconds)
    else:
        fewest = blocks or protocol.VERDICT_BLOCKS
        kept, wanted, quads = _affordable(kept, blocks, prices, available_seconds, claims)
        counts = {candidate.feature: wanted for candidate in kept}
    return tuple(
        _planned(candidate, counts[candidate.feature], quads, prices)
        if candidate in kept
        else _skipped(candidate, fewest, prices)
        for candidate in candidates
    )


def _affordable(
    kept: list[Candidate],
    blocks: int | None,
    prices: _Prices,
    available_seconds: float,
    claims: Claims,
) -> tuple[list[Candidate], int, int]:
    """Features, blocks of each and quads that the seconds pay for."""
    wanted = blocks or protocol.VERDICT_BLOCKS

    def total(num_blocks: int, num_quads: int) -> float:
        return prices.total({c.feature: num_blocks for c in kept}, kept, num_quads)

    def fits(num_blocks: int, num_quads: int) -> bool:
        return total(num_blocks, num_quads) <= available_seconds

    fewest_quads = prices.fewest_quads
    while len({_subject(c) for c in kept}) > 1 and not fits(wanted, fewest_quads):
        # A feature measured from both bases goes as a whole: one effect alone says nothing about interactions.
        dropped = _subject(kept[-1])
        kept = [candidate for candidate in kept if _subject(candidate) != dropped]
    if kept and not fits(wanted, fewest_quads):
        wanted = blocks or protocol.MIN_BLOCKS
        if not fits(wanted, fewest_quads):
            long = f" of {protocol.steps_of(fewest_quads)} steps an arm" if prices.is_fixed else ""
            raise UsageError(
                f"the budget leaves {max(available_seconds, 0.0):.0f} s after the pilot, and {wanted} blocks{long} of "
                f"{kept[0].feature}, the cheapest feature, need about {total(wanted, fewest_quads):.0f} s; "
                f"give a larger --budget{' or fewer --steps' if prices.is_fixed else ''}"
            )
    most = wanted if blocks is not None else max(wanted, protocol.MAX_BLOCKS)
    alpha = planned_alpha(claims, [candidate.feature for candidate in kept])
    return kept, *_sharpest(range(wanted, most + 1), fits, prices, alpha)


def _subject(candidate: Candidate) -> str:
    return split_key(candidate.feature)[0]


def _promised(
    kept: Sequence[Candidate],
    blocks: Mapping[str, int],
    prices: _Prices,
    available_seconds: float,
) -> int:
    """Quads that the seconds pay for beside the blocks that an effect needs."""
    needed = prices.total(blocks, kept, prices.fewest_quads)
    if needed > available_seconds:
        total = sum(blocks[candidate.feature] for candidate in kept)
        raise UsageError(
            f"this effect needs {total} blocks over {len(kept)} feature{'s' * (len(kept) > 1)}, about {needed:.0f} s, "
            f"and the budget leaves {max(available_seconds, 0.0):.0f} s after the pilot; add {needed - available_seconds:.0f} s "
            "to --budget and a little more, name fewer --feature, or ask for a larger --effect"
            + (" or fewer --steps" if prices.is_fixed else "")
        )
    return _grow(
        prices.fewest_quads,
        prices.most_quads,
        lambda q: prices.total(blocks, kept, q) <= available_seconds,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Prices:
    """What blocks cost, and how long they may be."""

    finish_seconds: float
    design: BlockDesign
    fewest_quads: int
    most_quads: int

    @property
    def is_fixed(self) -> bool:
        """Whether a person fixed the length of blocks."""
        return self.fewest_quads == self.most_quads

    def block(self, candidate: Candidate, quads: int) -> float:
        assert candidate.control is not None, "a candidate without a failure has costs"
        assert candidate.treated is not None, "a candidate without a failure has costs"
        return block_seconds(
            candidate.control,
            candidate.treated,
            quads,
            finish_seconds=self.finish_seconds,
            design=self.design,
        )

    def total(self, blocks: Mapping[str, int], kept: Sequence[Candidate], quads: int) -> float:
        return sum(blocks[candidate.feature] * self.block(candidate, quads) for candidate in kept)


def _planned(candidate: Candidate, num_blocks: int, quads: int, prices: _Prices) -> FeaturePlan:
    return FeaturePlan(
        feature=candidate.feature,
        blocks=num_blocks,
        quads=quads,
        block_seconds=prices.block(candidate, quads),
        control=candidate.control,
        treated=candidate.treated,
    )


def _skipped(candidate: Candidate, num_blocks: int, prices: _Prices) -> FeaturePlan:
    reason = candidate.failure
    if reason is None:
        needed = num_blocks * prices.block(candidate, prices.fewest_quads)
        reason = f"over budget: needs ~{needed:.0f} s"
    return FeaturePlan(
        feature=candidate.feature,
        blocks=0,
        quads=0,
        block_seconds=0.0,
        control=candidate.control,
        treated=candidate.treated,
        skipped_reason=reason,
    )


def _sharpest(
    choices: Sequence[int], fits: Callable[[int, int], bool], prices: _Prices, alpha: float
) -> tuple[int, int]:
    """Blocks and quads that fit and detect the smallest effect; the fewest blocks where nothing fits.

    Args:
        choices: numbers of blocks, rising.
        fits: whether so many blocks of so many quads can be paid.
        prices: how many quads a block may have, and how it is run.
        alpha: two-sided level of the test.
    """
    quad_noise_ratio = protocol.QUAD_NOISE_RATIO[prices.design]
    fewest_quads = prices.fewest_quads

    def most_quads(num_blocks: int) -> int:
        return _grow(fewest_quads, prices.most_quads, lambda quads: fits(num_blocks, quads))

    payable = [num_blocks for num_blocks in choices if fits(num_blocks, fewest_quads)]
    found = [(num_blocks, most_quads(num_blocks)) for num_blocks in payable]

    def detectable(pair: tuple[int, int]) -> float:
        num_blocks, quads = pair
        return mde(math.sqrt(1.0 + quad_noise_ratio**2 / quads), num_blocks, alpha=alpha)

    return min(found, key=detectable, default=(choices[0], fewest_quads))


def _grow(value: int, limit: int, fits: Callable[[int], bool]) -> int:
    while value < limit and fits(value + 1):
        value += 1
    return value
