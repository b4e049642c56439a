import pytest
from hypothesis import given
from hypothesis import strategies as st

from lanewise.errors import UsageError
from lanewise.lab import protocol
from lanewise.lab.plan import (
    ArmCost,
    Candidate,
    allocate,
    block_seconds,
)
from lanewise.measure.stats import mde


def cost(step: float = 0.1, setup: float = 0.5) -> ArmCost:
    return ArmCost(
        setup_seconds=setup, first_step_seconds=step, step_seconds=step, resident_bytes=None
    )


def candidate(feature: str, step: float = 0.1, setup: float = 0.5) -> Candidate:
    return Candidate(feature=feature, control=cost(step, setup), treated=cost(setup=setup))


def allot(candidates, seconds, *, design="lockstep", blocks=None):
    return allocate(candidates, seconds, finish_seconds=1.0, design=design, blocks=blocks)


def test_the_seconds_of_a_block_are_counted_step_by_step():
    # setups of 0.5 side by side, closing 2 × 1, and per arm the first step + 1 more lead step + 2 × 4 steps in quads
    seconds = block_seconds(cost(), cost(0.2), 4, finish_seconds=1.0, design="lockstep")
    assert seconds == pytest.approx(0.7 + 2.0 + 10 * 0.1 + 10 * 0.2)
    twice = block_seconds(cost(), cost(0.2), 4, finish_seconds=1.0, design="sequential")
    assert twice == pytest.approx(2 * (1.0 + 2.0 + 10 * 0.1 + 10 * 0.2))


@given(
    steps=st.lists(st.floats(0.01, 5.0), min_size=1, max_size=12),
    seconds=st.floats(20.0, 2000.0),
)
def test_the_plan_never_exceeds_what_is_available(steps, seconds):
    candidates = [candidate(f"feature_{n}", step) for n, step in enumerate(steps)]
    try:
        features = allot(candidates, seconds)
    except UsageError:
        cheapest = min(allot([c], 1e9)[0].block_seconds for c in candidates)
        fewest = block_seconds(
            cost(min(steps)), cost(), protocol.MIN_QUADS, finish_seconds=1.0, design="lockstep"
        )
        assert fewest <= cheapest
        assert protocol.MIN_BLOCKS * fewest > seconds
        return
    assert sum(f.blocks * f.block_seconds for f in features) <= seconds
    for feature in features:
        if feature.skipped_reason is None:
            assert feature.blocks >= protocol.MIN_BLOCKS
            assert feature.quads >= protocol.MIN_QUADS
        else:
            assert feature.skipped_reason.startswith("over budget: needs ~")


@pytest.mark.parametrize("seconds", [16.0, 18.0, 30.0, 60.0, 120.0, 1000.0])
@pytest.mark.parametrize("design", ["lockstep", "sequential"])
@pytest.mark.parametrize("setup", [0.5, 3.0])
def test_the_budget_buys_the_pair_that_detects_the_smallest_effect(seconds, design, setup):
    """Every pair that can be paid is tried here, with variance 1 + ratio²/quads of a block."""
    if design == "sequential" or setup > 1:
        seconds *= 8
    ratio = protocol.QUAD_NOISE_RATIO[design]
    (found,) = allot([candidate("f", setup=setup)], seconds, design=design)

    def detectable(blocks, quads):
        return mde((1 + ratio**2 / quads) ** 0.5, blocks)

    payable = [
        detectable(blocks, quads)
        for blocks in range(protocol.VERDICT_BLOCKS, protocol.MAX_BLOCKS + 1)
        for quads in range(protocol.MIN_QUADS, protocol.MAX_QUADS + 1)
        if blocks
        * block_seconds(
            cost(setup=setup), cost(setup=setup), quads, finish_seconds=1.0, design=design
        )
        <= seconds
    ]
    assert detectable(found.blocks, found.quads) == pytest.approx(min(payable))


def test_dear_setups_buy_longer_blocks_and_all_the_money_buys_all_there_is():
    cheap, dear = (allot([candidate("f", setup=s)], 120.0)[0] for s in (0.1, 20.0))
    assert dear.blocks < cheap.blocks
    assert dear.quads > cheap.quads
    most = allot([candidate("f")], 5000.0)[0]
    assert (most.blocks, most.quads) == (protocol.MAX_BLOCKS, protocol.MAX_QUADS)


def test_the_most_expensive_feature_is_dropped_first_and_by_name():
    features = allot([candidate("slow_setup", setup=40.0), candidate("cheap")], 30.0)
    assert [f.feature for f in features] == ["slow_setup", "cheap"]
    assert features[0].skipped_reason == "over budget: needs ~181 s"
    assert features[1].skipped_reason is None


def test_a_feature_that_failed_keeps_its_own_reason():
    failed = Candidate(feature="f", control=None, treated=None, failure="no C++ compiler")
    features = allot([failed, candidate("g")], 30.0)
    assert features[0].skipped_reason == "no C++ compiler"
    assert (features[0].blocks, features[0].block_seconds) == (0, 0.0)


def test_a_single_feature_may_have_two_blocks():
    assert allot([candidate("f")], 11.0)[0].blocks == 2


def test_a_budget_too_small_for_one_feature_says_what_is_needed():
    with pytest.raises(UsageError, match=r"2 blocks of f, the cheapest feature, need about 10 s"):
        allot([candidate("f")], 5.0)


def test_the_users_number_of_blocks_is_kept():
    assert allot([candidate("f")], 60.0, blocks=7)[0].blocks == 7
    with pytest.raises(UsageError, match="7 blocks"):
        allot([candidate("f")], 20.0, blocks=7)


def test_blocks_that_an_effect_needs_are_kept_per_feature():
    features = allot([candidate("f"), candidate("tax")], 600.0, blocks={"f": 14, "tax": 9})
    assert [f.blocks for f in features] == [14, 9]
    assert sum(f.blocks * f.block_seconds for f in features) <= 600.0


def test_an_effect_drops_no_feature_for_the_budget_but_says_what_is_lacking():
    # a block of five quads: 0.7 setup + 2 closing + 24 steps of 0.1 s = 5.1 s; 20 of them over two features 102 s
    with pytest.raises(UsageError) as error:
        allot([candidate("f"), candidate("g")], 60.0, blocks={"f": 10, "g": 10})
    said = str(error.value)
    assert "20 blocks over 2 features, about 102 s" in said
    assert "the budget leaves 60 s" in said
    assert "add 42 s to --budget" in said
