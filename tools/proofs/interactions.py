"""Interactions between features: how often one is reported where there is none, and how often a planted one is found.

Simulated are the contrasts of blocks, not the decisions of a campaign: every feature of a campaign has one series on the
bare lane and one in the full stack, of normal noise with an SD of its own (a step of the bare lane is longer and steadier).
What is tested is the code that writes the campaign's document (`measure.interactions`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

import numpy as np

from lanewise.measure.interactions import Effect, compare, interaction_tests
from tools.proofs import Claim, Proof

TRIALS = 4000
NUM_FEATURES = 8
NUM_BLOCKS = 6
SDS = (0.01, 0.03)
"""SD of a block on the bare lane and in the full stack."""
EFFECTS = (-0.9, -0.3, -0.1, -0.05, 0.0, 0.0, 0.02, 0.05)
PLANTED_SHARES = (0.5, 1.0, 1.5)
"""Planted interactions, in units of the one that the plan calls detectable."""


def run(scale: float) -> Proof:
    """Simulate campaigns without and with interactions.

    Args:
        scale: share of `TRIALS` campaigns.
    """
    started = time.monotonic()
    trials = max(1, round(TRIALS * scale))
    generator = np.random.default_rng(20261123)
    any_false, covered, explained = 0, 0, 0
    for _ in range(trials):
        tests = interaction_tests([_pair(generator, effect, 0.0) for effect in EFFECTS])
        any_false += any(test.found for test in tests)
        covered += sum(test.comparison.low <= 0 <= test.comparison.high for test in tests)
        singles = [_series(generator, effect, SDS[0]) for effect in EFFECTS]
        whole = compare([_series(generator, sum(EFFECTS), SDS[1])], singles)
        explained += whole.low <= 0 <= whole.high
    detectable = _detectable()
    rows = [["planted, in units of the detectable", "found", "its interval covers it"]]
    power = {}
    for share in PLANTED_SHARES:
        found, inside = _planted(generator, trials, share * detectable)
        power[share] = found
        rows.append([f"{share:g}", f"{found:.1%}", f"{inside:.1%}"])
    return Proof(
        name="interactions",
        title="Interactions between features",
        counts={"campaigns": trials * (1 + len(PLANTED_SHARES)), "features": NUM_FEATURES},
        claims=_claims(
            trials,
            false=any_false / trials,
            coverage=covered / (trials * NUM_FEATURES),
            explained=explained / trials,
            power=power[1.0],
        ),
        seconds=time.monotonic() - started,
        tables={f"Power at {NUM_BLOCKS} blocks, {NUM_FEATURES} features": rows},
    )


def _claims(
    trials: int, *, false: float, coverage: float, explained: float, power: float
) -> tuple[Claim, ...]:
    # Three standard errors of a simulated share are left to chance, which at full counts is about a point.
    chance = 3 * math.sqrt(0.05 * 0.95 / trials)
    power_chance = 3 * math.sqrt(0.8 * 0.2 / trials)
    return (
        Claim(
            text="A campaign without interactions reports one",
            measured=f"{false:.2%}",
            required="at most 5 %, chance of the simulation apart",
            holds=false <= 0.05 + chance,
        ),
        Claim(
            text="95 % intervals of interactions cover the truth",
            measured=f"{coverage:.2%}",
            required="93 % to 97 %",
            holds=0.93 - chance <= coverage <= 0.97 + chance,
        ),
        Claim(
            text="The interval of the gap between product and full stack covers 0 where effects add up",
            measured=f"{explained:.2%}",
            required="93 % to 97 %",
            holds=0.93 - chance <= explained <= 0.97 + chance,
        ),
        Claim(
            text="An interaction of the size called detectable is found",
            measured=f"{power:.1%}",
            required="75 % to 85 %, chance of the simulation apart",
            holds=0.75 - power_chance <= power <= 0.85 + power_chance,
        ),
    )


def _planted(generator: np.random.Generator, trials: int, size: float) -> tuple[float, float]:
    """Share of campaigns that find an interaction of the first feature, and whose interval covers it."""
    found = inside = 0
    for _ in range(trials):
        pairs = [
            _pair(generator, effect, size * (index == 0)) for index, effect in enumerate(EFFECTS)
        ]
        first = interaction_tests(pairs)[0]
        found += first.found
        inside += first.comparison.low <= size <= first.comparison.high
    return found / trials, inside / trials


def _detectable() -> float:
    """What the code calls detectable when the observed spreads are the true ones."""
    exact = [
        tuple(Effect(mean_log=0.0, sd_log=sd, num_blocks=NUM_BLOCKS) for sd in SDS)
        for _ in range(NUM_FEATURES)
    ]
    return interaction_tests([(bare, full) for bare, full in exact])[0].detectable_log


def _pair(
    generator: np.random.Generator, effect: float, interaction: float
) -> tuple[Effect, Effect]:
    return (
        _series(generator, effect, SDS[0]),
        _series(generator, effect + interaction, SDS[1]),
    )


def _series(generator: np.random.Generator, mean: float, sd: float) -> Effect:
    blocks: Sequence[float] = generator.normal(mean, sd, NUM_BLOCKS).tolist()
    return Effect(
        mean_log=float(np.mean(blocks)),
        sd_log=float(np.std(blocks, ddof=1)),
        num_blocks=NUM_BLOCKS,
    )
