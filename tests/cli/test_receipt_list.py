"""`lanewise receipt list --failure`: blocks whose processes left no receipt, and blocks that a gate refused."""

import json
from pathlib import Path

import pytest

from lanewise.cli.main import run
from lanewise.receipts.store import Store
from tests.lab.fake import World, options, place

HEADERS = ["campaign", "feature", "block", "attempt", "arm", "failure", "fate", "reason"]


@pytest.fixture(name="world", scope="module")
def world_fixture(tmp_path_factory):
    """Two campaigns: in the older a process died once and memory ran short once, in the newer one hung once."""
    world = World(store=Store(tmp_path_factory.mktemp("evidence") / "store"))
    happened = set()

    def once(*words):
        first = words not in happened
        happened.add(words)
        return first

    def died(request, step):
        return -9 if place(request) == "fused_moe/2/B" and step == 5 and once("died") else None

    world.script.exit_code = died
    world.script.body = lambda request: (
        {"memory.alloc_retries": 3} if place(request) == "fused_moe/1/A" else {}
    )
    older = world.lab().start(options(blocks=3)).campaign.campaign_id
    world.script.body = lambda request: {}
    world.script.hangs = lambda request, step: (
        place(request) == "fused_mamba/1/A" and step == 4 and once("hung")
    )
    world.now = "2026-11-24T10:00:00Z"
    newer = world.lab().start(options(features=("fused_mamba",), blocks=2, budget_seconds=900.0))
    world.ids = (older, newer.campaign.campaign_id)
    return world


def listed(world, capsys, *words):
    assert run(["receipt", "list", "--store", world.store.root, "--failure", *words]) == 0
    return capsys.readouterr()


def document(world, capsys, *words):
    return json.loads(listed(world, capsys, *words, "--json").out)


def test_a_process_that_died_without_a_receipt_is_listed_on_one_line(world, capsys):
    out, err = listed(world, capsys, "process")
    head, line = out.splitlines()
    assert head.split() == HEADERS
    assert line.split()[:8] == [
        world.ids[0], "fused_moe", "2", "1", "B", "process", "thrown", "away",
    ]  # fmt: skip
    assert "arm B: the process was killed by SIGKILL" in line
    assert err == f"no receipts match in {world.store.root}\n"


def test_a_block_that_a_gate_refused_is_listed_from_its_decision(world, capsys):
    out, _err = listed(world, capsys, "allocator")
    line = out.splitlines()[1]
    assert line.split()[:7] == [world.ids[0], "fused_moe", "1", "–", "A", "allocator", "refused"]
    assert "0 allocations failed and 3 were tried again" in line


def test_a_program_gets_all_of_it(world, capsys):
    found = document(world, capsys, "timeout")
    assert (found["receipts"], found["num_matches"], found["unreadable"]) == ([], 0, [])
    (block,) = found["blocks"]
    assert found["num_blocks"] == 1
    assert block.pop("reason").startswith("arm A: the process gave no answer for ")
    assert block == {
        "campaign": world.ids[1],
        "feature": "fused_mamba",
        "block": 1,
        "attempt": 1,
        "arm": "A",
        "family": "timeout",
        "found_in": "journal",
        "since": "2026-11-24T10:00:00Z",
    }


@pytest.mark.parametrize(
    ("words", "count"),
    [
        ([], 1),
        (["--campaign", "another"], 0),
        (["--feature", "fused_moe"], 1),
        (["--feature", "fused_mamba"], 0),
        (["--lane", "nam56r-tiny"], 1),
        (["--lane", "nam56r"], 0),
        (["--lane", "sha256:ffffffffffff"], 0),
        (["--validity", "invalid"], 1),
    ],
)
@pytest.mark.parametrize("family", ["process", "allocator"])
def test_the_filters_of_receipts_hold_for_blocks(world, capsys, family, words, count):
    assert len(document(world, capsys, family, *words)["blocks"]) == count


def test_the_digest_of_a_lane_and_the_id_of_a_campaign_find_it(world, capsys):
    (decision, _other) = sorted(
        world.store.iter_decisions(), key=lambda d: d.campaign_id != world.ids[0]
    )
    for words in (["--campaign", world.ids[0]], ["--lane", decision.lane.digest[:20]]):
        for family in ("process", "allocator"):
            assert len(document(world, capsys, family, *words)["blocks"]) == 1


def test_without_a_family_nobody_looked_for_blocks(world, capsys):
    assert run(["receipt", "list", "--store", world.store.root, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["blocks"], found["num_blocks"]) == (None, None)
    assert document(world, capsys, "process", "--validity", "valid")["blocks"] is None


def test_what_cannot_be_read_is_named_and_the_rest_is_listed(world, capsys):
    journal = Path(world.store.root) / "campaigns" / world.ids[1] / "journal.jsonl"
    whole = journal.read_bytes()
    journal.write_bytes(whole.replace(b'"attempt": 1', b'"attempt": 2', 1))
    try:
        out, err = listed(world, capsys, "process")
        assert len(out.splitlines()) == 2
        (line,) = [line for line in err.splitlines() if line.startswith("unreadable: ")]
        assert "journal.jsonl:1: not a journal entry (altered: its body_digest is" in line
    finally:
        journal.write_bytes(whole)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("plan.json", "not a campaign plan (altered: "),
        ("journal.jsonl", "2: not a journal entry (altered: "),
    ],
)
def test_validate_reads_plans_and_journals_too(world, capsys, name, said):
    path = Path(world.store.root) / "campaigns" / world.ids[0] / name
    whole = path.read_bytes()
    path.write_bytes(
        whole.replace(b'seconds": ', b'seconds": 1', 2).replace(b'seconds": 1', b'seconds": ', 1)
    )
    try:
        assert run(["receipt", "validate", "--store", world.store.root, "--json"]) == 3
        invalid = json.loads(capsys.readouterr().out)["invalid"]
    finally:
        path.write_bytes(whole)
    assert [fault["location"] for fault in invalid] == [str(path)]
    assert invalid[0]["faults"][0].startswith(said)
    assert run(["receipt", "validate", world.store.root, "--json"]) == 0
    capsys.readouterr()


def test_a_limit_counts_what_it_hides(tmp_path, capsys):
    world = World(store=Store(tmp_path / "store"))
    world.script.exit_code = lambda request, step: (
        1 if place(request) == "fused_moe/1/A" and step == 2 else None
    )
    world.lab().start(options(blocks=2))
    out, err = listed(world, capsys, "process", "--limit", "1")
    assert len(out.splitlines()) == 2
    assert "1 more; `--limit 0` shows all" in err
    assert [b["attempt"] for b in document(world, capsys, "process")["blocks"]] == [1, 2]
