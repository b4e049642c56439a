from fractions import Fraction

import pytest

from lanewise.lane.expert_slots import (
    expected_real_picks,
    num_null_slots,
    num_picks,
    num_training_picks,
)
from lanewise.lane.schema import MoeSpec


def spec(**changes: object) -> MoeSpec:
    sizes = {
        "num_experts": 16,
        "top_k": 4,
        "expert_hidden_size": 8,
        "shared_expert_hidden_size": 8,
    }
    return MoeSpec.model_validate({**sizes, **changes})


@pytest.mark.parametrize(
    ("num_experts", "top_k", "ratio", "null_slots", "picks"),
    [
        (16, 4, 1.0, 0, 4),
        (16, 4, 0.5, 16, 8),
        (16, 4, 0.8, 4, 5),  # binary arithmetic says 3.9999…, 5.0
        (64, 6, 0.5, 64, 12),  # the published specialist model
        (10, 3, 0.7, 4, 5),  # 4.28… and 4.28…
        (8, 1, 0.9, 0, 2),
    ],
)
def test_slots_and_picks(
    num_experts: int, top_k: int, ratio: float, null_slots: int, picks: int
) -> None:
    moe = spec(num_experts=num_experts, top_k=top_k, real_slot_ratio=ratio)
    assert (num_null_slots(moe), num_picks(moe)) == (null_slots, picks)


def test_a_balanced_load_computes_k_experts_where_the_numbers_divide() -> None:
    for ratio in (1.0, 0.8, 0.5, 0.25):
        assert expected_real_picks(spec(real_slot_ratio=ratio)) == 4
    assert expected_real_picks(spec(num_experts=10, top_k=3, real_slot_ratio=0.7)) == Fraction(
        50, 14
    )


def test_dealt_routing_has_k_picks_all_real() -> None:
    moe = spec(num_experts=10, top_k=3, real_slot_ratio=0.7, routing_mode="forced_balanced")
    assert (num_training_picks(moe), num_picks(moe), expected_real_picks(moe)) == (3, 5, 3)
    replayed = moe.model_copy(update={"routing_mode": "replayed"})
    assert num_training_picks(replayed) == 5
