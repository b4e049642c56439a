"""The store: identity by content, references that find one receipt, and nothing lost."""

import errno
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lanewise.errors import LanewiseError, ReceiptError, StoreError
from lanewise.receipts import files
from lanewise.receipts.document import receipt_id_of, short
from lanewise.receipts.schema import RunReceipt
from lanewise.receipts.store import Store
from tests.receipts.factory import (
    CAMPAIGN_ID,
    make_body,
    make_campaign,
    make_decision,
    make_receipt,
    make_steps,
)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def names(store: Store) -> set[str]:
    return {str(p.relative_to(store.root)) for p in Path(store.root).rglob("*") if p.is_file()}


def test_a_receipt_is_written_under_lane_month_and_id(store: Store) -> None:
    receipt_id, location = store.write_receipt(make_body())
    assert location == f"{store.root}/receipts/nam56r-tiny/2026-11/{short(receipt_id, 64)}.json"
    document = json.loads(Path(location).read_bytes())
    assert document["receipt_id"] == receipt_id == receipt_id_of(document)
    assert store.read_receipt(receipt_id) == make_receipt()


def test_equal_bodies_are_one_receipt_and_different_ones_are_two(store: Store) -> None:
    first, _ = store.write_receipt(make_body())
    again, _ = store.write_receipt(make_body())
    other, _ = store.write_receipt(make_body({"experiment.arm": "A"}))
    assert first == again != other
    assert len(store.receipt_files()) == 2


def test_records_and_json_values_make_the_same_receipt(store: Store) -> None:
    receipt = make_receipt()
    parts = {name: getattr(receipt, name) for name in RunReceipt.model_fields}
    del parts["receipt_id"]
    assert store.write_receipt(parts)[0] == store.write_receipt(make_body())[0]


def test_the_series_is_a_sidecar_cited_by_digest(store: Store) -> None:
    receipt_id, location = store.write_receipt(make_body(), steps=make_steps())
    (artifact,) = store.read_receipt(receipt_id).artifacts
    assert (Path(location).parent / artifact.uri).is_file()
    assert store.read_steps(receipt_id) == make_steps()
    assert store.read_steps(store.write_receipt(make_body())[0]) is None


def test_an_altered_series_is_seen(store: Store) -> None:
    receipt_id, location = store.write_receipt(make_body(), steps=make_steps())
    (artifact,) = store.read_receipt(receipt_id).artifacts
    sidecar = Path(location).parent / artifact.uri
    sidecar.write_bytes(sidecar.read_bytes().replace(b"5.55", b"4.55"))
    with pytest.raises(ReceiptError, match="altered: its receipt cites"):
        store.read_steps(receipt_id)
    sidecar.unlink()
    with pytest.raises(ReceiptError, match="no file"):
        store.read_steps(receipt_id)


def test_values_that_diverged_are_null(store: Store) -> None:
    body = make_body({"numerics.loss_last": float("nan"), "numerics.losses_finite": False})
    steps = make_steps().model_copy(update={"loss": ()}).model_dump()
    series = type(make_steps()).model_validate({**steps, "loss": [1.5, float("inf")]})
    receipt_id, _ = store.write_receipt(body, steps=series)
    assert store.read_receipt(receipt_id).numerics.loss_last is None
    read = store.read_steps(receipt_id)
    assert read is not None
    assert read.loss == (1.5, None)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"timing.step_duration_seconds.median": float("nan")}, "timing.step_duration_seconds"),
        ({"lane.digest": "abc"}, "lane.digest: String should match"),
        ({"surprise": 1}, "surprise: Extra inputs"),
        ({"created_at": "yesterday"}, "RFC 3339"),
        ({"lane.name": "../../etc"}, "lane.name is '../../etc', which is no file name"),
        ({"memory.peak_allocated_bytes": 2**60}, "no canonical form"),
    ],
)
def test_a_body_that_is_no_receipt_is_refused_and_nothing_is_written(
    store: Store, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(ReceiptError, match=message):
        store.write_receipt(make_body(changes), steps=make_steps())
    assert not Path(store.root).exists()


@pytest.mark.parametrize("failing_call", [1, 3])
def test_a_full_disk_leaves_neither_receipt_nor_series(
    store: Store, monkeypatch: pytest.MonkeyPatch, failing_call: int
) -> None:
    store.write_receipt(make_body())
    before = names(store)
    calls = iter(range(1, 100))
    real_fsync = os.fsync

    def fsync(descriptor: int) -> None:
        if next(calls) >= failing_call:
            raise OSError(errno.ENOSPC, "No space left on device")
        real_fsync(descriptor)

    monkeypatch.setattr(files.os, "fsync", fsync)
    with pytest.raises(StoreError, match="the disk is full"):
        store.write_receipt(make_body({"experiment.arm": "A"}), steps=make_steps())
    assert names(store) == before


def test_a_receipt_is_found_by_id_beginning_and_path(store: Store) -> None:
    receipt_id, location = store.write_receipt(make_body())
    for reference in (receipt_id, receipt_id[:12], short(receipt_id, 5), location):
        assert store.read_receipt(reference).receipt_id == receipt_id


def test_unknown_and_ambiguous_references_are_one_helpful_line(store: Store) -> None:
    ids = sorted(
        short(store.write_receipt(make_body({"experiment.block": block}))[0], 64)
        for block in range(17)
    )
    twins = next(a for a, b in itertools.pairwise(ids) if a[0] == b[0])
    with pytest.raises(ReceiptError, match=r"is the beginning of \d+ receipts: .*more digits"):
        store.read_receipt(twins[0])
    wrong = ids[0][:11] + ("0" if ids[0][11] != "0" else "1")
    with pytest.raises(ReceiptError, match=f"no receipt '{wrong}' in .* Near: .*{ids[0][:12]}"):
        store.read_receipt(wrong)
    with pytest.raises(ReceiptError, match=r"no receipt 'nonsense' in .*receipt list"):
        store.read_receipt("nonsense")
    with pytest.raises(ReceiptError, match=r"no file missing\.json"):
        store.read_receipt("missing.json")


def test_the_document_is_what_was_written(store: Store) -> None:
    receipt_id, location = store.write_receipt(make_body({"extensions": {"org.example": {"a": 1}}}))
    assert store.receipt_document(receipt_id) == json.loads(Path(location).read_bytes())


def test_unreadable_receipts_are_collected_or_raised(store: Store) -> None:
    store.write_receipt(make_body())
    _, broken = store.write_receipt(make_body({"experiment.arm": "A"}))
    Path(broken).write_bytes(Path(broken).read_bytes()[:500])
    problems: list[LanewiseError] = []
    assert [receipt.experiment.arm for receipt in store.iter_receipts(problems)] == ["B"]
    assert [str(problem).startswith(f"{broken}: truncated") for problem in problems] == [True]
    with pytest.raises(ReceiptError, match="truncated"):
        list(store.iter_receipts())


def test_decisions_and_campaigns_are_replaced_by_name(store: Store) -> None:
    store.write_decision(make_decision({"status": "INCOMPLETE"}))
    location = store.write_decision(make_decision())
    store.write_campaign(make_campaign({"status": "RUNNING", "finished_at": None}))
    store.write_campaign(make_campaign())
    assert store.read_decision(f"{CAMPAIGN_ID}-fused_moe") == make_decision()
    assert store.read_decision(location) == make_decision()
    assert store.read_campaign(CAMPAIGN_ID) == make_campaign()
    assert list(store.iter_decisions()) == [make_decision()]
    assert list(store.iter_campaigns()) == [make_campaign()]
    with pytest.raises(ReceiptError, match=f"no campaign '{CAMPAIGN_ID}x' in .*Near: "):
        store.read_campaign(CAMPAIGN_ID + "x")


@pytest.mark.parametrize("name", ["../up", "a/b", "", ".hidden"])
def test_names_that_are_no_file_names_are_refused(store: Store, name: str) -> None:
    with pytest.raises(ReceiptError, match="which is no file name"):
        store.write_decision(make_decision({"decision_id": name}))
    with pytest.raises(ReceiptError, match="which is no file name"):
        store.campaign_folder(name)


def test_a_store_on_a_uri(tmp_path: Path) -> None:
    store = Store(f"memory://{tmp_path.name}/evidence/")
    receipt_id, location = store.write_receipt(make_body(), steps=make_steps())
    assert location.startswith(f"memory://{tmp_path.name}/evidence/receipts/nam56r-tiny/2026-11/")
    assert store.read_receipt(short(receipt_id)) == store.read_receipt(location)
    assert store.read_steps(receipt_id) == make_steps()
    assert [receipt.receipt_id for receipt in store.iter_receipts()] == [receipt_id]


WRITER = """
import sys
from lanewise.receipts.index import Index
from lanewise.receipts.store import Store
from tests.receipts.factory import make_body, make_campaign, make_steps
store = Store(sys.argv[1])
for block in range(12):
    store.write_receipt(make_body({"experiment.campaign_id": sys.argv[2], "experiment.block": block}), steps=make_steps())
    store.write_receipt(make_body({"experiment.block": block}), steps=make_steps())
    store.write_campaign(make_campaign({"campaign_id": sys.argv[2]}))
    Index(store).query(limit=1)
"""


def test_two_campaigns_in_one_store_at_once(store: Store) -> None:
    root = Path(__file__).resolve().parents[2]
    path = os.pathsep.join([str(root / "src"), str(root)])
    writers = [
        subprocess.Popen(
            [sys.executable, "-W", "error", "-c", WRITER, store.root, name],
            env={**os.environ, "PYTHONPATH": path},
            stderr=subprocess.PIPE,
        )
        for name in ("one", "two")
    ]
    errors = [writer.communicate(timeout=120)[1] for writer in writers]
    assert errors == [b"", b""]
    # 12 of each campaign, and 12 that both wrote under the same content.
    assert len(list(store.iter_receipts())) == 36
    assert {campaign.campaign_id for campaign in store.iter_campaigns()} == {"one", "two"}
    assert not [name for name in names(store) if name.endswith(".tmp")]
