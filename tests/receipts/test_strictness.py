"""What JSON parsers let through and a record cannot hold is refused, in one line whatever the file contains."""

import json

import pytest

from lanewise.errors import ReceiptError
from lanewise.receipts.decision import Decision
from lanewise.receipts.document import MAX_DEPTH, parse_json, parse_receipt, parse_record
from lanewise.receipts.index import Index
from lanewise.receipts.migrate import upcast
from lanewise.receipts.promote import promote
from lanewise.receipts.store import Store, json_bytes
from tests.receipts.factory import make_body, make_decision, make_receipt


def nested(depth: int) -> bytes:
    """An object that many objects deep."""
    return b'{"a":' * depth + b"1" + b"}" * depth


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'{"a": 1, "a": 2}', "the key 'a' stands twice"),
        (b'{"a": NaN}', "NaN is not a finite number"),
        (b'{"a": 1e999}', "1e999 is not a finite number"),
        (b'{"a": 9007199254740992}', "an integer of 16 digits"),
        (b'{"a": ' + b"9" * 5_000 + b"}", "an integer of 5000 digits"),
        (b'{"a": "\\ud800"}', "surrogates not allowed"),
        (b'{"a": "\xed\xa0\x80"}', "not UTF-8 at byte 7"),
        (b"\xff\xfe{\x00}\x00", "not UTF-8 at byte 0"),
        (nested(MAX_DEPTH + 1), "nested deeper than 64"),
        (nested(100_000), "nested deeper than 64"),
    ],
)
def test_what_could_not_be_written_back_is_refused(content: bytes, words: str) -> None:
    with pytest.raises(ReceiptError, match=rf"^file: .*{words}[^\n]*$"):
        parse_json(content, "file")


def test_the_bounds_themselves_are_allowed() -> None:
    assert parse_json(b'{"a": [9007199254740991, -9007199254740991]}', "file")
    assert parse_json(nested(MAX_DEPTH), "file")
    assert parse_json(b'{"a": "\\ud83d\\ude00 \\u00e9"}', "file") == {"a": "😀 é"}


def test_foreign_text_in_a_message_stays_on_its_line() -> None:
    body = json.loads(json_bytes(make_decision()))
    for key in ("a\nb", "\x1b[31m", "x" * 9_000):
        with pytest.raises(ReceiptError) as caught:
            parse_record(Decision, json.dumps({**body, key: 1}).encode(), "file")
        assert str(caught.value).isprintable()
        assert len(str(caught.value)) < 400
    for version in ("9" * 9_000, "1\n.0.0", "9" * 5_000 + ".0.0"):
        with pytest.raises(ReceiptError) as caught:
            upcast({**body, "schema_version": version})
        assert str(caught.value).isprintable()
        assert len(str(caught.value)) < 400


def test_a_claimed_id_of_any_kind_is_one_line() -> None:
    body = json.loads(json_bytes(make_receipt()))
    with pytest.raises(ReceiptError, match=r"^file: altered: it claims a\\nb[^\n]*$"):
        parse_receipt(json.dumps({**body, "receipt_id": "a\nb"}).encode(), "file")


def test_a_listing_refuses_tables_of_another_type() -> None:
    body = json.loads(json_bytes(make_receipt()))
    with pytest.raises(ReceiptError, match="no receipt of schema"):
        promote("receipt", {**body, "experiment": [1]}, "file")


def test_an_index_names_a_file_that_is_not_for_it_and_lists_the_others(tmp_path) -> None:
    store = Store(tmp_path)
    _, location = store.write_receipt(make_body())
    (tmp_path / "receipts" / "odd.json").write_bytes(nested(100_000))
    listing = Index(store).query()
    assert [row.location for row in listing.rows] == [location]
    assert len(listing.unreadable) == 1
