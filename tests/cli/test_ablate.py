"""The verbs `ablate` and `plan` from their command line, with fake children."""

import json

import pytest

from lanewise.cli import ablate
from lanewise.cli.main import run
from lanewise.lab.campaign import stored_plans
from lanewise.receipts.store import Store
from tests.lab.fake import BASE_SECONDS, World, place, state


@pytest.fixture
def world(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    world = World(store=Store(tmp_path / ".lanewise"))

    def faked(store, view):
        from dataclasses import replace

        return replace(world.lab(), listen=view.listen)

    monkeypatch.setattr(ablate, "_lab", faked)
    return world


def faster(request, step, now):
    return BASE_SECONDS * (0.8 if state(request, "fused_moe") == "on" else 1.0)


MOE = ["ablate", "nam56r-tiny", "--feature", "fused_moe", "--budget", "60s"]


def test_a_campaign_prints_its_plan_table_and_proof(world, capsys):
    world.script.seconds = faster
    assert run(MOE) == 0
    out, err = capsys.readouterr()
    assert "pilot   base: 0.080 s/step" in err
    assert "plan    1 feature × " in err
    assert "detects ≥" in err
    assert "fused_moe  block 2/" in err
    row = next(line for line in out.splitlines() if line.startswith("fused_moe"))
    for cell in ("hot_path", "padded.torch", "−20.0", "sorted.torch ✓", "FASTER", "core"):
        assert cell in row
    assert "1 decision in " in out
    assert "report: " in out


def test_json_is_one_document_on_stdout(world, capsys):
    world.script.seconds = faster
    assert run([*MOE, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["campaign"]["status"] == "COMPLETE"
    assert document["decisions"][0]["verdict"] == "FASTER"
    assert document["report"].endswith(".html")


def test_plan_prints_and_writes_nothing(world, capsys):
    assert run(["plan", "nam56r-tiny", "--budget", "10m", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["status"] == "PLANNED"
    assert {f["feature"] for f in document["features"]} >= {"fused_mamba", "full_stack"}
    assert stored_plans(world.store.root) == []


PLAN = ["plan", "nam56r-tiny", "--feature", "fused_moe", "--feature", "extra_aux_losses"]


def test_an_effect_asked_for_plans_its_blocks_and_says_looks_levels_and_what_they_find(
    world, capsys
):
    assert run([*PLAN, "--effect", "2%", "--budget", "30m"]) == 0
    first, *more = [line for line in capsys.readouterr().out.splitlines() if "  " in line][1:]
    assert "of at most 30 min" in first
    assert "blocks chosen to find 2.0 % with 80 % power" in first
    assert "(assumed noise;" in first
    assert any("looks after " in line and "(5 % over all) · finds ≥ " in line for line in more)

    assert run([*PLAN, "--effect", "2%", "--budget", "30m", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    moe, _tax = document["features"]
    assert moe["planned_blocks"] == moe["boundary"]["looks"][-1] > 12
    assert moe["detectable_log"] <= document["planned_effect_log"]
    assert document["planned_effect_log"] == pytest.approx(0.0198, abs=1e-4)


def test_an_early_stop_is_said_and_ends_the_campaign(world, capsys):
    world.script.seconds = faster
    assert run([*MOE[:4], "--blocks", "6", "--budget", "5m"]) == 0
    out, err = capsys.readouterr()
    assert "fused_moe stopped after 4 of 6 blocks: a difference" in err
    assert "4 of 6" in out


def test_ctrl_c_exits_130_and_prints_the_command_that_continues(world, capsys):
    world.script.interrupt = lambda request, step: place(request) == "fused_moe/2/B" and step == 5
    assert run([*MOE, "--blocks", "3"]) == 130
    out, err = capsys.readouterr()
    assert "INCOMPLETE" in out
    (plan,) = stored_plans(world.store.root)
    assert f"lanewise ablate nam56r-tiny --resume {plan.campaign_id}" in err

    world.script.interrupt = lambda request, step: False
    assert run(["ablate", "nam56r-tiny", "--resume", plan.campaign_id, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["campaign"]["campaign_id"] == plan.campaign_id
    assert document["campaign"]["status"] == "COMPLETE"


def test_exit_codes_of_verdicts(world, capsys):
    world.script.seconds = lambda request, step, now: 2 * BASE_SECONDS - faster(request, step, now)
    assert run([*MOE, "--fail-on", "slower,invalid"]) == 1
    assert run(MOE) == 0
    world.script.observed = lambda request, op, asked: "plain.torch"
    assert run(MOE) == 3


def test_nothing_told_exits_4(world, capsys):
    def wobbles(request, step, now):
        at = request.experiment
        if at is None:
            return BASE_SECONDS
        return BASE_SECONDS * (1.2 if (at.block % 2 == 0) == (at.arm == "B") else 1.0)

    world.script.seconds = wobbles
    assert run(MOE) == 4


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["ablate", "nam56r-tinny"], "Did you mean 'nam56r-tiny'?"),
        ([*MOE[:2], "--budget", "soon"], "write positive numbers with units"),
        ([*MOE[:2], "--budget", "3s"], "give a larger --budget"),
        ([*MOE, "--effect", "2"], "write a positive percentage"),
        ([*MOE, "--effect", "0.4%"], "within the margin of 0.50%"),
        ([*MOE, "--effect", "1%"], "takes more than 48 blocks"),
        ([*MOE, "--effect", "2%"], "to --budget"),
        ([*MOE, "--effect", "2%", "--blocks", "9"], "give one of them"),
        ([*MOE[:2], "--feature", "fused_mo"], "Did you mean 'fused_moe'?"),
        ([*MOE[:2], "--feature", "fused_mla_projection"], "not built in this version"),
        ([*MOE, "--fail-on", "faster"], "use slower, over_budget, invalid"),
        ([*MOE[:2], "some-campaign"], "without --resume"),
        ([*MOE[:2], "--resume"], "no unfinished campaign"),
        ([*MOE[:2], "--set", "batch.topk=2"], "batch.topk"),
        (["ablate", "nam56r", "--budget", "60s"], "not"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(world, capsys, arguments, said):
    assert run(arguments) == 2
    err = capsys.readouterr().err
    assert said in err
    assert "Traceback" not in err
