"""Cells of the simulation study: one world, one plan, one true effect, many campaigns."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np

from lanewise.measure.boundary import critical_t, plan_boundary, power, smallest_effect
from lanewise.measure.looks import Question
from lanewise.measure.simulate import Floats, World, contrasts
from lanewise.measure.simulate_outcomes import Outcome, Rates, rates, replay_all
from lanewise.measure.stats import margin_log
from lanewise.receipts.decision import Boundary
from tools.proofs import Claim

NUM_BLOCKS = 12
CALIBRATION_CAMPAIGNS = 150
CALIBRATION_BLOCKS = 8
"""As many A/A blocks as the smallest calibration that may set a margin; the study pools many of them."""

Design = Literal["lockstep", "sequential"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What a campaign knows before its first block.

    Attributes:
        world: where it runs.
        design: of its blocks.
        boundary: its looks.
        margin_log: practical margin δ.
        block_sd: SD of a contrast, from simulated A/A blocks.
    """

    world: World
    design: Design
    boundary: Boundary
    margin_log: float
    block_sd: float

    @property
    def smallest_effect_log(self) -> float:
        """The effect found with 80 % power."""
        return smallest_effect(self.block_sd, self.boundary, margin_log=self.margin_log)

    def planned_power(self, effect_log: float) -> float:
        """Chance of a verdict in the effect's direction, as planned."""
        return power(effect_log, self.block_sd, self.boundary, margin_log=self.margin_log)


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """Many campaigns of one plan and one truth."""

    plan: Plan
    effect_log: float
    outcomes: tuple[Outcome, ...]

    @property
    def rates(self) -> Rates:
        """What became of them."""
        return rates(self.outcomes, self.effect_log)


@lru_cache(maxsize=8)
def calibrated_sd(world: World, design: Design) -> float:
    """Pooled SD of A/A contrasts of this world."""
    found = contrasts(
        world,
        0.0,
        num_campaigns=CALIBRATION_CAMPAIGNS,
        num_blocks=CALIBRATION_BLOCKS,
        seed=77,
        design=design,
    )
    return math.sqrt(float(np.mean(found.var(axis=1, ddof=1))))


def plan(world: World, *, num_blocks: int, with_margin: bool, design: Design = "lockstep") -> Plan:
    """A plan by the product's rules; without margin any difference counts."""
    sd = calibrated_sd(world, design)
    half_width = critical_t(CALIBRATION_BLOCKS, level=0.05) * sd / math.sqrt(CALIBRATION_BLOCKS)
    return Plan(
        world=world,
        design=design,
        boundary=plan_boundary(num_blocks),
        margin_log=margin_log(half_width) if with_margin else 0.0,
        block_sd=sd,
    )


def cell(planned: Plan, effect_log: float, *, num_campaigns: int, seed: int) -> Cell:
    """Simulate, and let the product judge."""
    seen = contrasts(
        planned.world,
        effect_log,
        num_campaigns=num_campaigns,
        num_blocks=planned.boundary.looks[-1],
        seed=seed,
        design=planned.design,
    )
    asked = Question(boundary=planned.boundary, margin_log=planned.margin_log)
    return Cell(plan=planned, effect_log=effect_log, outcomes=replay_all(seen, asked, effect_log))


def odd_contrasts(kind: str, *, num_campaigns: int, num_blocks: int, seed: int) -> Floats:
    """Contrasts of mean 0 that break an assumption of the t test.

    Raises:
        KeyError: an unknown kind.
    """
    random = np.random.Generator(np.random.PCG64(seed))
    shape = (num_campaigns, num_blocks)
    normal = random.standard_normal(shape)
    later = np.arange(num_blocks) >= num_blocks / 2
    wild = random.random(shape) < 0.05
    correlated = normal.copy()
    for index in range(1, num_blocks):
        correlated[:, index] = 0.2 * correlated[:, index - 1] + math.sqrt(0.96) * normal[:, index]
    kinds: dict[str, Floats] = {
        "normal": normal,
        "Student t, 3 degrees of freedom": random.standard_t(3, shape),
        "Laplace": random.laplace(size=shape),
        "one block in 20 is five times as wide": np.where(wild, 5 * normal, normal),
        "SD doubles halfway (fewer quads a block)": np.where(later, 2 * normal, normal),
        "SD halves halfway (more quads a block)": np.where(later, 0.5 * normal, normal),
        "neighbouring blocks correlate by 0.2": correlated,
        "skewed: exponential − 1": random.exponential(size=shape) - 1,
    }
    return kinds[kind]


ODD_KINDS = (
    "normal",
    "Student t, 3 degrees of freedom",
    "Laplace",
    "one block in 20 is five times as wide",
    "SD doubles halfway (fewer quads a block)",
    "SD halves halfway (more quads a block)",
    "neighbouring blocks correlate by 0.2",
    "skewed: exponential − 1",
)
SYMMETRIC_KINDS = ODD_KINDS[:6]


def centres(quads: Floats) -> dict[str, Floats]:
    """Ways to make one contrast of block × quad; the product takes Hodges–Lehmann, its first version the median."""
    num_quads = quads.shape[1]
    first, second = np.triu_indices(num_quads)
    ordered = np.sort(quads, axis=1)
    cut = num_quads // 5
    pairs = (quads[:, first] + quads[:, second]) / 2
    return {
        "median of quads": np.median(quads, axis=1),
        "Hodges–Lehmann": np.median(pairs, axis=1),
        "mean, a fifth trimmed at each end": ordered[:, cut : num_quads - cut].mean(axis=1),
        "mean of quads": quads.mean(axis=1),
    }


def within(text: str, share: float, low: float, high: float) -> Claim:
    """A claim that a share keeps its bounds."""
    return Claim(
        text=text,
        measured=f"{share:.2%}",
        required=f"{low:.1%} to {high:.1%}" if low else f"at most {high:.1%}",
        holds=low <= share <= high,
    )
