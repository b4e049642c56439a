"""Designs against their definition, main effects against closed forms, aliases against brute force."""

import numpy as np
import pytest

from lanewise.measure.factorial import (
    MAX_FACTORS,
    aliases,
    mirrored_main_effects,
    plackett_burman,
)


@pytest.mark.parametrize(
    ("factors", "rows"), [(1, 8), (7, 8), (8, 12), (11, 12), (12, 20), (19, 20)]
)
def test_designs_are_balanced_orthogonal_and_as_small_as_can_be(factors: int, rows: int) -> None:
    design = plackett_burman(factors)
    assert design.shape == (rows, factors)
    assert set(np.unique(design)) == {-1.0, 1.0}
    assert np.array_equal(design.sum(axis=0), np.zeros(factors))
    assert np.array_equal(design.T @ design, rows * np.eye(factors))


def test_the_first_row_is_plackett_and_burmans() -> None:
    assert plackett_burman(11)[0].tolist() == [1, 1, -1, 1, 1, 1, -1, -1, -1, 1, -1]
    assert plackett_burman(11)[-1].tolist() == [-1] * 11


@pytest.mark.parametrize("factors", [0, MAX_FACTORS + 1])
def test_sizes_without_a_design_are_refused(factors: int) -> None:
    with pytest.raises(ValueError, match="1 to 19"):
        plackett_burman(factors)


def responses(design: np.ndarray, effects: np.ndarray, pairs: dict[tuple[int, int], float]):
    """Log step time of each row: half of every effect and interaction, signed."""
    logs = design @ effects / 2
    for (one, other), size in pairs.items():
        logs = logs + design[:, one] * design[:, other] * size / 2
    return logs


def mirrored(design, effects, pairs, replicates=2, noise=lambda: 0.0):
    contrasts = responses(design, effects, pairs) - responses(-design, effects, pairs)
    rows = [row for row in range(len(design)) for _ in range(replicates)]
    return mirrored_main_effects(rows, [contrasts[row] + noise() for row in rows], design)


@pytest.mark.parametrize("factors", [5, 11, 14])
def test_noiseless_main_effects_are_the_closed_form(factors: int) -> None:
    """e = Xᵀd/N, and exactly what was planted."""
    design = plackett_burman(factors)
    effects = np.linspace(-0.5, 0.1, factors)
    found = [effect.log_ratio for effect in mirrored(design, effects, {})]
    contrasts = responses(design, effects, {}) - responses(-design, effects, {})
    assert found == pytest.approx(effects.tolist())
    assert found == pytest.approx((design.T @ contrasts / len(design)).tolist())


def test_rows_alone_confuse_main_effects_with_interactions_and_mirrors_do_not() -> None:
    """A 12-row design puts a third of every interaction of two others into each main effect, 8 rows put all of one."""
    for factors, share in ((7, 1.0), (11, 1 / 3)):
        design = plackett_burman(factors)
        size = 0.3
        logs = responses(design, np.zeros(factors), {(0, 1): size})
        confused = 2 * design.T @ logs / len(design)
        assert np.abs(confused).max() == pytest.approx(share * size)
        assert np.abs(confused[:2]).max() == pytest.approx(0.0)
        assert confused == pytest.approx(aliases(design, mirrored=False)[:, 0] * size)
        assert np.abs(aliases(design, mirrored=False)).max() == pytest.approx(share)
        assert np.abs(aliases(design, mirrored=True)).max() == pytest.approx(0.0)
        clear = mirrored(design, np.zeros(factors), {(0, 1): size})
        assert [effect.log_ratio for effect in clear] == pytest.approx([0.0] * factors)


def test_mirrors_still_mix_in_interactions_of_three() -> None:
    design = plackett_burman(7)
    triple = design[:, 0] * design[:, 1] * design[:, 2] * 0.2
    rows = [row for row in range(8) for _ in range(2)]
    found = mirrored_main_effects(rows, [float(triple[row]) for row in rows], design)
    assert max(abs(effect.log_ratio) for effect in found) > 0.05


def test_intervals_cover_and_false_discoveries_stay_rare() -> None:
    generator = np.random.default_rng(5)
    design = plackett_burman(10)
    truth = np.array([-0.1, 0.04, *[0.0] * 8])
    covered, false, discovered, trials = 0, 0.0, 0, 300
    for _ in range(trials):
        found = mirrored(design, truth, {}, noise=lambda: generator.normal(0, 0.03))
        covered += sum(e.low <= t <= e.high for e, t in zip(found, truth, strict=True))
        called = [e.adjusted_p <= 0.1 for e in found]
        false += sum(called[2:]) / max(1, sum(called))
        discovered += called[0]
        assert found[0].degrees_of_freedom == 12
    assert 0.93 <= covered / (10 * trials) <= 0.97
    assert false / trials <= 0.1
    assert discovered == trials


def test_lost_runs_cost_precision_and_lost_rows_too_many_cost_the_design() -> None:
    design = plackett_burman(4)
    effects = np.array([-0.2, 0.1, 0.0, 0.05])
    contrasts = design @ effects
    rows = [0, 0, 1, 2, 3, 4, 5, 6]
    found = mirrored_main_effects(rows, [contrasts[row] for row in rows], design)
    assert [effect.log_ratio for effect in found] == pytest.approx(effects.tolist())
    with pytest.raises(ValueError, match="too few rows"):
        mirrored_main_effects([0, 0, 1], [0.1, 0.1, 0.2], design)
    with pytest.raises(ValueError, match="no row was run twice"):
        mirrored_main_effects(range(8), contrasts.tolist(), design)
    with pytest.raises(ValueError, match="too few rows"):
        mirrored_main_effects([], [], design)
