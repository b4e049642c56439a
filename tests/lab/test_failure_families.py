"""Whole campaigns that a gate refused or that lost blocks: decisions name the kind of failure, on disk and on screen."""

import json
from pathlib import Path

import pytest

from lanewise.dash import format as fmt
from lanewise.dash.summary import gaps
from lanewise.receipts.decision import Verdict
from lanewise.receipts.store import Store
from tests.lab.fake import World, options, place


@pytest.fixture(name="world")
def world_fixture(tmp_path):
    return World(store=Store(tmp_path / "store"))


@pytest.mark.parametrize(
    ("changes", "family"),
    [
        ({"memory.alloc_retries": 3}, "allocator"),
        ({"telemetry.clock_event_reasons": ["hw_thermal_slowdown"]}, "thermal"),
        (
            {"environment.packages.torch": "2.12.0", "environment_digest": "sha256:" + "7" * 64},
            "comparability",
        ),
    ],
)
def test_an_invalid_decision_names_the_family(world, changes, family):
    world.script.body = lambda request: changes if place(request) == "fused_moe/2/B" else {}
    result = world.lab().start(options(blocks=3))
    (decision,) = result.decisions
    assert decision.verdict is Verdict.INVALID
    assert decision.failure_family == family
    assert [block.failure_family for block in decision.blocks] == [None, family, None]
    path = Path(world.store.root) / "decisions" / f"{decision.decision_id}.json"
    assert json.loads(path.read_text())["failure_family"] == family
    assert world.store.read_decision(decision.decision_id) == decision


def test_a_sound_decision_names_none(world):
    (decision,) = world.lab().start(options(blocks=3)).decisions
    assert decision.failure_family is None


def test_an_incomplete_decision_names_what_its_blocks_were_lost_to(world):
    world.script.exit_code = lambda request, step: (
        -9 if place(request) == "fused_moe/1/A" and step == 2 else None
    )
    result = world.lab().start(options(blocks=3))
    (decision,) = result.decisions
    assert (decision.status, decision.failure_family) == ("INCOMPLETE", "process")
    (line,) = gaps(result.campaign, result.decisions)
    assert line == "fused_moe: 2 of 3 blocks were run [process]"


def test_a_reason_is_shown_with_its_family():
    assert fmt.with_family("block 2: hot", "thermal") == "block 2: hot [thermal]"
    assert fmt.with_family("block 2: hot", None) == "block 2: hot"
