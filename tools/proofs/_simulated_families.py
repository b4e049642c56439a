"""Campaigns of eight features: what the corrections for many claims do to error and power."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from lanewise.measure.boundary import plan_boundary
from lanewise.measure.simulate import QUIET
from lanewise.measure.simulate_outcomes import DIFFERENT, Outcome
from lanewise.measure.stats import benjamini_hochberg, holm
from tools.proofs import Claim
from tools.proofs._simulated import NUM_BLOCKS, cell, plan, within

FEATURES = 8
ALPHA = 0.05
SCREEN_Q = 0.1
NO_CORRECTION, HOLM, SCREEN = CORRECTIONS = ("none", "Holm", "Benjamini–Hochberg, q = 10 %")


def family_table(families: int) -> tuple[list[list[str]], list[Claim]]:
    """Campaigns of eight features, all without effect or half of them with."""
    rows = [
        [
            "features with an effect",
            "looks planned at",
            "correction",
            "any false claim",
            "false share of claims",
            "effects found",
        ]
    ]
    claims = []
    planned = plan(QUIET, num_blocks=NUM_BLOCKS, with_margin=False)
    strict = replace(planned, boundary=plan_boundary(NUM_BLOCKS, alpha=ALPHA / FEATURES))
    effect = strict.smallest_effect_log
    half = FEATURES // 2
    for used, level in ((planned, "5 %"), (strict, "5 % ÷ 8")):
        null = cell(used, 0.0, num_campaigns=families * FEATURES, seed=940).outcomes
        real = cell(used, effect, num_campaigns=families * half, seed=941).outcomes
        starts = range(0, families * FEATURES, FEATURES)
        all_null = [null[start : start + FEATURES] for start in starts]
        mixed = [
            null[start : start + half] + real[start // 2 : start // 2 + half] for start in starts
        ]
        for name, campaigns, num_null in (("none", all_null, FEATURES), ("4 of 8", mixed, half)):
            for correction in CORRECTIONS:
                if used is strict and correction != HOLM:
                    continue
                any_false, share, found = _family_errors(campaigns, num_null, correction)
                shown = f"{found:.1%}" if num_null < FEATURES else "—"
                rows.append([name, level, correction, f"{any_false:.1%}", f"{share:.1%}", shown])
                where = f"{name} with an effect, looks planned at {level}"
                if correction == HOLM:
                    claims.append(within(f"Holm, {where}: any false claim", any_false, 0.0, 0.065))
                elif correction != NO_CORRECTION:
                    claims.append(
                        within(f"screen, {where}: false share of claims", share, 0.0, 0.115)
                    )
    return rows, claims


def _family_errors(
    campaigns: Sequence[Sequence[Outcome]], num_null: int, correction: str
) -> tuple[float, float, float]:
    """(any false claim, mean share of claims that are false, share of effects found)."""
    any_false, shares, found = [], [], []
    for campaign in campaigns:
        claimed = _claimed(campaign, correction)
        false, right = sum(claimed[:num_null]), sum(claimed[num_null:])
        any_false.append(false > 0)
        shares.append(false / max(false + right, 1))
        found.append(right / max(len(campaign) - num_null, 1))
    return float(np.mean(any_false)), float(np.mean(shares)), float(np.mean(found))


def _claimed(campaign: Sequence[Outcome], correction: str) -> list[bool]:
    p_values = [found.p_value for found in campaign]
    if correction == HOLM:
        kept = [p <= ALPHA for p in holm(p_values)]
    elif correction == NO_CORRECTION:
        kept = [True] * len(campaign)
    else:
        return [p <= SCREEN_Q for p in benjamini_hochberg(p_values)]
    return [ok and found.verdict in DIFFERENT for ok, found in zip(kept, campaign, strict=True)]
