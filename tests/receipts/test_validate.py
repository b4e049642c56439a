"""Validation finds every fault of a record and of the files it cites."""

from pathlib import Path

import pytest

from lanewise.receipts.store import Store, json_bytes
from lanewise.receipts.validate import (
    receipt_faults,
    receipt_file_faults,
    record_file_faults,
    store_faults,
    unexplained_nulls,
)
from tests.receipts.factory import (
    make_body,
    make_campaign,
    make_ceilings,
    make_decision,
    make_receipt,
    make_steps,
)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def test_a_sound_store_has_no_faults(store: Store) -> None:
    receipt_id, _ = store.write_receipt(make_body(), steps=make_steps())
    store.write_decision(make_decision({"blocks.0.receipts": {"A": [], "B": [receipt_id]}}))
    store.write_campaign(make_campaign())
    checked = list(store_faults(store))
    assert len(checked) == 3
    assert [faults for _location, faults in checked] == [[], [], []]


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"goodput.step_seconds": 2.6}, "goodput does not close: steps and badput are 4.6 s"),
        ({"goodput.wall_duration_seconds": 4.4}, "wall time is 4.4 s"),
        (
            {"goodput.step_seconds": 3.0, "goodput.badput_seconds.other": -0.25},
            "other is -0.25 s: spans overlap",
        ),
        ({"goodput.badput_seconds": {"other": 2.0}}, "must have every category"),
        ({"outcome.checks.0.ok": False}, "these checks failed: observed_backends"),
        ({"memory.peak_allocated_bytes": None, "missing": {}}, "null without a reason in missing"),
        ({"missing.data": "no reason"}, "missing explains data, which is not null"),
    ],
)
def test_each_fault_in_what_a_receipt_says(changes: dict[str, object], fault: str) -> None:
    assert any(fault in found for found in receipt_faults(make_receipt(changes)))


@pytest.mark.parametrize("seconds", [2.5 + 0.0044, 2.5 - 0.0044])
def test_goodput_may_miss_by_a_thousandth(seconds: float) -> None:
    assert receipt_faults(make_receipt({"goodput.step_seconds": seconds})) == []


def test_an_invalid_receipt_may_have_failed_checks_and_a_negative_rest() -> None:
    changes = {
        "outcome.validity": "invalid",
        "outcome.checks.0.ok": False,
        "goodput.step_seconds": 3.0,
        "goodput.badput_seconds.other": -0.25,
    }
    assert receipt_faults(make_receipt(changes)) == []


def test_a_null_is_explained_by_itself_or_by_a_parent() -> None:
    body = make_body({"missing": {"telemetry": "no GPU", "memory.ooms": "not counted"}})
    assert unexplained_nulls(body) == [
        "timing.event_wall_gap_ratio",
        "compile.cache_digest",
        "memory.peak_reserved_bytes",
        "memory.alloc_retries",
        "flops.peak_flops_per_second",
        "flops.peak_source",
    ]
    assert unexplained_nulls(make_body()) == []


def test_faults_of_files(store: Store) -> None:
    _, location = store.write_receipt(make_body(), steps=make_steps())
    path = Path(location)
    sidecar = next(path.parent.glob("*.steps.json"))
    content = sidecar.read_bytes()
    sidecar.write_bytes(content + b" ")
    assert receipt_file_faults(location) == [f"artifact {sidecar.name} was altered"]
    sidecar.unlink()
    assert receipt_file_faults(location) == [f"artifact {sidecar.name} is gone"]
    sidecar.write_bytes(content)
    renamed = path.rename(path.with_name("mine.json"))
    (fault,) = receipt_file_faults(str(renamed))
    assert fault.endswith(f"must be named {path.name}")
    renamed.write_bytes(renamed.read_bytes().replace(b'"success"', b'"aborted"'))
    assert receipt_file_faults(str(renamed))[0].startswith("altered: it claims")
    assert receipt_file_faults(location) == ["there is no such file"]


def test_decisions_and_campaigns_are_checked_by_kind(store: Store, tmp_path: Path) -> None:
    decision = store.write_decision(make_decision())
    assert record_file_faults(decision, store)[0].startswith("cites 2 receipts that are not in")
    assert record_file_faults(store.write_campaign(make_campaign()), store) == []
    broken = tmp_path / "campaign.json"
    broken.write_bytes(json_bytes({**make_campaign().model_dump(mode="json"), "status": "LOST"}))
    assert record_file_faults(str(broken), store)[0].startswith("status: Input should be")
    broken.write_bytes(b"{")
    assert record_file_faults(str(broken), store)[0].startswith("truncated")


def test_ceilings_are_checked_alone_and_with_their_store(store: Store) -> None:
    location = store.write_ceilings(make_ceilings())
    assert record_file_faults(location, store) == []
    assert (location, []) in list(store_faults(store))
    renamed = Path(location).with_name("x.json")
    Path(location).rename(renamed)
    assert "must be named" in record_file_faults(str(renamed), store)[0]
    renamed.write_bytes(json_bytes(make_ceilings({"measured_at": "today"})))
    assert "measured_at is 'today'" in record_file_faults(str(renamed), store)[1]
    renamed.write_bytes(b"{")
    ((_location, faults),) = [(at, faults) for at, faults in store_faults(store) if faults]
    assert "truncated" in faults[0]
