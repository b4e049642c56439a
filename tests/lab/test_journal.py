import errno
import json
import os
import re

import pytest

from lanewise.errors import CampaignError, StoreError
from lanewise.lab.journal import (
    JOURNAL_SCHEMA_VERSION,
    BlockDone,
    BlockLost,
    Journal,
    Stopped,
    journal_line,
)
from lanewise.receipts.decision import LookRecord
from lanewise.receipts.seal import opened, sealed
from tests.receipts.factory import sha

DONE = BlockDone(
    feature="fused_moe",
    block=1,
    attempt=1,
    design="lockstep",
    order=("ABBA", "BAAB"),
    order_seed=7,
    started_first="A",
    lead_steps=3,
    warmup_steps=3,
    steady=True,
    warmup_reason="steady from the first step",
    receipts={"A": (sha("a"),), "B": (sha("b"),)},
    wall_seconds=5.0,
)
LOST = BlockLost(
    feature="fused_moe", block=2, attempt=1, reason="killed\nby hand", wall_seconds=1.0
)
STOPPED = Stopped(
    feature="fused_moe",
    look=LookRecord(num_blocks=4, log_ratio=-0.2, nominal_p=0.001, outcome="difference"),
)


@pytest.fixture
def journal(tmp_path):
    return Journal(tmp_path / "journal.jsonl")


def test_what_is_appended_is_read_back_in_order(journal):
    assert journal.read() == ()
    journal.append(DONE)
    journal.append(LOST)
    journal.append(STOPPED)
    assert journal.read() == (DONE, LOST, STOPPED)


@pytest.mark.parametrize("lost_bytes", [1, 2, 50])
def test_a_line_cut_by_kill_minus_9_is_dropped_and_overwritten(journal, lost_bytes):
    journal.append(DONE)
    journal.append(LOST)
    journal.path.write_bytes(journal.path.read_bytes()[:-lost_bytes])
    assert journal.read() == (DONE,)
    journal.append(LOST)
    assert journal.read() == (DONE, LOST)


def test_a_whole_line_that_is_no_entry_is_damage(journal):
    journal.append(DONE)
    journal.path.write_bytes(b'{"event": "block"}\n' + journal.path.read_bytes())
    with pytest.raises(CampaignError, match=r"journal\.jsonl:1: not a journal entry"):
        journal.read()


def test_a_full_disk_is_one_clear_error(journal, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreError, match=r"No space left on device.*--resume"):
        journal.append(DONE)


def lines(journal):
    return journal.path.read_bytes().splitlines(keepends=True)


def test_every_line_names_its_version_and_is_sealed(journal):
    for entry in (DONE, LOST, STOPPED):
        journal.append(entry)
    for line in lines(journal):
        document = json.loads(line)
        assert document["schema_version"] == JOURNAL_SCHEMA_VERSION
        assert opened(document).keys() == document.keys() - {"body_digest"}


def test_every_altered_digit_of_a_whole_line_is_refused(journal):
    journal.append(LOST)
    journal.append(DONE)
    first, second = lines(journal)
    version = second.index(b'"1.1.0"')
    for found in re.finditer(rb"[0-9]", second):
        place = found.start()
        if version < place < version + 7:
            continue
        other = b"3" if found.group() != b"3" else b"4"
        journal.path.write_bytes(first + second[:place] + other + second[place + 1 :])
        with pytest.raises(
            CampaignError,
            match=r"journal\.jsonl:2: not a journal entry \(.*(altered: its body_digest|not JSON).*start a new one$",
        ):
            journal.read()


def test_a_version_cannot_be_altered_unseen(journal):
    journal.append(DONE)
    (line,) = lines(journal)
    for version in (b'"1.0.0"', b'"1.2.0"'):
        journal.path.write_bytes(line.replace(b'"1.1.0"', version))
        with pytest.raises(CampaignError, match="altered: its body_digest"):
            journal.read()


def test_lines_of_1_0_have_neither_and_are_read_beside_new_ones(journal):
    old = DONE.model_dump(mode="json")
    journal.path.write_text(json.dumps(old) + "\n", encoding="utf-8")
    journal.append(LOST)
    assert journal.read() == (DONE, LOST)
    journal.path.write_text(json.dumps({**old, "novelty": 1}) + "\n", encoding="utf-8")
    with pytest.raises(CampaignError, match="novelty: Extra inputs are not permitted"):
        journal.read()


def written(journal, entry, **changes):
    """A line of another version."""
    document = sealed({**json.loads(journal_line(entry)), **changes})
    journal.path.write_text(json.dumps(document) + "\n", encoding="utf-8")


def test_fields_of_a_newer_minor_are_kept_and_its_entry_is_what_it_was(journal):
    look = {**STOPPED.look.model_dump(mode="json"), "depth": 2}
    written(journal, STOPPED, schema_version="1.99.0", novelty=[1], look=look)
    (entry,) = journal.read()
    assert isinstance(entry, Stopped)
    assert entry.look.num_blocks == 4
    assert entry.model_dump()["novelty"] == [1]


@pytest.mark.parametrize("version", ["1.1.0", "1.0.0"])
def test_unknown_fields_of_a_known_version_are_damage(journal, version):
    written(journal, DONE, schema_version=version, novelty=1)
    with pytest.raises(
        CampaignError, match=r"novelty: Extra inputs are not permitted.*was altered"
    ):
        journal.read()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"schema_version": "2.0.0"}, r"written by schema 2\.0\.0, .* reads up to 1\.x; run `pip"),
        (
            {"schema_version": "1.99.0", "event": "moved"},
            r"schema 1\.99\.0, .*event is 'moved'.*`pip",
        ),
        ({"schema_version": "1.99.0", "block": "one"}, r"schema 1\.99\.0, .*block: .*`pip"),
        ({"schema_version": "new"}, r"not a journal entry \(schema_version is 'new'"),
        ({"schema_version": None}, r"not a journal entry \(schema_version is None"),
        (
            {"event": "moved"},
            r"not a journal entry \(event is 'moved', not one of block, discarded",
        ),
        ({"event": 1}, r"not a journal entry \(event is 1"),
    ],
)
def test_what_is_not_understood_is_one_line_that_names_the_version(journal, changes, said):
    written(journal, DONE, **changes)
    with pytest.raises(CampaignError, match=rf"journal\.jsonl:1: .*{said}") as caught:
        journal.read()
    assert str(caught.value).isprintable()
