import errno
import os

import pytest

from lanewise.errors import CampaignError, StoreError
from lanewise.lab.journal import BlockDone, BlockLost, Journal, Stopped
from lanewise.receipts.decision import LookRecord
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
