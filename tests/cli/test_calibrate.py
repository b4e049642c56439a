"""The verb `calibrate` from its command line, with fake children."""

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest

from lanewise.cli import ablate
from lanewise.cli.main import run
from lanewise.lab import calibration as drawing
from lanewise.lab.calibration import Trials
from lanewise.receipts.store import Store
from tests.lab.fake import BASE_SECONDS, World, place

VERB = ["calibrate", "nam56r-tiny", "--budget", "90s", "--blocks", "8"]


@pytest.fixture
def world(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    world = World(store=Store(tmp_path / ".lanewise"))
    rng = random.Random(0)
    world.script.seconds = lambda request, step, now: BASE_SECONDS * (1 + rng.gauss(0, 0.01))
    monkeypatch.setattr(
        ablate, "_lab", lambda store, view: replace(world.lab(), listen=view.listen)
    )
    monkeypatch.setattr(drawing, "Trials", lambda: Trials(single=5, looks=1))
    return world


def test_it_prints_what_a_sceptic_asks_and_the_report_shows_the_blocks(world, capsys):
    assert run([*VERB, "--control", "5%"]) == 0
    out, err = capsys.readouterr()
    assert "plan    1 feature × 8 lockstep blocks" in err
    lines = {line.split()[0]: line for line in out.splitlines()}
    assert "over 8 lockstep A/A blocks" in lines["noise"]
    assert "contains 0 ✓" in lines["bias"]
    assert "4 blocks" in lines["false"]
    assert "δ = " in lines["margin"]
    assert "in 24 blocks" in lines["detects"]
    assert "SLOWER as it should ✓" in lines["control"]
    assert "covers it ✓" in lines["control"]
    assert "until 2026-12-23" in lines["valid"]
    reports = [line.split(": ")[1] for line in out.splitlines() if line.startswith("report: ")]
    html = Path(reports[0]).read_text(encoding="utf-8")
    assert 'id="calibration"' in html
    assert html.count("aa-2026-11-23-nam56r-tiny") >= 1
    assert "planted 5.00 %" in html


def test_json_holds_the_record(world, capsys):
    assert run([*VERB, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    record = document["calibration"]
    assert record["kind"] == "noise_calibration"
    assert record == json.loads(
        world.store.read_calibration(record["calibration_id"]).model_dump_json()
    )
    assert document["problems"] == []


def test_a_control_that_cannot_be_found_exits_3(world, capsys):
    assert run([*VERB, "--control", "0.1%"]) == 3
    assert (
        "planted was not run: a delay of 0.1% cannot be told from noise" in capsys.readouterr().out
    )


def test_a_biased_instrument_exits_4(world, capsys):
    world.script.seconds = lambda request, step, now: (
        BASE_SECONDS * (1.02 if place(request)[-1] == "B" else 1.0) * (1 + step * 1e-7)
    )
    assert run(VERB) == 4
    assert "BIASED" in capsys.readouterr().out


def test_ctrl_c_names_the_command_that_continues(world, capsys):
    world.script.interrupt = lambda request, step: place(request) == "none/3/A" and step == 5
    assert run(VERB) == 130
    assert (
        "lanewise calibrate nam56r-tiny --resume 2026-11-23-nam56r-tiny-" in capsys.readouterr().err
    )
    world.script.interrupt = lambda request, step: False
    assert run([*VERB, "--resume"]) == 0


def test_a_bad_delay_is_one_line(world, capsys):
    assert run([*VERB, "--control", "lots"]) == 2
    assert capsys.readouterr().err.strip().count("\n") == 0


@pytest.mark.parametrize(
    ("in_step", "seconds", "code"), [(0.0003, 1.0, 0), (0.02, 1.0, 3), (0.0003, 1.1, 3)]
)
def test_the_observer_fails_by_its_accounting_or_by_a_campaign_that_contradicts_it(
    world, monkeypatch, capsys, in_step, seconds, code
):
    parts = ("spans", "launch_counters", "clock_reads", "readout", "protocol")
    said = {"steps": 18, "in_step_ratio": in_step, "total_ratio": 0.03}
    said |= {f"{part}_seconds": 0.001 for part in parts}
    monkeypatch.setattr("tests.lab.fake.extensions", lambda request: {"io.lanewise.observer": said})
    even = world.script.seconds
    world.script.seconds = lambda request, step, now: (
        even(request, step, now)
        * (seconds if place(request).startswith("observer") and place(request)[-1] == "B" else 1.0)
    )
    assert run([*VERB[:2], "--budget", "300s", "--blocks", "8", "--observer"]) == code
    out = capsys.readouterr().out
    assert ("observing takes 2.00% of the timed step, and 0.5% is" in out) == (in_step > 0.01)
    assert ("CONTRADICTS it" in out) == (code == 3), "of 2 % the campaign finds nothing"
