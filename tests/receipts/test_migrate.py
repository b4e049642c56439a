"""Versions: the golden receipt of every released one is read, and upcasters chain."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings

from lanewise.errors import ReceiptError
from lanewise.receipts.document import parse_receipt
from lanewise.receipts.migrate import HISTORIES, RECEIPTS, Document, History, parse_version, upcast
from lanewise.receipts.store import json_bytes
from tests.receipts.strategies import json_values

GOLDEN = Path(__file__).parent / "golden" / "receipt-1.0.json"
GOLDEN_ID = "sha256:06f184a02cd2f2b9394f56345ab734278f4504e8ba952d90d455f637bb6ff649"


def second(document: Document) -> Document:
    return {**document, "schema_version": "2.0.0", "lifted": [*document.get("lifted", []), 2]}


def third(document: Document) -> Document:
    return {**document, "schema_version": "3.0.0", "lifted": [*document.get("lifted", []), 3]}


def test_the_golden_receipt_of_1_0_is_read_and_keeps_its_identity() -> None:
    receipt = parse_receipt(GOLDEN.read_bytes(), GOLDEN.name)
    assert receipt.receipt_id == GOLDEN_ID
    assert receipt.features[0].key == "fused_moe"
    assert json_bytes(receipt) == GOLDEN.read_bytes()


@settings(max_examples=30, deadline=None, derandomize=True)
@given(value=json_values)
def test_lifting_a_document_of_1_0_changes_nothing(value: object) -> None:
    document = {"schema_version": "1.0.0", "kind": "run", "value": value}
    before = json.dumps(document)
    assert upcast(document) is document
    assert json.dumps(document) == before


def test_old_majors_are_lifted_step_by_step() -> None:
    history = History(current="3.1.0", upcasters={1: second, 2: third})
    document = {"schema_version": "1.4.0", "kind": "run"}
    assert upcast(document, history)["lifted"] == [2, 3]
    assert upcast({**document, "schema_version": "2.0.0"}, history)["lifted"] == [3]
    assert "lifted" not in upcast({**document, "schema_version": "3.0.0"}, history)


def test_a_major_nobody_can_lift_is_refused() -> None:
    with pytest.raises(ReceiptError, match=r"0\.9\.0, which no released lanewise wrote"):
        upcast({"schema_version": "0.9.0", "kind": "run"})


def test_a_newer_minor_of_the_own_major_passes() -> None:
    document = {"schema_version": "1.99.0", "kind": "decision"}
    assert upcast(document) == document


@pytest.mark.parametrize("version", [None, 1, "1", "1.0", "one.two.three", "1.0.0-beta"])
def test_what_is_no_version_is_refused(version: object) -> None:
    with pytest.raises(ReceiptError, match="schema_version is"):
        parse_version(version)


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(ReceiptError, match="kind is 'poem', and this lanewise knows run"):
        upcast({"schema_version": "1.0.0", "kind": "poem"})


def test_every_older_major_has_an_upcaster() -> None:
    for history in HISTORIES.values():
        current, _minor = parse_version(history.current)
        assert sorted(history.upcasters) == list(range(1, current))
    assert parse_version(RECEIPTS.current) == (1, 0)
