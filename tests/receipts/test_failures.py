"""Families of failure: one record each, told apart by name, found by the index."""

from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from lanewise.receipts.failures import CHECK_FAMILIES, Failure, FailureFamily, first_family
from lanewise.receipts.index import Index
from lanewise.receipts.record import Record
from lanewise.receipts.store import Store
from tests.receipts.factory import make_body
from tests.receipts.strategies import records

RECORDS = get_args(get_args(Failure)[0])


def test_every_family_has_exactly_one_record() -> None:
    families = [record.model_fields["family"].default for record in RECORDS]
    assert sorted(families) == sorted(FailureFamily)
    for record in RECORDS:
        assert record.__doc__
        assert len(record.model_fields) <= 6, "a narrow record holds the facts of its family alone"


@settings(max_examples=60, deadline=None, derandomize=True)
@given(example=st.one_of([records(record) for record in RECORDS]))
def test_a_record_is_told_by_its_family(example: Record) -> None:
    adapter: TypeAdapter[Failure] = TypeAdapter(Failure)
    assert adapter.validate_json(adapter.dump_json(example)) == example
    with pytest.raises(ValidationError):
        adapter.validate_python({**adapter.dump_python(example), "surprise": 1})


def test_the_gravest_failed_check_names_the_family() -> None:
    assert first_family([]) is None
    assert first_family(["steady_state"]) is FailureFamily.UNSTEADY
    assert first_family(["steady_state", "observed_backends", "losses_finite"]) == "numerics"
    assert first_family(["a check of tomorrow"]) is FailureFamily.DEFECT
    assert next(iter(CHECK_FAMILIES)) == "losses_finite"


def test_the_index_finds_a_family_and_nothing_else(tmp_path) -> None:
    store = Store(tmp_path)
    failed = {
        "outcome.validity": "invalid",
        "outcome.failure_family": "timeout",
        "outcome.failure": {"family": "timeout", "waited_seconds": 60.0},
    }
    receipt_id, _ = store.write_receipt(make_body(failed))
    store.write_receipt(make_body())
    store.write_receipt(make_body({"schema_version": "1.1.0", "outcome.validity": "invalid"}))
    index = Index(store)
    assert [row.fields.id for row in index.query(failure="timeout").rows] == [receipt_id]
    assert index.query(failure="disk").rows == ()
    assert index.query().num_matches == 3
