"""Documents with names of their own notice an altered digit, and are read as before where they have no seal."""

import json
import re
from pathlib import Path

import pytest

from lanewise.errors import ReceiptError
from lanewise.lane.digest import digest
from lanewise.receipts.seal import SEAL, opened, sealed
from lanewise.receipts.store import Store, json_bytes
from lanewise.receipts.validate import record_file_faults
from tests.receipts.calibrations import make_calibration
from tests.receipts.factory import make_campaign, make_ceilings, make_decision

WRITERS = {
    "decision": lambda store: store.write_decision(make_decision()),
    "campaign": lambda store: store.write_campaign(make_campaign()),
    "calibration": lambda store: store.write_calibration(make_calibration()),
    "ceilings": lambda store: store.write_ceilings(make_ceilings()),
}
DIGIT = re.compile(rb"[0-9]")


def test_a_seal_is_the_digest_of_all_else() -> None:
    """By hand: RFC 8785 of the body is `{"a":1,"b":[0.5]}`."""
    body = {"b": [0.5], "a": 1}
    document = sealed(body)
    assert document[SEAL] == digest({"a": 1, "b": [0.5]})
    assert opened(document) == body
    assert sealed(document) == document, "sealing anew does not seal the seal"
    assert opened(body) == body
    assert opened(dict(reversed(document.items()))) == body, "the order of keys says nothing"


@pytest.mark.parametrize("claimed", [None, 1, "", "sha256:", "a\nb", digest({"a": 2})])
def test_another_seal_is_refused_on_one_line(claimed: object) -> None:
    with pytest.raises(ReceiptError, match="altered: its body_digest is ") as caught:
        opened({"a": 1, SEAL: claimed})
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("kind", WRITERS)
def test_every_altered_digit_is_refused(tmp_path: Path, kind: str) -> None:
    store = Store(tmp_path)
    path = Path(WRITERS[kind](store))
    content = path.read_bytes()
    version = content.index(b'"schema_version"'), content.index(b",")
    places = [m.start() for m in DIGIT.finditer(content) if not version[0] < m.start() < version[1]]
    assert places
    for place in places[:: max(1, len(places) // 60)]:
        other = b"3" if content[place : place + 1] != b"3" else b"4"
        path.write_bytes(content[:place] + other + content[place + 1 :])
        fault = record_file_faults(str(path), store)[0]
        assert (
            re.match(
                r"altered: its body_digest is .* and its content has .*; restore the file from a copy, or delete it",
                fault,
            )
            or "not JSON" in fault
        ), fault
    path.write_bytes(content)
    assert not any("altered" in fault for fault in record_file_faults(str(path), store))


def test_a_decision_is_read_as_it_was_written_with_or_without_a_seal(tmp_path: Path) -> None:
    store, decision = Store(tmp_path), make_decision()
    path = Path(store.write_decision(decision))
    assert store.read_decision(decision.decision_id) == decision
    path.write_bytes(json_bytes(decision))
    assert store.read_decision(decision.decision_id) == decision


def test_a_newer_minor_is_read_by_its_seal_and_a_newer_major_is_not_called_altered(
    tmp_path: Path,
) -> None:
    store = Store(tmp_path)
    path = Path(store.write_decision(make_decision()))
    document = json.loads(path.read_bytes())
    newer = {**document, "schema_version": "1.99.0", "novelty": 0.25}
    path.write_bytes(json_bytes(sealed(newer)))
    assert store.read_decision(str(path)).model_dump()["novelty"] == 0.25
    path.write_bytes(json_bytes({**sealed(newer), "novelty": 0.26}))
    with pytest.raises(ReceiptError, match="altered"):
        store.read_decision(str(path))
    path.write_bytes(json_bytes({**document, "schema_version": "2.0.0"}))
    with pytest.raises(ReceiptError, match="pip install --upgrade lanewise"):
        store.read_decision(str(path))
