"""`--resume` from the command line: flags beside it, other commands' campaigns, blocks that crashed twice."""

import random
from dataclasses import replace

import pytest

from lanewise.cli import ablate, screen
from lanewise.cli.main import run
from lanewise.lab import calibration as drawing
from lanewise.lab.calibration import Trials
from lanewise.lab.campaign import stored_plans
from lanewise.receipts.store import Store
from tests.lab.fake import BASE_SECONDS, World, place

ABLATE = ["ablate", "nam56r-tiny"]
ASKED = ["--feature", "fused_moe", "--blocks", "3", "--budget", "120s", "--seed", "3", "--no-pin"]


@pytest.fixture
def world(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    world = World(store=Store(tmp_path / ".lanewise"))
    rng = random.Random(0)
    world.script.seconds = lambda request, step, now: BASE_SECONDS * (1 + rng.gauss(0, 0.01))
    for module in (ablate, screen):
        monkeypatch.setattr(
            module, "_lab", lambda store, view: replace(world.lab(), listen=view.listen)
        )
    monkeypatch.setattr(drawing, "Trials", lambda: Trials(single=5, looks=1))
    return world


def cut_off(world, where, words):
    world.script.interrupt = lambda request, step: place(request) == where and step == 5
    assert run(words) == 130
    world.script.interrupt = lambda request, step: False


@pytest.mark.parametrize(
    "flag",
    [
        ("--steps", "26"),
        ("--budget", "10m"),
        ("--effect", "2%"),
        ("--claims", "family"),
        ("--pin",),
        ("--cache", "cold"),
        ("--seed", "0"),
        ("--set", "batch.micro_batch_size=4"),
    ],
)
def test_a_typed_flag_that_contradicts_the_plan_is_one_line_and_exit_2(world, capsys, flag):
    cut_off(world, "fused_moe/2/A", [*ABLATE, *ASKED])
    capsys.readouterr()
    assert run([*ABLATE, "--resume", *flag]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert f"{flag[0]} was given beside --resume" in err
    assert "start a new campaign without --resume" in err


def test_flags_that_agree_or_were_not_typed_go_on(world, capsys):
    cut_off(world, "fused_moe/2/A", [*ABLATE, *ASKED])
    capsys.readouterr()
    assert run([*ABLATE, *ASKED, "--device", "cpu", "--resume"]) in (0, 4)
    assert "INCOMPLETE" not in capsys.readouterr().out
    (plan,) = stored_plans(world.store.root)
    assert plan.order_seed == 3


def test_a_calibration_is_left_to_calibrate(world, capsys):
    cut_off(world, "none/2/A", ["calibrate", "nam56r-tiny", "--blocks", "8", "--budget", "90s"])
    (plan,) = stored_plans(world.store.root)
    command = f"`lanewise calibrate nam56r-tiny --resume {plan.campaign_id}`"
    capsys.readouterr()
    for words in (["--resume"], [plan.campaign_id, "--resume"]):
        assert run([*ABLATE, *words]) == 2
        assert command in capsys.readouterr().err
    assert run(["calibrate", "nam56r-tiny", "--resume"]) == 0


def test_the_design_of_a_screen_cannot_change(world, capsys):
    asked = ["screen", "nam56r-tiny", "--feature", "fused_moe", "--budget", "85s"]
    cut_off(world, "fused_moe/1/B", asked)
    assert run([*asked, "--resume", "--design", "plackett-burman"]) == 2
    assert "says plackett-burman" in capsys.readouterr().err
    assert run([*asked, "--resume", "--design", "toggle"]) == 0


@pytest.mark.parametrize("verb", ["calibrate", "screen"])
def test_every_verb_of_the_lab_keeps_processes_unpinned_and_caches_cold_on_request(world, verb):
    words = {"calibrate": ["--blocks", "8", "--budget", "90s"], "screen": ["--budget", "85s"]}
    feature = ["--feature", "fused_moe"] if verb == "screen" else []
    assert run([verb, "nam56r-tiny", *feature, *words[verb], "--no-pin", "--cache", "cold"]) == 0
    (plan,) = stored_plans(world.store.root)
    assert (plan.pinned, plan.cache, plan.started_by) == (False, "cold", verb)
    assert any("--no-pin was given" in note for note in plan.notes)


def test_blocks_that_crashed_twice_are_told_and_run_on_request(world, capsys):
    world.script.exit_code = lambda request, step: (
        1 if place(request) == "fused_moe/2/B" and step == 3 else None
    )
    assert run([*ABLATE, *ASKED]) == 3
    (plan,) = stored_plans(world.store.root)
    command = f"lanewise ablate nam56r-tiny --resume {plan.campaign_id} --retry-crashed"
    assert f"Finish with `{command}`" in capsys.readouterr().out
    world.script.exit_code = lambda request, step: None
    assert run([*ABLATE, "--resume"]) == 3
    said = "not run again, because their attempts have failed: 1 block of fused_moe; --resume --retry-crashed"
    assert said in capsys.readouterr().err
    assert run([*ABLATE, "--resume", "--retry-crashed"]) in (0, 4)
    assert "INCOMPLETE" not in capsys.readouterr().out


def test_new_attempts_without_resume_are_refused(world, capsys):
    assert run([*ABLATE, "--retry-crashed"]) == 2
    assert "--retry-crashed was given without --resume" in capsys.readouterr().err
