"""docs/METHOD.md says what the committed simulation study found, and the study is the one that the code makes."""

import json
import re

import pytest

from tools.method import METHOD, STUDY, method
from tools.proofs.simulated_campaigns import run

COMMITTED = json.loads(STUDY.read_text("utf-8"))


def test_the_page_is_what_the_study_says() -> None:
    page = METHOD.read_text("utf-8")
    assert page == method(page, COMMITTED), "run `python -m tools.method`"


def test_the_page_shows_every_table() -> None:
    shown = re.findall(r"<!-- table: (.+?) -->", METHOD.read_text("utf-8"))
    assert set(shown) == {"counts", *COMMITTED["tables"]}


def test_a_table_that_the_study_lacks_is_an_error() -> None:
    with pytest.raises(KeyError, match="no such"):
        method("<!-- table: no such -->\n<!-- end -->", COMMITTED)


def test_every_claim_of_the_study_holds_at_full_counts() -> None:
    assert COMMITTED["scale"] >= 1.0
    assert min(v for k, v in COMMITTED["counts"].items() if k != "cells") >= 2_000
    assert [claim["text"] for claim in COMMITTED["claims"] if not claim["holds"]] == []


@pytest.mark.slow
def test_few_campaigns_make_the_same_claims_and_tables() -> None:
    found = run(0.01)
    assert [claim.text for claim in found.claims] == [
        claim["text"] for claim in COMMITTED["claims"]
    ]
    shapes = {title: [len(row) for row in rows] for title, rows in found.tables.items()}
    assert shapes == {
        title: [len(row) for row in rows] for title, rows in COMMITTED["tables"].items()
    }
    naive = [claim for claim in found.claims if claim.text.startswith("naive")]
    assert len(naive) == 7
