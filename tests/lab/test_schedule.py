from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from lanewise.lab.schedule import block_order, block_seed, first_arm, quad_order

SEEDS = st.integers(0, 2**31 - 1)


@given(
    seed=SEEDS, blocks=st.dictionaries(st.text("abcdef", min_size=1), st.integers(1, 6), max_size=5)
)
def test_every_block_runs_once_and_rounds_do_not_mix(seed, blocks):
    order = block_order(seed, blocks)
    assert Counter(feature for feature, _ in order) == Counter(blocks)
    assert len(set(order)) == len(order)
    assert [block for _, block in order] == sorted(block for _, block in order)


@given(seed=SEEDS, num_quads=st.integers(0, 40))
def test_quads_are_balanced_and_seeded(seed, num_quads):
    order = quad_order(seed, num_quads)
    assert len(order) == num_quads
    assert abs(order.count("ABBA") - order.count("BAAB")) <= 1
    assert order == quad_order(seed, num_quads)


def test_seeds_differ_between_blocks_and_attempts():
    seeds = {
        block_seed(0, feature, block, attempt)
        for feature in ("fused_moe", "fused_mamba")
        for block in range(1, 9)
        for attempt in (1, 2)
    }
    assert len(seeds) == 32


def test_either_arm_may_start():
    starts = Counter(first_arm(seed) for seed in range(400))
    assert 150 < starts["A"] < 250
