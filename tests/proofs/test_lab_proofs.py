"""The proofs on real processes, driven with fake children: a good lab passes them and a bad one does not."""

import math
import random

import pytest

from lanewise.lab.calibrate import CalibrateOptions
from lanewise.lab.calibration import Trials
from lanewise.receipts.instruments import OBSERVER_KEY, ObserverCost
from lanewise.receipts.store import Store
from tests.lab.fake import BASE_SECONDS, World, options, place
from tools.proofs import aa_campaigns, observer_tax, planted_effects
from tools.proofs._progress import Parts

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
            parts=Parts("planted_effects", {}, total=4, folder=folder / "parts"),
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
        Parts("aa_campaigns", {}, total=4, folder=folder / "parts"),
    )


@pytest.mark.slow
def test_honest_a_a_campaigns_pass(tmp_path):
    proof = aa(tmp_path, 0.01, scale=0.2)
    assert proof.counts == {"campaigns": 4, "blocks": 36}
    assert [claim.holds for claim in proof.claims] == [True] * 5
    assert len(proof.tables["A/A campaigns"]) == 5


def test_a_bias_fails_them(tmp_path):
    _counted, calls, looks, _margin, common = aa(tmp_path, 0.005, lean=0.03).claims
    assert not calls.holds
    assert not looks.holds
    assert not common.holds


@pytest.mark.slow
def test_noise_above_the_bound_fails_them(tmp_path):
    assert not aa(tmp_path, 0.08).claims[3].holds


def test_a_campaign_that_gives_no_margin_fails_them_and_is_not_tried_again(tmp_path):
    worlds = {number: World(store=Store(tmp_path / str(number))) for number in range(3)}
    for number, world in worlds.items():
        world.script.seconds = noisy(0.01, number)
    drift = noisy(0.01, 7)
    worlds[1].script.seconds = lambda request, step, now: (
        drift(request, step, now) * (1.0 + (0.05 * step if place(request).endswith("/B") else 0.0))
    )
    parts = Parts("aa_campaigns", {}, total=3, folder=tmp_path / "parts")

    def proof(labs):
        return aa_campaigns.prove(
            0.15,
            lambda number: labs[number].lab(),
            lambda number: options(budget_seconds=90.0, seed=number),
            parts,
        )

    first = proof(worlds)
    assert not first.claims[0].holds
    assert first.claims[0].measured.startswith("2 of 3; campaign 2: ")
    assert "9 A/A blocks of campaign" in first.claims[0].measured
    assert proof({}) == first


def test_a_cut_run_goes_on_with_the_campaigns_that_are_missing(tmp_path, capsys):
    worlds = {number: World(store=Store(tmp_path / str(number))) for number in range(2)}
    for number, world in worlds.items():
        world.script.seconds = noisy(0.01, number)

    def proof(labs):
        return aa_campaigns.prove(
            0.1,
            lambda number: labs[number].lab(),
            lambda number: options(budget_seconds=90.0, seed=number),
            Parts("aa_campaigns", {"blocks": 9}, total=2, folder=tmp_path / "parts"),
        )

    with pytest.raises(KeyError):
        proof({0: worlds[0]})
    # A power cut in the middle of a line loses that line alone.
    with (tmp_path / "parts" / "parts.jsonl").open("a") as file:
        file.write('{"part": "campaign 2", "fou')
    resumed = proof({1: worlds[1]})
    assert "1 to go, about" in capsys.readouterr().err
    assert resumed.counts == {"campaigns": 2, "blocks": 18}
    # All parts are there: nothing is run, and the proof is the same.
    assert proof({}) == resumed


def test_parts_of_other_settings_or_sources_are_not_taken(tmp_path, monkeypatch):
    folder = tmp_path / "parts"
    Parts("p", {"n": 1}, total=1, folder=folder).add("a", 7, started=0.0, words="")
    assert Parts("p", {"n": 1}, total=1, folder=folder).get("a") == 7
    monkeypatch.setattr("tools.proofs._progress._identity", lambda: {"sources": "others"})
    assert Parts("p", {"n": 1}, total=1, folder=folder).get("a") is None
    Parts("p", {"n": 1}, total=1, folder=folder).add("a", 7, started=0.0, words="")
    assert Parts("p", {"n": 2}, total=1, folder=folder).get("a") is None


def observed(folder, *, ratio, effect=0.0, sd=0.002):
    world = World(store=Store(folder))
    noise = noisy(sd, 3)

    def seconds(request, step, now):
        bare = place(request).startswith("observer/") and place(request).endswith("A")
        return noise(request, step, now) * (1.0 if bare else 1.0 + effect)

    world.script.seconds = seconds
    seconds_of = {name: 0.0 for name in ObserverCost.model_fields if name.endswith("_seconds")}
    cost = ObserverCost(steps=40, **seconds_of, in_step_ratio=ratio / 2, total_ratio=ratio)
    world.script.body = lambda request: {"extensions": {OBSERVER_KEY: cost.model_dump(mode="json")}}
    return observer_tax.prove(world.lab(), options(budget_seconds=270.0))


def test_a_small_observer_tax_that_the_campaign_contains_passes(tmp_path):
    proof = observed(tmp_path, ratio=4e-4)
    assert [claim.holds for claim in proof.claims] == [True, True]
    assert proof.claims[0].measured.startswith("0.0400%")
    assert proof.counts["campaigns"] == 2


def test_what_escapes_the_accounting_fails_it(tmp_path):
    accounted, contained = observed(tmp_path, ratio=4e-4, effect=0.03).claims
    assert accounted.holds
    assert not contained.holds


def test_a_large_tax_and_an_interval_that_says_nothing_fail_it(tmp_path):
    accounted, contained = observed(tmp_path, ratio=2e-3, sd=0.09).claims
    assert not accounted.holds
    assert not contained.holds
