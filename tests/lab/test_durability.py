"""Campaigns on a disk that is cut off, full, or whose clock jumps: what is damaged is named, and the rest goes on."""

import errno
import itertools
import json
import os
import resource
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from lanewise.errors import CampaignError, LanewiseError, StoreError, UsageError
from lanewise.lab.analyse import analyse_campaign
from lanewise.lab.campaign import CampaignFolder
from lanewise.lab.journal import BlockLost, Journal
from lanewise.lane.load import load_lane
from lanewise.receipts.decision import Verdict
from lanewise.receipts.index import Index
from lanewise.receipts.store import Store
from lanewise.receipts.validate import store_faults
from tests.lab.fake import MACHINE, World, options, place

GOLDEN = Path(__file__).parent / "golden"
NOW = "2026-11-23T10:00:00Z"


def finished(world, *, blocks=2) -> str:
    return world.lab().start(options(blocks=blocks, budget_seconds=600.0)).campaign.campaign_id


def cuts(path: Path, count: int = 12):
    """A file cut at bytes spread over its length, the last sign among them; put back afterwards.

    A line end after the last sign is no content, so a file that lacks it is whole.
    """
    content = path.read_bytes()
    last = len(content) - (
        1 if path.suffix == ".jsonl" else len(content) - len(content.rstrip()) + 1
    )
    for length in sorted({*range(0, last, max(1, last // count)), last}):
        path.write_bytes(content[:length])
        yield content[:length]
    path.write_bytes(content)


def test_the_golden_plan_and_journal_of_1_0_are_read(tmp_path) -> None:
    shutil.copy(GOLDEN / "plan-1.0.json", tmp_path / "plan.json")
    shutil.copy(GOLDEN / "journal-1.0.jsonl", tmp_path / "journal.jsonl")
    folder = CampaignFolder(tmp_path)
    document = json.loads((GOLDEN / "plan-1.0.json").read_text())
    plan = folder.plan()
    assert plan.schema_version == "1.0.0"
    written = plan.model_dump(mode="json")
    assert {key: written[key] for key in document if key not in {"lane", "features"}} == {
        key: value for key, value in document.items() if key not in {"lane", "features"}
    }
    assert [f.feature for f in plan.features] == [f["feature"] for f in document["features"]]
    assert folder.missing() == ()
    lines = (GOLDEN / "journal-1.0.jsonl").read_text().splitlines()
    for entry, line in zip(folder.journal.read(), lines, strict=True):
        assert json.loads(line).items() <= entry.model_dump(mode="json").items()


@pytest.mark.parametrize("version", ["2.0.0", "1.99.0"])
def test_a_newer_plan_is_refused_with_the_command_that_helps(world, version) -> None:
    campaign = finished(world)
    path = CampaignFolder.find(world.store.root, campaign).path / "plan.json"
    document = json.loads(path.read_text())
    path.write_text(json.dumps({**document, "schema_version": version, "surprise": 1}))
    with pytest.raises(CampaignError, match="run `pip install --upgrade lanewise`"):
        world.lab().resume(options().lane, MACHINE, campaign)


def test_a_cut_plan_is_named_and_other_campaigns_go_on(world) -> None:
    campaign, other = finished(world), finished(world)
    path = CampaignFolder.find(world.store.root, campaign).path / "plan.json"
    for _left in cuts(path):
        with pytest.raises(CampaignError, match=r"plan\.json: not a campaign plan \(truncated"):
            analyse_campaign(world.store, campaign, now=NOW)
        with pytest.raises(CampaignError, match="name it after --resume"):
            world.lab().resume(options().lane, MACHINE, None)
        assert analyse_campaign(world.store, other, now=NOW)[0].status == "COMPLETE"
    assert world.lab().resume(options().lane, MACHINE, campaign).campaign.status == "COMPLETE"


def test_a_cut_journal_loses_the_block_it_was_cut_in_and_resume_runs_it(world) -> None:
    campaign = finished(world, blocks=3)
    decisions = analyse_campaign(world.store, campaign, now=NOW)[1]
    journal = CampaignFolder.find(world.store.root, campaign).journal
    for left in cuts(journal.path, 5):
        assert len(journal.read()) == left.count(b"\n")
        world.turns.clear()
        again = world.lab().resume(options().lane, MACHINE, campaign)
        assert len({where for where, _step in world.turns}) == 2 * (3 - left.count(b"\n"))
        assert again.campaign.status == "COMPLETE"
        assert again.decisions == decisions


@pytest.mark.parametrize("which", ["receipt", "sidecar"])
def test_cut_evidence_makes_its_block_invalid_by_name(world, which) -> None:
    campaign = finished(world, blocks=3)
    entry = CampaignFolder.find(world.store.root, campaign).journal.read()[1]
    location = Path(world.store.locate_receipt(entry.receipts["A"][0]))
    if which == "sidecar":
        location = location.parent / world.store.read_receipt(str(location)).artifacts[-1].uri
    for left in cuts(location, 4):
        _, (decision,) = analyse_campaign(world.store, campaign, now=NOW)
        assert decision.verdict is Verdict.INVALID
        assert location.name in decision.reason
        faults = {name: found for name, found in store_faults(world.store) if found}
        assert any(location.name in f"{name} {found}" for name, found in faults.items()), left


def test_cut_decisions_and_campaigns_are_named_and_drawn_again(world) -> None:
    campaign = finished(world)
    for path in (
        Path(world.store.root) / "decisions" / f"{campaign}-fused_moe.json",
        CampaignFolder.find(world.store.root, campaign).path / "campaign.json",
    ):
        whole = path.read_bytes()
        for _left in cuts(path, 5):
            (faulty,) = [name for name, found in store_faults(world.store) if found]
            assert faulty == str(path)
            assert [row.fields.block for row in Index(world.store).query().rows]
            assert (
                world.lab().resume(options().lane, MACHINE, campaign).campaign.status == "COMPLETE"
            )
            assert path.read_bytes() == whole


def test_a_campaign_that_lacks_only_its_decisions_is_resumed_by_itself(world) -> None:
    campaign = finished(world)
    path = CampaignFolder.find(world.store.root, campaign).path / "campaign.json"
    document = json.loads(path.read_text())
    path.write_text(json.dumps({**document, "status": "RUNNING"}))
    world.turns.clear()
    again = world.lab().resume(options().lane, MACHINE, None)
    assert (again.campaign.status, world.turns) == ("COMPLETE", [])
    with pytest.raises(UsageError, match="no unfinished campaign"):
        world.lab().resume(options().lane, MACHINE, None)


def refused(world, campaign: str | None) -> str | None:
    try:
        if campaign is None:
            world.lab().start(options(blocks=2, budget_seconds=600.0))
        else:
            world.lab().resume(options().lane, MACHINE, campaign)
    except LanewiseError as error:
        return str(error)
    return None


def test_a_full_disk_at_every_write_point_loses_no_block(tmp_path, monkeypatch) -> None:
    """The disk fills up at the n-th sync or rename of a campaign, whichever file it belongs to."""
    expected = World(store=Store(tmp_path / "undisturbed"))
    decisions = expected.lab().start(options(blocks=2, budget_seconds=600.0)).decisions
    real = {name: getattr(os, name) for name in ("fsync", "replace")}
    outcomes = set()
    for failing in itertools.count(1, 2):
        world = World(store=Store(tmp_path / str(failing)))
        calls = itertools.count(1)

        def full(name, failing=failing, calls=calls):
            def call(*arguments):
                if next(calls) == failing:
                    raise OSError(errno.ENOSPC, "No space left on device")
                real[name](*arguments)

            return call

        for name in real:
            monkeypatch.setattr(os, name, full(name))
        refusal = refused(world, None)
        monkeypatch.undo()
        if refusal is None:
            break
        outcomes.add(refusal.partition("(")[0].partition("/")[0])
        assert "\n" not in refusal
        assert "free some space" in refusal
        assert not list(Path(world.store.root).rglob("*.tmp"))
        plans = list(Path(world.store.root).glob("campaigns/*/plan.json"))
        before = (
            {e.block for e in CampaignFolder(plans[0].parent).journal.read()} if plans else set()
        )
        world.tokens.append("t1")
        world.turns.clear()
        if plans:
            world.lab().resume(options().lane, MACHINE, plans[0].parent.name)
        else:
            world.lab().start(options(blocks=2, budget_seconds=600.0))
        again = {int(where.split("/")[1]) for where, _ in world.turns if where != "pilot"}
        assert again.isdisjoint(before)
        assert list(world.store.iter_decisions()) == list(decisions)
    assert failing > 20


def test_a_real_limit_on_file_sizes_leaves_whole_files_only(tmp_path) -> None:
    """RLIMIT_FSIZE refuses the rest of a write that has begun, as a disk that fills up does."""
    world = World(store=Store(tmp_path / "store"))
    campaign = finished(world)
    journal = CampaignFolder.find(world.store.root, campaign).journal
    before = journal.path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 20, hard))
    try:
        entry = BlockLost(
            feature="fused_moe", block=1, attempt=1, reason="x" * 90, wall_seconds=1.0
        )
        with pytest.raises(StoreError, match="--resume"):
            journal.append(entry)
        with pytest.raises(StoreError, match=r"cannot write .*campaign\.json"):
            world.store.write_campaign(
                world.store.read_campaign(campaign).model_copy(update={"notes": ("x" * 9_000,)})
            )
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert journal.path.read_bytes() == before
    assert not [found for _name, found in store_faults(world.store) if found]
    journal.append(entry)
    assert journal.read()[-1] == entry


def test_a_wall_clock_that_jumps_moves_no_verdict(world) -> None:
    steady = World(store=Store(Path(world.store.root).parent / "steady"))
    expected = steady.lab().start(options(blocks=4, budget_seconds=600.0)).decisions[0]
    times = itertools.cycle(
        ["2026-11-23T10:00:00Z", "1999-01-01T00:00:00Z", "2031-05-05T05:05:05Z"]
    )
    world.script.body = lambda request: {"created_at": next(times)}
    world.script.interrupt = lambda request, step: place(request).startswith("fused_moe/3/")
    lab = replace(world.lab(), now=lambda: next(times))
    campaign = lab.start(options(blocks=4, budget_seconds=600.0)).campaign.campaign_id
    world.script.interrupt = lambda request, step: False
    result = replace(world.lab(), now=lambda: next(times)).resume(options().lane, MACHINE, None)
    assert result.campaign.campaign_id == campaign
    (decision,) = result.decisions
    assert (decision.verdict, decision.estimate) == (expected.verdict, expected.estimate)
    listed = Index(world.store).query(campaign=campaign).rows
    assert len(listed) == 8
    assert sorted((row.fields.created_at or "" for row in listed), reverse=True) == [
        row.fields.created_at for row in listed
    ]


def test_the_index_finds_files_written_while_the_clock_was_set_back(world) -> None:
    finished(world)
    index = Index(world.store, now_ns=lambda: 10**9)  # the clock says 1970
    assert len(index.query().rows) == 4
    finished(world)
    assert len(index.query().rows) == 8
    later = Index(world.store, now_ns=lambda: 4 * 10**18)
    assert len(later.query().rows) == 8
    finished(world)
    assert len(later.query().rows) == 12


def test_two_writers_of_one_decision_leave_one_of_them_whole(world) -> None:
    campaign = finished(world)
    decision = world.store.read_decision(f"{campaign}-fused_moe")
    both = [decision.model_copy(update={"reason": text * 5_000}) for text in "ab"]
    children = []
    for mine in both:
        child = os.fork()
        if child == 0:
            for _ in range(40):
                Store(world.store.root).write_decision(mine)
            os._exit(0)
        children.append(child)
    seen = [world.store.read_decision(decision.decision_id) for _ in range(60)]
    for child in children:
        os.waitpid(child, 0)
    assert all(found in (decision, *both) for found in seen)
    assert world.store.read_decision(decision.decision_id) in both


def test_a_damaged_lock_file_still_locks(world) -> None:
    campaign = finished(world)
    folder = CampaignFolder.find(world.store.root, campaign)
    with folder.locked():
        (folder.path / "lock").write_bytes(b"\xff\n\x1b[31m")
        with (
            pytest.raises(CampaignError, match=r"driven by process [^\n\x1b]*; wait"),
            folder.locked(),
        ):
            pass


def test_half_a_creation_is_taken_up(world) -> None:
    world.tokens[-1] = "same"
    folder = Path(world.store.root) / "campaigns" / "2026-11-23-nam56r-tiny-same"
    folder.mkdir(parents=True)
    (folder / ".plan.json.abc.tmp").write_bytes(b"{")
    assert finished(world) == folder.name
    with pytest.raises(StoreError, match="there is such a campaign already"):
        CampaignFolder.create(world.store.root, CampaignFolder(folder).plan())


def test_a_journal_line_with_other_line_ends_inside_is_one_line(tmp_path) -> None:
    journal = Journal(tmp_path / "journal.jsonl")
    entry = BlockLost(
        feature="a", block=1, attempt=1, reason="one\x0btwo\u2028three", wall_seconds=0.0
    )
    journal.append(entry)
    journal.append(entry)
    assert journal.read() == (entry, entry)


def test_a_lane_of_a_thousand_million_layers_is_refused_at_once() -> None:
    with pytest.raises(LanewiseError, match="num_layers = 1000000000 is wrong"):
        load_lane("nam56r-tiny", ["model.num_layers=1000000000"])
