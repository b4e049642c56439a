"""Calibrations in a store: written whole, read back, checked, refused when they are of another time."""

import json
from pathlib import Path

import pytest

from lanewise.errors import ReceiptError
from lanewise.receipts.seal import sealed
from lanewise.receipts.store import Store
from lanewise.receipts.validate import record_file_faults, store_faults
from tests.receipts.calibrations import make_calibration


def test_a_round_trip_changes_nothing(tmp_path: Path) -> None:
    store, calibration = Store(tmp_path), make_calibration()
    location = store.write_calibration(calibration)
    assert location.endswith("/calibrations/2026-11-23-nam56r-tiny-7-calibration.json")
    assert store.read_calibration(calibration.calibration_id) == calibration
    assert list(store.iter_calibrations()) == [calibration]


def test_a_later_state_replaces_an_earlier_one(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.write_calibration(make_calibration(control=None))
    store.write_calibration(make_calibration())
    (found,) = store.iter_calibrations()
    assert found.control is not None


def test_receipts_that_are_gone_are_a_fault(tmp_path: Path) -> None:
    store = Store(tmp_path)
    location = store.write_calibration(make_calibration())
    ((where, faults),) = store_faults(store)
    assert where == location
    assert faults[0].startswith("cites 4 receipts that are not in the store")
    assert record_file_faults(location, store) == faults


def test_a_newer_major_is_refused_and_a_newer_minor_kept(tmp_path: Path) -> None:
    store = Store(tmp_path)
    path = Path(store.write_calibration(make_calibration()))
    document = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(sealed({**document, "schema_version": "1.9.0", "novelty": 1})))
    assert store.read_calibration(str(path)).model_dump()["novelty"] == 1
    path.write_text(json.dumps({**document, "schema_version": "2.0.0"}))
    with pytest.raises(ReceiptError, match="pip install --upgrade lanewise"):
        store.read_calibration(str(path))
    problems: list[Exception] = []
    assert list(store.iter_calibrations(problems)) == []  # type: ignore[arg-type]
    assert len(problems) == 1


def test_an_unknown_name_suggests_a_near_one(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.write_calibration(make_calibration())
    with pytest.raises(ReceiptError, match="Near: 2026-11-23-nam56r-tiny-7-calibration"):
        store.read_calibration("2026-11-23-nam56r-tiny-8-calibration")
