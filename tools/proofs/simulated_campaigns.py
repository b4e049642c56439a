"""Simulated campaigns with known truth: error rate, coverage and power of the looks, and the same for designs in use.

Everything that a campaign says here is said by the product's own functions: contrasts by `quad_contrast` and
`visit_contrast`, looks by `walk`, plans by `plan_boundary`, `power` and `smallest_effect`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from lanewise.measure import simulate_naive as naive
from lanewise.measure.boundary import plan_boundary, power, smallest_effect
from lanewise.measure.looks import Question
from lanewise.measure.simulate import QUIET, SHARED, World, contrasts, lockstep_blocks
from lanewise.measure.simulate_outcomes import rates, replay_all
from tools.proofs import Claim, Proof
from tools.proofs._simulated import (
    NUM_BLOCKS,
    ODD_KINDS,
    SYMMETRIC_KINDS,
    Cell,
    calibrated_sd,
    cell,
    centres,
    odd_contrasts,
    plan,
    within,
)
from tools.proofs._simulated_families import family_table

CAMPAIGNS = 6_000
SMALL_CELL = 4_000
FAMILIES = 2_000
WORLDS = (QUIET, SHARED)
MULTIPLES = ((0.0, "0"), (0.5, "½ MDE"), (1.0, "MDE"), (2.0, "2 MDE"))

FALSE_TABLE = "Equal arms called different, nominal 5 %"
ODD_TABLE = "Contrasts that break the assumptions of the t test, looks after 4, 8 and 12 blocks"
FAMILY_TABLE = "Campaigns of eight features"
CENTRE_TABLE = "SD of a block's contrast, by how its quads are summarised"
PEEKING_TABLE = (
    "Plain t intervals of campaigns that stop at the first significant block from 3 to 12: coverage"
)
PLANNING_TABLE = "Power of plans made from few A/A blocks, where 80 % was asked for"


def looks_table(world: World) -> str:
    """Title of a world's main table."""
    return f"Looks after 4, 8 and 12 lockstep blocks, {world.name} world"


def run(scale: float) -> Proof:
    """Simulate everything once.

    Args:
        scale: share of the counts that are claimed.
    """
    started = time.perf_counter()
    num, small = (max(40, round(count * scale)) for count in (CAMPAIGNS, SMALL_CELL))
    families = max(20, round(FAMILIES * scale))
    looks = {world.name: _cells(world, num, seed) for seed, world in enumerate(WORLDS, start=1)}
    false_rows, false_claims = _false_differences(small)
    odd_rows, odd_claims = _odd(small)
    family_rows, family_claims = family_table(families)
    tables = {FALSE_TABLE: false_rows}
    tables |= {looks_table(world): _looks_rows(looks[world.name]) for world in WORLDS}
    tables |= {ODD_TABLE: odd_rows, FAMILY_TABLE: family_rows}
    peeking_rows, peeking_claims = _peeking(small)
    tables |= {PEEKING_TABLE: peeking_rows}
    tables |= {CENTRE_TABLE: _centres(small), PLANNING_TABLE: _planning()}
    cells = [found for row in looks.values() for found in row]
    return Proof(
        name="simulated_campaigns",
        title="Simulated campaigns with known truth",
        counts={
            "campaigns_a_main_cell": num,
            "campaigns_a_small_cell": small,
            "families_of_eight_features": families,
            "cells": len(cells) + len(false_rows) - 1 + len(odd_rows) - 1,
        },
        claims=(
            *_looks_claims(looks),
            *false_claims,
            *peeking_claims,
            *odd_claims,
            *family_claims,
        ),
        tables=tables,
        seconds=time.perf_counter() - started,
    )


def _cells(world: World, num: int, seed: int) -> tuple[Cell, ...]:
    """Every truth without margin, then with the margin of a calibrated lane."""
    found = []
    for with_margin in (False, True):
        planned = plan(world, num_blocks=NUM_BLOCKS, with_margin=with_margin)
        for index, (multiple, _name) in enumerate(MULTIPLES):
            effect = multiple * planned.smallest_effect_log
            number = 100 * seed + 10 * with_margin + index
            found.append(cell(planned, effect, num_campaigns=num, seed=number))
    return tuple(found)


def _looks_rows(cells: Sequence[Cell]) -> list[list[str]]:
    rows = [
        [
            "true effect",
            "margin δ",
            "different, right side",
            "planned",
            "EQUIVALENT",
            "interval covers",
            "plain t interval covers",
            "estimate above truth",
            "mean above truth",
            "blocks of 12",
        ]
    ]
    names = [name for _, name in MULTIPLES] * 2
    for name, found in zip(names, cells, strict=True):
        seen, planned = found.rates, found.plan
        aim = planned.planned_power(found.effect_log)
        rows.append(
            [
                f"{name} ({found.effect_log:.2%})",
                f"{planned.margin_log:.2%}" if planned.margin_log else "none",
                f"{seen.in_direction:.1%}",
                f"{aim if found.effect_log else 2 * aim:.1%}",
                f"{seen.equivalent:.1%}",
                f"{seen.coverage:.1%}",
                f"{seen.naive_coverage:.1%}",
                f"{seen.unbiased_above:.0%}",
                f"{seen.mean_above:.0%}",
                f"{seen.mean_blocks:.1f}",
            ]
        )
    return rows


def _looks_claims(looks: dict[str, tuple[Cell, ...]]) -> list[Claim]:
    claims = []
    for name, cells in looks.items():
        half = len(MULTIPLES)
        null, with_margin = cells[0].rates, cells[half].rates
        claims += [
            within(f"{name}: equal arms called different, looks on", null.different, 0.035, 0.065),
            Claim(
                text=f"{name}: equal arms called different, looks and margin on",
                measured=f"{with_margin.different:.2%}",
                required="at most 5 %, and no more than without a margin",
                holds=with_margin.different <= min(0.05, null.different),
            ),
        ]
        for index, found in enumerate(cells):
            effect = MULTIPLES[index % half][1]
            place = f"{name}: true effect {effect}, {'margin on' if index >= half else 'no margin'}"
            seen = found.rates
            claims.append(within(f"{place}: 95 % interval covers", seen.coverage, 0.93, 0.97))
            if found.effect_log:
                claims.append(_as_planned(place, found))
        claims += _savings(name, cells[0], cells[half - 1])
    return claims


def _as_planned(place: str, found: Cell) -> Claim:
    aim, seen = found.plan.planned_power(found.effect_log), found.rates.in_direction
    return Claim(
        text=f"{place}: power",
        measured=f"{seen:.1%}, planned {aim:.1%}",
        required="within 5 points of the plan",
        holds=abs(seen - aim) <= 0.05,
    )


def _savings(name: str, null: Cell, twice: Cell) -> list[Claim]:
    return [
        Claim(
            text=f"{name}: blocks run of {NUM_BLOCKS}, {what}",
            measured=f"{found.rates.mean_blocks:.1f}",
            required="at most 9, a quarter saved",
            holds=found.rates.mean_blocks <= 0.75 * NUM_BLOCKS,
        )
        for what, found in (("no effect", null), ("twice the MDE", twice))
    ]


def _false_differences(num: int) -> tuple[list[list[str]], list[Claim]]:
    """The designs in use and ours, on both machines."""
    rows = [["design", *(world.name for world in WORLDS), "holds 3.5–6.5 %"]]
    claims = []
    for name, ours, rate in _designs(num):
        seen = [rate(world) for world in WORLDS]
        holds = all(0.035 <= share <= 0.065 for share in seen)
        rows.append([name, *(f"{share:.1%}" for share in seen), "yes" if holds else "no"])
        if ours:
            claims += [
                within(f"{world.name}: equal arms called different, {name}", share, 0.035, 0.065)
                for world, share in zip(WORLDS, seen, strict=True)
            ]
        else:
            claims.append(
                Claim(
                    text=f"naive design fails: {name}",
                    measured=", ".join(f"{share:.1%}" for share in seen),
                    required="above 6.5 % in both worlds",
                    holds=min(seen) > 0.065,
                )
            )
    return rows, claims


def _designs(num: int) -> list[tuple[str, bool, Callable[[World], float]]]:
    """(name, ours, share of equal arms that it calls different)."""
    blocks = {
        world.name: contrasts(
            world, 0.0, num_campaigns=num, num_blocks=NUM_BLOCKS, seed=900 + index
        )
        for index, world in enumerate(WORLDS)
    }

    def one_run(world: World, num_steps: int) -> float:
        return naive.one_run_per_arm(world, num_steps=num_steps, num_campaigns=num, seed=910)

    def in_a_row(world: World, runs: int) -> float:
        return naive.arms_in_a_row(
            world, runs_per_arm=runs, num_steps=50, num_campaigns=num, seed=911
        )

    def looks(world: World, num_blocks: int, design: str) -> float:
        planned = plan(
            world,
            num_blocks=num_blocks,
            with_margin=False,
            design="sequential" if design == "sequential" else "lockstep",
        )
        return cell(planned, 0.0, num_campaigns=num, seed=920 + num_blocks).rates.different

    return [
        ("one run an arm, Mann–Whitney over 50 steps", False, partial(one_run, num_steps=50)),
        ("one run an arm, Mann–Whitney over 200 steps", False, partial(one_run, num_steps=200)),
        ("AAAA BBBB, t test over run medians", False, partial(in_a_row, runs=4)),
        ("8 runs of A, then 8 of B, t test over medians", False, partial(in_a_row, runs=8)),
        (
            "blocks, t test at 5 % after every block from 3 to 12",
            False,
            lambda world: naive.peeking(blocks[world.name]),
        ),
        (
            "6 blocks, percentile bootstrap",
            False,
            lambda world: naive.percentile_bootstrap(blocks[world.name][:, :6], seed=912),
        ),
        ("lanewise: 6 lockstep blocks", True, partial(looks, num_blocks=6, design="lockstep")),
        ("lanewise: 8 lockstep blocks", True, partial(looks, num_blocks=8, design="lockstep")),
        ("lanewise: 12 lockstep blocks", True, partial(looks, num_blocks=12, design="lockstep")),
        (
            "lanewise: 12 sequential blocks",
            True,
            partial(looks, num_blocks=12, design="sequential"),
        ),
    ]


def _peeking(num: int) -> tuple[list[list[str]], list[Claim]]:
    rows = [["true effect, in MDEs of 12 blocks", *(world.name for world in WORLDS)]]
    claims = []
    for multiple, name in MULTIPLES:
        seen = []
        for index, world in enumerate(WORLDS):
            planned = plan(world, num_blocks=NUM_BLOCKS, with_margin=False)
            effect = multiple * planned.smallest_effect_log
            blocks = contrasts(
                world, effect, num_campaigns=num, num_blocks=NUM_BLOCKS, seed=970 + index
            )
            seen.append(naive.peeking_coverage(blocks, effect))
        rows.append([name, *(f"{share:.1%}" for share in seen)])
        if multiple == 0.0:
            claims.append(
                Claim(
                    text="naive interval fails: plain t after peeking, no effect",
                    measured=", ".join(f"{share:.1%}" for share in seen),
                    required="covers less than 93 % in both worlds",
                    holds=max(seen) < 0.93,
                )
            )
    return rows, claims


def _odd(num: int) -> tuple[list[list[str]], list[Claim]]:
    asked = Question(boundary=plan_boundary(NUM_BLOCKS), margin_log=0.0)
    rows = [["contrasts", "called different", "interval covers 0"]]
    claims = []
    for index, kind in enumerate(ODD_KINDS):
        seen = odd_contrasts(kind, num_campaigns=num, num_blocks=NUM_BLOCKS, seed=930 + index)
        found = rates(replay_all(seen, asked, 0.0), 0.0)
        rows.append([kind, f"{found.different:.1%}", f"{found.coverage:.1%}"])
        if kind in SYMMETRIC_KINDS:
            claims.append(
                Claim(
                    text=f"equal arms called different, contrasts {kind}",
                    measured=f"{found.different:.2%}",
                    required="at most 6.5 %",
                    holds=found.different <= 0.065,
                )
            )
    return rows, claims


def _centres(num: int) -> list[list[str]]:
    """SD of contrasts made in other ways; what process effects add is the same for all."""
    by_world: list[dict[str, float]] = []
    for world in WORLDS:
        blocks = lockstep_blocks(world, 0.0, num_campaigns=num, num_blocks=2, seed=950)
        quads = np.concatenate(
            [
                np.log(block.treated[:, 0] / block.control[:, 0])
                .reshape(num, world.num_quads, -1)
                .mean(axis=2)
                for block in blocks
            ]
        )
        by_world.append({name: float(found.std()) for name, found in centres(quads).items()})
    return [
        ["contrast", *(world.name for world in WORLDS)],
        *([name, *(f"{found[name]:.3%}" for found in by_world)] for name in by_world[0]),
    ]


def _planning() -> list[list[str]]:
    """A plan takes the SD of its calibration for the truth; few blocks know it badly."""
    boundary = plan_boundary(NUM_BLOCKS)
    random = np.random.Generator(np.random.PCG64(960))
    sd = calibrated_sd(QUIET, "lockstep")
    in_sds = smallest_effect(1.0, boundary)
    rows = [["A/A blocks", "mean power", "plans below 60 %", "plans above 95 %"]]
    for num_blocks in (8, 16, 32):
        drawn = sd * np.sqrt(random.chisquare(num_blocks - 1, 400) / (num_blocks - 1))
        powers = np.array([power(in_sds * guess, sd, boundary) for guess in drawn])
        rows.append(
            [
                str(num_blocks),
                f"{powers.mean():.0%}",
                f"{(powers < 0.6).mean():.0%}",
                f"{(powers > 0.95).mean():.0%}",
            ]
        )
    return rows
