"""The committed evidence is whole, and the page of results is made from it."""

import pytest

from lanewise.receipts.store import Store
from lanewise.receipts.validate import store_faults
from tools.results import RESULTS, results, stores


def test_the_page_is_what_the_evidence_says() -> None:
    assert RESULTS.read_text(encoding="utf-8") == results(), "run `python -m tools.results`"


@pytest.mark.parametrize("folder", stores(), ids=lambda path: path.name)
def test_every_committed_document_is_valid(folder) -> None:
    checked = dict(store_faults(Store(folder)))
    assert checked
    assert {location: faults for location, faults in checked.items() if faults} == {}
