"""Warm-up of arms that take turns: what both share is no warm-up, what one does alone is."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lanewise.measure.steady_pair import PAIR_RULE, detect_pair_warmup
from lanewise.receipts.schema import Warmup

LEAD = 2


def arms(
    difference_log: list[float],
    *,
    shared_log: list[float] | None = None,
    noise: float = 0.02,
    seed: int = 0,
) -> tuple[list[float], list[float]]:
    """Steps of both arms: two lead steps, then two for each quad; B is slower than A by the given difference of each quad."""
    num_steps = LEAD + 2 * len(difference_log)
    rng = np.random.Generator(np.random.PCG64(seed))
    shared = np.repeat(shared_log or [0.0] * len(difference_log), 2)
    shared = np.concatenate((shared[:1], shared[:1], shared))
    difference = np.concatenate(([0.0, 0.0], np.repeat(difference_log, 2)))
    control = shared + rng.normal(0.0, noise, num_steps)
    treated = shared + difference + rng.normal(0.0, noise, num_steps)
    return list(0.1 * np.exp(control)), list(0.1 * np.exp(treated))


def detect(pair: tuple[list[float], list[float]], tagged: frozenset[int] = frozenset()) -> Warmup:
    return detect_pair_warmup(*pair, tagged=tagged, lead_steps=LEAD)


@pytest.mark.parametrize("noise", [0.0003, 0.01, 0.1])
@pytest.mark.parametrize("quads", [6, 20, 64])
@pytest.mark.parametrize("effect", [0.0, -0.4])
def test_a_constant_difference_keeps_every_quad(noise: float, quads: int, effect: float):
    found = detect(arms([effect] * quads, noise=noise))
    assert (found.steps, found.steady, found.rule) == (LEAD, True, PAIR_RULE)


def test_what_both_arms_share_is_no_warm_up():
    """A machine that gets 30 % faster in jumps and drifts: each arm by itself would have dropped most of the block."""
    shared = [0.3] * 5 + [0.1] * 5 + [0.02 * (10 - i) for i in range(10)]
    found = detect(arms([0.05] * 20, shared_log=shared, noise=0.01))
    assert (found.steps, found.steady) == (LEAD, True)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("num_warm", [2, 3, 8])
def test_one_arm_that_starts_otherwise_is_dropped_exactly(sign: int, num_warm: int):
    found = detect(arms([sign * 0.5] * num_warm + [0.0] * 20))
    assert (found.steps, found.steady) == (LEAD + 2 * num_warm, True)
    assert "at first it was " + ("+" if sign > 0 else "-") in found.reason


def test_a_disturbance_of_one_arm_that_passes_costs_nothing_before_it():
    found = detect(arms([0.0] * 12 + [0.4] * 3 + [0.0] * 12))
    assert (found.steps, found.steady) == (LEAD, True)


def test_a_difference_that_changes_at_the_end_has_no_steady_state():
    found = detect(arms([0.0] * 10 + [0.3] * 10 + [0.6] * 4, seed=1))
    assert (found.steps, found.steady) == (50, False)
    assert "no level holds for half of its 24 quads; the last has 4" in found.reason


def test_a_start_longer_than_half_of_the_block_is_no_warm_up():
    assert detect(arms([0.3] * 10 + [0.0] * 10)).steps == LEAD + 20
    assert not detect(arms([0.3] * 11 + [0.0] * 9)).steady


def test_one_arm_that_slowly_gains_on_the_other_has_no_steady_difference():
    found = detect(arms([0.01 * i for i in range(12)], noise=0.05, seed=4))
    assert not found.steady
    assert "drifts by" in found.reason


def test_starts_with_the_first_quad_after_the_last_tagged_step_of_either_arm():
    pair = arms([0.0] * 20)
    assert detect(pair, frozenset({0, 1})).steps == LEAD
    assert detect(pair, frozenset({0, 2})).steps == LEAD + 2
    assert detect(pair, frozenset({3})).steps == LEAD + 2
    found = detect(pair, frozenset({5}))
    assert (found.steps, found.steady) == (6, True)
    assert "after the last tagged step (5)" in found.reason


@pytest.mark.parametrize(("last_tagged", "steady"), [(31, True), (32, False), (41, False)])
def test_ten_quiet_steps_follow_the_last_tagged_one(last_tagged: int, steady: bool):
    found = detect(arms([0.0] * 20), frozenset({last_tagged}))
    assert found.steady is steady
    if not steady:
        assert f"steps since the last tagged step ({last_tagged}), 10 are needed" in found.reason


@pytest.mark.parametrize("quads", [1, 2])
def test_too_few_quads_say_how_many_are_needed(quads: int):
    found = detect(arms([0.0] * quads))
    assert (found.steps, found.steady) == (LEAD + 2 * quads, False)
    assert f"{quads} quads, 3 are needed" in found.reason


def test_three_quads_are_enough_and_prove_no_drift():
    found = [detect(arms([0.0] * 3, noise=0.08, seed=seed)) for seed in range(100)]
    assert sum(warmup.steady for warmup in found) >= 90


def test_noise_alone_rarely_costs_quads():
    """Flat differences with shared random walk and spikes: long-run rates are 0.99 steady and 0.95 whole."""
    rng = np.random.Generator(np.random.PCG64(1))
    steady = whole = 0
    for seed in range(200):
        shared = list(np.cumsum(rng.normal(0.0, 0.03, 20)))
        control, treated = arms([0.0] * 20, shared_log=shared, noise=0.08, seed=seed)
        for steps in (control, treated):
            for index in np.flatnonzero(rng.random(len(steps)) < 0.1):
                steps[index] *= math.exp(rng.exponential(0.4))
        found = detect((control, treated))
        steady += found.steady
        whole += found.steady and found.steps == LEAD
    assert steady >= 194  # three SE of 200 blocks below
    assert whole >= 180


def test_arms_of_different_length_and_half_quads_are_refused():
    control, treated = arms([0.0] * 8)
    with pytest.raises(ValueError, match="16 and 14 steps"):
        detect((control, treated[:-2]))
    with pytest.raises(ValueError, match="no whole number of quads"):
        detect((control[:-1], treated[:-1]))
    with pytest.raises(ValueError, match="positive and finite"):
        detect((control, [*treated[:-1], 0.0]))


@settings(max_examples=25, deadline=None)
@given(unit=st.floats(1e-6, 1e6), num_warm=st.integers(0, 6), seed=st.integers(0, 1000))
def test_neither_the_unit_nor_the_name_of_an_arm_matters(unit: float, num_warm: int, seed: int):
    control, treated = arms([0.4] * num_warm + [0.0] * 20, seed=seed)
    one = detect((control, treated))
    scaled = detect(([value * unit for value in control], [value * unit for value in treated]))
    swapped = detect((treated, control))
    assert (one.steps, one.steady) == (scaled.steps, scaled.steady)
    assert (one.steps, one.steady) == (swapped.steps, swapped.steady)
