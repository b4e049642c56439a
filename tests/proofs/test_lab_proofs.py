"""The proofs on real processes, driven with fake children: a good lab passes them and a bad one does not."""

import math
import random

import pytest

from lanewise.lab.calibrate import CalibrateOptions
from lanewise.lab.calibration import Trials
from lanewise.receipts.store import Store
from tests.lab.fake import BASE_SECONDS, World, options, place
from tools.proofs import aa_campaigns, planted_effects

FEW = Trials(single=1, looks=1)


@pytest.fixture(autouse=True)
def few_trials(monkeypatch):
    real = CalibrateOptions.__init__
    monkeypatch.setattr(
        CalibrateOptions, "__init__", lambda self, **fields: real(self, **{"trials": FEW, **fields})
    )


def noisy(sd: float, seed: int, *, lean: float = 0.0):
    rng = random.Random(seed)
    level: dict[str, float] = {}

    def seconds(request, step, now):
        where = place(request)
        drawn = level.get(where)
        if drawn is None:
            drawn = level[where] = rng.gauss(lean * (where[-1] == "B"), sd)
        return BASE_SECONDS * math.exp(drawn)

    return seconds


def planted(folder, sd: float, *, lean: float = 0.0):
    world = World(store=Store(folder))
    world.script.seconds = noisy(sd, 0, lean=lean)
    return planted_effects.prove(
        0.34,
        planted_effects.World(
            lab=world.lab(),
            campaign=lambda budget, seed: options(budget_seconds=budget, seed=seed),
        ),
    )


def test_planted_effects_are_found_by_a_good_lab(tmp_path):
    proof = planted(tmp_path, 0.003)
    assert [claim.holds for claim in proof.claims] == [True, True, True]
    assert proof.counts["controls"] == 3
    assert [row[0] for row in proof.tables["Planted delays"][1:4]] == ["5%", "2%", "0%"]


@pytest.mark.slow
def test_a_lab_that_favours_an_arm_fails(tmp_path):
    """Arm A is 4 % slower, so what is planted into B is mostly cancelled."""
    proof = planted(tmp_path, 0.003, lean=-0.04)
    assert not all(claim.holds for claim in proof.claims)


def aa(folder, sd: float, *, lean: float = 0.0, scale: float = 0.1):
    worlds = {number: World(store=Store(folder / str(number))) for number in range(20)}
    for number, world in worlds.items():
        world.script.seconds = noisy(sd, 10 + number, lean=lean)
    return aa_campaigns.prove(
        scale,
        lambda number: worlds[number].lab(),
        lambda number: options(budget_seconds=90.0, seed=number),
    )


@pytest.mark.slow
def test_honest_a_a_campaigns_pass(tmp_path):
    proof = aa(tmp_path, 0.01, scale=0.2)
    assert proof.counts == {"campaigns": 4, "blocks": 32}
    assert [claim.holds for claim in proof.claims] == [True, True, True, True]
    assert len(proof.tables["A/A campaigns"]) == 5


def test_a_bias_fails_them(tmp_path):
    calls, looks, _margin, common = aa(tmp_path, 0.005, lean=0.03).claims
    assert not calls.holds
    assert not looks.holds
    assert not common.holds


@pytest.mark.slow
def test_noise_above_the_bound_fails_them(tmp_path):
    assert not aa(tmp_path, 0.08).claims[2].holds
