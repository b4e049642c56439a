import dataclasses

import numpy as np
import pytest
from scipy import stats as scipy_stats

from lanewise.measure import simulate
from lanewise.measure.simulate import QUIET, SHARED, World
from lanewise.measure.stats import quad_contrast, visit_contrast

STILL = World(
    name="still",
    step_seconds=0.5,
    launch_seconds=10.0,
    drift_sd=0.0,
    drift_seconds=600.0,
    process_sd=0.0,
    step_sd=0.0,
    step_correlation=0.0,
    tail_freedom=None,
    spike_ratio=0.0,
    spike_log=1.0,
    num_quads=5,
)


def only(**disturbances: float) -> World:
    return dataclasses.replace(STILL, **disturbances)


@pytest.mark.parametrize("design", ["lockstep", "sequential"])
def test_a_still_world_shows_the_planted_effect_exactly(design: str):
    found = simulate.contrasts(STILL, 0.05, num_campaigns=3, num_blocks=4, seed=1, design=design)
    assert found.shape == (3, 4)
    assert found == pytest.approx(np.full((3, 4), 0.05))


@pytest.mark.parametrize("design", ["lockstep", "sequential"])
def test_effects_add_to_contrasts_whatever_disturbs_them(design: str):
    null, planted = (
        simulate.contrasts(SHARED, effect, num_campaigns=2, num_blocks=3, seed=2, design=design)
        for effect in (0.0, 0.07)
    )
    assert planted == pytest.approx(null + 0.07)


def test_contrasts_are_made_by_the_functions_of_the_product():
    lockstep = next(
        iter(simulate.lockstep_blocks(QUIET, 0.01, num_campaigns=2, num_blocks=1, seed=3))
    )
    found = simulate.contrasts(QUIET, 0.01, num_campaigns=2, num_blocks=1, seed=3)
    assert found[1, 0] == quad_contrast(
        lockstep.control[1, 0].tolist(), lockstep.treated[1, 0].tolist()
    )
    assert lockstep.control.shape == (2, 1, 2 * QUIET.num_quads)
    sequential = next(
        iter(simulate.sequential_blocks(QUIET, 0.01, num_campaigns=2, num_blocks=1, seed=3))
    )
    found = simulate.contrasts(
        QUIET, 0.01, num_campaigns=2, num_blocks=1, seed=3, design="sequential"
    )
    assert found[1, 0] == visit_contrast(
        sequential.control[1].tolist(), sequential.treated[1].tolist()
    )
    assert sequential.control.shape == (2, 2, 2 * QUIET.num_quads)


def test_process_effects_are_those_of_two_fresh_processes():
    found = simulate.contrasts(
        only(process_sd=0.01), 0.0, num_campaigns=2_000, num_blocks=2, seed=4
    )
    assert found.std() == pytest.approx(0.01 * np.sqrt(2), rel=0.05)
    assert abs(np.corrcoef(found[:, 0], found[:, 1])[0, 1]) < 0.08


def test_drift_is_an_ornstein_uhlenbeck_process_over_wall_time():
    world = only(drift_sd=0.02, drift_seconds=20.0, step_seconds=1.0, launch_seconds=40.0)
    visits = np.log(
        simulate.visits_in_a_row(world, num_campaigns=3_000, num_visits=2, num_steps=21, seed=5)
    )
    assert visits[:, 0].std(axis=0) == pytest.approx(np.full(21, 0.02), rel=0.06)
    within = np.corrcoef(visits[:, 0, 0], visits[:, 0, 20])[0, 1]
    assert within == pytest.approx(np.exp(-1), abs=0.06)
    across = np.corrcoef(visits[:, 0, 20], visits[:, 1, 0])[0, 1]
    assert across == pytest.approx(np.exp(-41 / 20), abs=0.07)


def test_slow_drift_cancels_in_lockstep_and_not_between_runs():
    world = only(drift_sd=0.05, drift_seconds=600.0)
    lockstep = simulate.contrasts(world, 0.0, num_campaigns=300, num_blocks=1, seed=6)
    visits = simulate.visits_in_a_row(world, num_campaigns=300, num_visits=2, num_steps=10, seed=6)
    runs = np.diff(np.median(np.log(visits), axis=2), axis=1)
    assert 4 * lockstep.std() < runs.std()


@pytest.mark.parametrize("tail_freedom", [None, 4.0])
def test_step_noise_has_its_spread_and_its_correlation(tail_freedom: float | None):
    world = dataclasses.replace(only(step_sd=0.03, step_correlation=0.5), tail_freedom=tail_freedom)
    (visits,) = np.log(
        simulate.visits_in_a_row(world, num_campaigns=1, num_visits=1, num_steps=40_000, seed=7)
    )
    steps = visits[0] - np.log(world.step_seconds)
    assert steps.std() == pytest.approx(0.03, rel=0.06)
    assert np.corrcoef(steps[1:], steps[:-1])[0, 1] == pytest.approx(0.5, abs=0.02)
    assert (scipy_stats.kurtosis(steps) > 0.5) == (tail_freedom is not None)


def test_spikes_come_as_often_and_as_high_as_asked():
    world = only(spike_ratio=0.02, spike_log=0.3)
    (visits,) = np.log(
        simulate.visits_in_a_row(world, num_campaigns=1, num_visits=1, num_steps=40_000, seed=8)
    )
    heights = visits[0] - np.log(world.step_seconds)
    assert (heights > 1e-12).mean() == pytest.approx(0.02, abs=0.004)
    assert heights[heights > 1e-12].mean() == pytest.approx(0.3, rel=0.15)


def test_the_shared_world_is_as_noisy_as_the_machine_it_was_fitted_to():
    blocks = next(
        iter(simulate.lockstep_blocks(SHARED, 0.0, num_campaigns=400, num_blocks=1, seed=9))
    )
    quads = (
        np.log(blocks.treated[:, 0] / blocks.control[:, 0])
        .reshape(400, SHARED.num_quads, 2)
        .mean(axis=2)
    )
    quads -= np.median(quads, axis=1, keepdims=True)
    assert 0.08 < quads.std() < 0.11
    assert 1.0 < scipy_stats.kurtosis(quads.ravel()) < 6.0
    contrasts = simulate.contrasts(SHARED, 0.0, num_campaigns=400, num_blocks=1, seed=9)
    assert 0.02 < contrasts.std() < 0.035


def test_a_seed_tells_everything():
    first, again, other = (
        simulate.contrasts(QUIET, 0.0, num_campaigns=2, num_blocks=2, seed=seed)
        for seed in (1, 1, 2)
    )
    assert (first == again).all()
    assert (first != other).all()
