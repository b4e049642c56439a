"""Null slots of a mixture of experts in numbers: how many there are, how many picks a token has, how many of them compute.

With a real-slot ratio ρ < 1 the top-k picks from E real experts and M null slots (null experts: AdaMoE, arXiv 2406.13233)
and a pick of a null slot computes nothing:

    M = ⌊E(1 − ρ) / ρ⌋        k_max = ⌈k / ρ⌉        expected real picks = k_max · E / (E + M)

so that under a load that is the same on every slot a token meets about k real experts, as it would with ρ = 1. ρ is
taken as the decimal number that was written (0.8 is 4/5), never as its binary neighbour.
"""

from __future__ import annotations

import math
from fractions import Fraction

from lanewise.lane.schema import MoeSpec


def num_null_slots(spec: MoeSpec) -> int:
    """M: null slots that join the choice; 0 for ρ = 1."""
    ratio = _ratio(spec)
    return math.floor(spec.num_experts * (1 - ratio) / ratio)


def num_picks(spec: MoeSpec) -> int:
    """k_max: slots a token picks when it chooses; k for ρ = 1."""
    return math.ceil(spec.top_k / _ratio(spec))


def num_training_picks(spec: MoeSpec) -> int:
    """Picks of a token in training: k_max, or k when the routing is dealt, since null slots are not dealt."""
    return spec.top_k if spec.routing_mode == "forced_balanced" else num_picks(spec)


def expected_real_picks(spec: MoeSpec) -> Fraction:
    """Real experts a token meets on average when every slot, real or null, is picked equally often.

    What a run really did stands in its receipt (`routing.null_ratio`): the routing bias drives towards this number, it
    does not enforce it.
    """
    if spec.routing_mode == "forced_balanced":
        return Fraction(spec.top_k)
    num_slots = spec.num_experts + num_null_slots(spec)
    return Fraction(num_picks(spec) * spec.num_experts, num_slots)


def _ratio(spec: MoeSpec) -> Fraction:
    return Fraction(repr(spec.real_slot_ratio))
