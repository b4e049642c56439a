"""One realistic campaign, built once for all tests that only read."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from lanewise.dash.evidence import Evidence, gather
from lanewise.dash.html import render_report
from lanewise.receipts.store import Store
from tests.dash.fixture_campaign import NOW, build_campaign


@dataclass(frozen=True)
class Example:
    store: Store
    evidence: Evidence
    html: str


@pytest.fixture(scope="session")
def example(tmp_path_factory: pytest.TempPathFactory) -> Example:
    root: Path = tmp_path_factory.mktemp("store")
    store = Store(root)
    evidence = gather(store, build_campaign(store).campaign_id)
    return Example(store=store, evidence=evidence, html=render_report(evidence, now=NOW))
