"""Versions: the golden receipt of every released one is read, and upcasters chain."""

import functools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings

from lanewise.errors import ReceiptError
from lanewise.receipts.calibration import CalibrationRecord
from lanewise.receipts.ceilings import CeilingRecord
from lanewise.receipts.decision import CampaignRecord, Decision
from lanewise.receipts.document import parse_receipt, parse_record, parse_steps
from lanewise.receipts.jsonschema import FROZEN, SCHEMAS
from lanewise.receipts.manifest import ArchiveManifest
from lanewise.receipts.migrate import HISTORIES, RECEIPTS, Document, History, parse_version, upcast
from lanewise.receipts.schema import FIELDS_SINCE, Record
from lanewise.receipts.store import json_bytes
from lanewise.receipts.validate import receipt_faults
from tests.receipts.factory import make_receipt
from tests.receipts.strategies import json_values
from tools import golden

GOLDEN_FOLDER = Path(__file__).parent / "golden"
GOLDEN_IDS = {
    "receipt-1.0.json": "sha256:06f184a02cd2f2b9394f56345ab734278f4504e8ba952d90d455f637bb6ff649",
    "receipt-1.1.json": "sha256:021e5f85b821852a66a05706f0fb9dccc3bb149254fa9be5794ba7d6f406cc98",
    "receipt-1.2.json": "sha256:fd206f47dc9b6effdbd81ff54cf59e9bd1b4b3b2ddc87202ec98eea5de4cc23b",
}
READERS: dict[str, Callable[[bytes, str], Record]] = {
    "decision": functools.partial(parse_record, Decision),
    "campaign": functools.partial(parse_record, CampaignRecord),
    "calibration": functools.partial(parse_record, CalibrationRecord),
    "ceilings": functools.partial(parse_record, CeilingRecord),
    "archive": functools.partial(parse_record, ArchiveManifest),
    "steps": parse_steps,
}


def second(document: Document) -> Document:
    return {**document, "schema_version": "2.0.0", "lifted": [*document.get("lifted", []), 2]}


def third(document: Document) -> Document:
    return {**document, "schema_version": "3.0.0", "lifted": [*document.get("lifted", []), 3]}


@pytest.mark.parametrize("name", GOLDEN_IDS)
def test_the_golden_receipt_of_every_version_is_read_and_keeps_its_identity(name: str) -> None:
    content = (GOLDEN_FOLDER / name).read_bytes()
    receipt = parse_receipt(content, name)
    assert receipt.receipt_id == GOLDEN_IDS[name]
    assert receipt.features[0].key == "fused_moe"
    assert receipt_faults(receipt) == []
    written = receipt.model_dump(mode="json")
    for path, since in FIELDS_SINCE.items():
        if parse_version(since) > parse_version(receipt.schema_version):
            *groups, field = path.split(".")
            table = functools.reduce(dict.__getitem__, groups, written)
            assert table.pop(field) is None
    assert json_bytes(written) == content


@pytest.mark.parametrize(
    "name",
    sorted(path.name for path in GOLDEN_FOLDER.iterdir() if not path.name.startswith("receipt-")),
)
def test_golden_documents_of_every_version_are_read_and_lose_nothing(name: str) -> None:
    content = (GOLDEN_FOLDER / name).read_bytes()
    reader = READERS[name.partition("-")[0]]
    written = reader(content, name).model_dump(mode="json")
    assert _contains(written, json.loads(content)), (
        "what newer versions added may be more, nothing may be less"
    )
    assert reader(json_bytes(written), name) == reader(content, name)


def _contains(whole: Any, part: Any) -> bool:
    if isinstance(part, dict):
        return all(key in whole and _contains(whole[key], value) for key, value in part.items())
    if isinstance(part, list):
        return len(whole) == len(part) and all(map(_contains, whole, part))
    return bool(whole == part)


def test_every_released_version_of_every_kind_has_a_golden_document() -> None:
    assert {path.name for path in GOLDEN_FOLDER.iterdir()} == {*FROZEN, *SCHEMAS}


def test_freezing_never_changes_a_golden_document_unasked(tmp_path, capsys) -> None:
    for path in GOLDEN_FOLDER.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    altered = tmp_path / "ceilings-1.0.json"
    altered.write_bytes(b"{}")
    assert golden.main([], tmp_path) == 1
    assert "ceilings-1.0.json: holds another document" in capsys.readouterr().err
    assert altered.read_bytes() == b"{}"
    golden.main(["--again", altered.name], tmp_path)
    assert altered.read_bytes() == golden.documents()[altered.name]


def test_the_newest_golden_documents_leave_no_field_empty() -> None:
    """Otherwise a spoiled document could not show that an empty field's content is read with care."""
    for name in SCHEMAS.keys() - {"receipt-1.2.json", "steps-1.1.json"}:  # whose nulls have reasons
        document = json.loads((GOLDEN_FOLDER / name).read_bytes())
        assert [path for path in _empty(document) if not path.endswith("num_threads")] == [], name


def _empty(value: Any, path: str = "") -> Iterator[str]:
    if value in (None, [], {}):
        yield path
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _empty(item, f"{path}.{key}")
    elif isinstance(value, list):
        for position, item in enumerate(value):
            yield from _empty(item, f"{path}.{position}")


def test_a_receipt_of_the_own_version_explains_every_null() -> None:
    nulls = {"routing.expert_picks": None, "routing.null_ratio": None}
    receipt = make_receipt(nulls)
    assert receipt_faults(receipt) == [
        "null without a reason in missing: routing.expert_picks, routing.null_ratio"
    ]
    assert receipt_faults(make_receipt({**nulls, "schema_version": "1.0.0"})) == []


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
    assert parse_version(RECEIPTS.current) == (1, 2)
    newest = max(parse_version(since) for since in FIELDS_SINCE.values())
    assert newest <= parse_version(RECEIPTS.current)
