"""Reading a record: identity, versions, shape, and the one line of every refusal."""

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lanewise.errors import ReceiptError
from lanewise.receipts.document import (
    build_record,
    check_identity,
    parse_json,
    parse_receipt,
    parse_steps,
    receipt_id_of,
)
from lanewise.receipts.schema import RunReceipt
from lanewise.receipts.store import json_bytes
from tests.receipts.factory import make_receipt, make_steps
from tests.receipts.strategies import json_values, records

LAW = settings(
    max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)


def sealed(document: dict[str, Any]) -> bytes:
    """The bytes of a document whose id matches its content."""
    return json.dumps({**document, "receipt_id": receipt_id_of(document)}).encode()


def reversed_keys(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: reversed_keys(value[key]) for key in reversed(list(value))}
    return [reversed_keys(item) for item in value] if isinstance(value, list) else value


@LAW
@given(receipt=records(RunReceipt))
def test_receipts_round_trip_and_keep_their_identity(receipt: RunReceipt) -> None:
    body = receipt.model_dump(mode="json")
    sealed_receipt = receipt.model_copy(update={"receipt_id": receipt_id_of(body)})
    assert parse_receipt(json_bytes(sealed_receipt), "r.json") == sealed_receipt


@LAW
@given(receipt=records(RunReceipt))
def test_identity_does_not_depend_on_the_order_of_keys(receipt: RunReceipt) -> None:
    body = receipt.model_dump(mode="json")
    assert receipt_id_of(reversed_keys(body)) == receipt_id_of(body)


@LAW
@given(
    extra=json_values,
    place=st.sampled_from([(), ("timing",), ("timing", "warmup"), ("features", 0), ("goodput",)]),
)
def test_a_newer_minor_is_read_and_its_unknown_fields_are_kept(
    extra: Any, place: tuple[str | int, ...]
) -> None:
    document = make_receipt().model_dump(mode="json")
    document["schema_version"] = "1.7.3"
    target: Any = document
    for part in place:
        target = target[part]
    target["field_of_tomorrow"] = extra
    receipt = parse_receipt(sealed(document), "r.json")
    assert isinstance(receipt, RunReceipt)
    kept: Any = receipt.model_dump(mode="json")
    for part in place:
        kept = kept[part]
    assert kept["field_of_tomorrow"] == extra


def test_an_unknown_field_of_the_own_minor_is_refused() -> None:
    document = {**make_receipt().model_dump(mode="json"), "surprise": 1}
    with pytest.raises(ReceiptError, match=r"r\.json: surprise: Extra inputs"):
        parse_receipt(sealed(document), "r.json")


def test_an_altered_value_is_seen() -> None:
    document = make_receipt().model_dump(mode="json")
    document["timing"]["step_duration_seconds"]["median"] = 0.05
    with pytest.raises(ReceiptError, match=r"r\.json: altered: it claims [0-9a-f]{12} and"):
        parse_receipt(json.dumps(document).encode(), "r.json")


@pytest.mark.parametrize("num_bytes", [0, 1, 100, 2000])
def test_a_truncated_receipt_is_called_truncated(num_bytes: int) -> None:
    content = json_bytes(make_receipt())[:num_bytes]
    with pytest.raises(ReceiptError, match=r"^r\.json: truncated .*restore the file") as caught:
        parse_receipt(content, "r.json")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"[1, 2", b"hello"])
def test_what_is_not_json_is_refused(content: bytes) -> None:
    with pytest.raises(ReceiptError, match=r"r\.json: not JSON"):
        parse_json(content, "r.json")


def test_json_that_is_no_object_is_refused() -> None:
    with pytest.raises(ReceiptError, match="a record is an object"):
        parse_json(b"[]", "r.json")


def test_a_newer_major_is_refused_with_the_command_that_helps() -> None:
    document = {**make_receipt().model_dump(mode="json"), "schema_version": "2.0.0"}
    with pytest.raises(ReceiptError, match="pip install --upgrade lanewise") as caught:
        parse_receipt(sealed(document), "r.json")
    assert str(caught.value).startswith("r.json: written by schema 2.0.0")
    assert "\n" not in str(caught.value)


def test_a_record_without_an_id_is_no_receipt() -> None:
    with pytest.raises(ReceiptError, match="has no receipt_id"):
        check_identity({"kind": "run"}, "r.json")


def test_a_body_that_cannot_be_hashed_is_altered() -> None:
    document = make_receipt().model_dump(mode="json")
    document["memory"]["peak_allocated_bytes"] = 2**60
    with pytest.raises(ReceiptError, match="cannot be hashed"):
        check_identity(document, "r.json")


def test_the_first_fault_of_a_shape_names_its_place() -> None:
    document = make_receipt().model_dump(mode="json")
    del document["timing"]["clock"]
    del document["data"]
    with pytest.raises(ReceiptError, match=r"timing\.clock: Field required \(and 1 more\)"):
        build_record(RunReceipt, document, "r.json")


def test_a_step_sidecar_of_every_minor_is_read_and_a_newer_major_is_refused() -> None:
    document = make_steps().model_dump(mode="json")
    first = {key: value for key, value in document.items() if key != "loss_parts"}
    first["schema_version"] = "1.0.0"
    assert parse_steps(json.dumps(first).encode(), "s.json").loss == make_steps().loss
    newer = {**document, "schema_version": "1.9.0", "temperature_celsius": [41.0]}
    read = parse_steps(json.dumps(newer).encode(), "s.json")
    assert read.model_dump()["temperature_celsius"] == [41.0]
    with pytest.raises(ReceiptError, match="temperature_celsius"):
        parse_steps(json.dumps({**newer, "schema_version": "1.0.0"}).encode(), "s.json")
    with pytest.raises(ReceiptError, match=r"s.json: written by schema 2.0.0, and this .* 1.x"):
        parse_steps(json.dumps({**document, "schema_version": "2.0.0"}).encode(), "s.json")
