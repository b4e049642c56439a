"""The verb `screen` and `ablate --design both` from their command line, with fake children."""

import json
import math
import random

import pytest

from lanewise.cli import ablate, screen
from lanewise.cli.main import run
from lanewise.lab.campaign import stored_plans
from lanewise.receipts.store import Store
from tests.lab.fake import BASE_SECONDS, World, place, state

FEATURES = ["--feature", "fused_moe", "--feature", "fused_mamba"]
SCREEN = ["screen", "nam56r-tiny", *FEATURES, "--budget", "85s"]


@pytest.fixture
def world(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    world = World(store=Store(tmp_path / ".lanewise"))
    rng = random.Random(0)

    def seconds(request, step, now):
        factor = 0.8 if state(request, "fused_moe") == "on" else 1.0
        return BASE_SECONDS * factor * math.exp(rng.gauss(0.0, 0.01))

    world.script.seconds = seconds

    def faked(store, view):
        from dataclasses import replace

        return replace(world.lab(), listen=view.listen)

    for module in (ablate, screen):
        monkeypatch.setattr(module, "_lab", faked)
    return world


def test_a_screen_prints_its_ranking_its_limits_and_the_next_campaign(world, capsys):
    assert run(SCREEN) == 0
    out, err = capsys.readouterr()
    assert "screen  2 features, one process each = 2 processes, " in err
    assert "proves nothing" in err
    lines = out.splitlines()
    assert lines[0].split()[0] == "feature"
    assert lines[1].startswith("fused_moe")
    assert "LIKELY_FASTER" in lines[1]
    assert "UNCLEAR" in lines[2]
    assert "shares one process between the arms, which is known to bias results" in out
    assert "2 screening decisions in " in out
    assert "Confirm with `lanewise ablate nam56r-tiny --feature fused_moe --blocks " in lines[-1]
    assert "a feature, about " in lines[-1]


def test_a_design_of_many_features_says_what_it_cannot_see(world, capsys):
    assert run([*SCREEN, "--design", "plackett-burman"]) == 0
    out, err = capsys.readouterr()
    assert "8 rows of all features beside their mirror images × " in err
    assert "interactions of two features cancel and cannot be seen" in out
    assert "LIKELY_FASTER" in out


def test_json_is_one_document(world, capsys):
    assert run([*SCREEN, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["campaign"]["mode"] == "screen"
    assert {decision["mode"] for decision in document["decisions"]} == {"screen"}
    assert document["confirm"]["features"] == ["fused_moe"]
    assert document["confirm"]["command"].startswith("lanewise ablate nam56r-tiny ")
    assert document["report"].endswith(".html")


def test_an_interrupted_screen_names_the_command_that_continues(world, capsys):
    world.script.interrupt = lambda request, step: place(request) == "fused_moe/1/B" and step == 5
    assert run(SCREEN) == 130
    (plan,) = stored_plans(world.store.root)
    resume = f"lanewise screen nam56r-tiny --resume {plan.campaign_id}"
    assert resume in capsys.readouterr().err
    world.script.interrupt = lambda request, step: False
    assert run(["screen", "nam56r-tiny", "--resume", plan.campaign_id]) == 0
    assert "LIKELY_FASTER" in capsys.readouterr().out


def test_a_campaign_cannot_be_resumed_as_a_screen_nor_a_screen_as_a_campaign(world, capsys):
    assert run(SCREEN) == 0
    assert run(["ablate", "nam56r-tiny", *FEATURES[:2], "--blocks", "2", "--budget", "60s"]) == 0
    capsys.readouterr()
    for plan in stored_plans(world.store.root):
        verb = "ablate" if plan.screen_design else "screen"
        assert run([verb, "nam56r-tiny", *_resume(verb, plan.campaign_id)]) == 2
        error = capsys.readouterr().err
        right = "screen" if plan.screen_design else "ablate"
        assert f"lanewise {right} nam56r-tiny --resume {plan.campaign_id}" in error


def _resume(verb, campaign_id):
    return [campaign_id, "--resume"] if verb == "ablate" else ["--resume", campaign_id]


def test_both_bases_print_waterfall_table_and_sentence(world, capsys):
    words = ["ablate", "nam56r-tiny", *FEATURES, "--feature", "full_stack", "--design", "both"]
    assert run([*words, "--blocks", "3", "--budget", "200s"]) == 0
    out, err = capsys.readouterr()
    assert "2 features, each on both bases, and the full stack × 3 lockstep blocks" in err
    assert "from the bare lane to the full stack" in out
    assert "interactions and what is missing" in out
    assert "Fastest proven combination: 1.2" in out
    assert "Interactions: none larger than " in out
    assert run(["report"]) == 0
    assert "from the bare lane to the full stack" in capsys.readouterr().out


def test_a_screen_out_of_budget_claims_nothing_and_goes_on_without_its_name(world, capsys):
    world.script.interrupt = lambda request, step: place(request) == "fused_moe/1/B" and step == 5
    assert run(SCREEN) == 130
    out = capsys.readouterr().out
    assert "deserves a campaign" not in out
    assert "INCOMPLETE: this screen says nothing yet. Finish it with `lanewise screen " in out
    world.script.interrupt = lambda request, step: False
    assert run(["screen", "nam56r-tiny", "--resume"]) == 0
    assert "LIKELY_FASTER" in capsys.readouterr().out


def test_features_that_were_not_screened_are_not_called_undeserving(world, capsys):
    assert run(["screen", "nam56r-tiny", "--budget", "20s"]) in (0, 2)
    out, err = capsys.readouterr()
    assert "Nothing here deserves a campaign" not in out + err


def test_both_bases_are_told_apart_while_they_run(world, capsys):
    arguments = ["ablate", "nam56r-tiny", *FEATURES, "--design", "both", "--blocks", "2"]
    assert run([*arguments, "--budget", "200s"]) in (0, 4)
    err = capsys.readouterr().err
    assert "fused_moe (bare lane)  block 2/2  " in err
    assert "fused_moe (full stack)  block 2/2  " in err
    assert ".add-one" not in err
    assert ".leave-one-out" not in err
