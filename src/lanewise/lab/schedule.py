"""Randomised order: of features over time, of arms in a quad, of who is started first. All from one seed.

Blocks of different features take turns (block 1 of every feature, then block 2 …), so that a machine that slows down
over minutes does not fall on one feature. Each block draws from its own generator, so a resumed campaign runs the
missing blocks exactly as they were planned.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping
from typing import Literal

ArmName = Literal["A", "B"]

FORWARD = "ABBA"
BACKWARD = "BAAB"


def block_seed(campaign_seed: int, feature: str, block: int, attempt: int) -> int:
    """A 31-bit seed for one attempt at one block."""
    text = f"{campaign_seed}/{feature}/{block}/{attempt}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") >> 1


def block_order(campaign_seed: int, blocks: Mapping[str, int]) -> tuple[tuple[str, int], ...]:
    """(feature, block) in the order to run them: rounds over features, shuffled within each round; blocks count from 1.

    Args:
        campaign_seed: seed of the campaign.
        blocks: feature → number of blocks.
    """
    rng = random.Random(campaign_seed)
    order: list[tuple[str, int]] = []
    for block in range(1, max(blocks.values(), default=0) + 1):
        round_ = [feature for feature, count in blocks.items() if block <= count]
        rng.shuffle(round_)
        order += [(feature, block) for feature in round_]
    return tuple(order)


def quad_order(seed: int, num_quads: int) -> tuple[str, ...]:
    """`ABBA` and `BAAB` in random order, as many of one as of the other (± 1)."""
    rng = random.Random(seed)
    quads = [FORWARD, BACKWARD] * (num_quads // 2)
    if num_quads % 2:
        quads.append(rng.choice((FORWARD, BACKWARD)))
    rng.shuffle(quads)
    return tuple(quads)


def first_arm(seed: int) -> ArmName:
    """Which arm's process is started first. Drawn apart from the quads, so that the two are independent."""
    return "A" if random.Random(f"start/{seed}").random() < 0.5 else "B"
