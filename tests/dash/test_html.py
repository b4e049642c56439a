"""The HTML report: complete, offline, escaped, never overwritten."""

import re
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest

from lanewise.dash.decision_view import decision_view
from lanewise.dash.evidence import Evidence, gather
from lanewise.dash.html import render_report, write_report
from lanewise.dash.rows import rows
from lanewise.dash.summary import receipt_ids
from lanewise.errors import ReceiptError, StoreError
from lanewise.receipts.decision import Verdict
from lanewise.receipts.store import Store
from tests.dash.conftest import Example
from tests.dash.fixture_campaign import CASES, NOW, build_campaign

VOID = {"meta", "br", "wbr", "hr", "img", "input", "link"}


class Reader(HTMLParser):
    """Collects text and checks that every element is closed in order."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.ids += [value for key, value in attrs if key == "id" and value]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] not in ("script", "style"):
            self.text.append(data)


def read(html: str) -> Reader:
    reader = Reader()
    reader.feed(html)
    reader.close()
    assert reader.open == []
    return reader


def words(html: str) -> str:
    return " ".join(" ".join(read(html).text).split())


def test_html_is_well_formed_and_ids_are_unique(example: Example) -> None:
    reader = read(example.html)
    assert len(reader.ids) == len(set(reader.ids))
    assert reader.tags.count("h1") == 1


def test_nothing_is_requested(example: Example) -> None:
    assert "http:" not in example.html
    assert "https:" not in example.html
    for outside in ("<link", "<img", "<iframe", "@import", "url(http", "//cdn", " src="):
        assert outside not in example.html


def test_every_decision_and_every_receipt_is_there(example: Example) -> None:
    text = words(example.html)
    for decision in example.evidence.decisions:
        assert decision.decision_id in text
        assert decision.reason in text
    cited = receipt_ids(example.evidence.decisions)
    assert len(cited) == 2 * sum(case.num_blocks for case in CASES)
    for receipt_id in cited:
        assert receipt_id in text


def test_sections_come_in_the_promised_order(example: Example) -> None:
    reader = read(example.html)
    sections = [i for i in reader.ids if not i.endswith(("-t", "-d")) and "strip-" not in i]
    assert [i for i in sections if not i.startswith(("badput-", "anatomy-"))] == [
        "decisions",
        "effects",
        "anatomy",
        "losses",
        "memory",
        "badput",
        "steps",
        "lane",
        "environment",
        "method",
        "campaign",
    ]


def test_the_page_says_what_a_person_asks(example: Example) -> None:
    text = words(example.html)
    campaign = example.evidence.campaign
    for part in (
        "On nam56r-tiny, 4 features shorten the step, led by fused_mamba (−71.3 %);",
        campaign.lane.digest,
        campaign.lane.canonical_name,
        "fused_linear_ce : the budget of 5 min holds no block of it",
        "backend_dispatch : both states resolve to sdpa.torch on this machine",
        "threads of a run : 1 in 52, 2 in 2",
        "observed mla_ingress = reshaped.torch (fell back: T=63 is not a multiple of 16)",
        "fused_moe block 2: arm B was killed (signal 9); it ran again",
        "Interactions: fused_residual × regional_compile cancel.",
        "experts (E)",
        "batch.sequence_length 64",
        "OVER_BUDGET",
        "loss at equal steps 3.660 → 3.628 nats per token (−0.032)",
        "loss at equal time 3.660 → 3.659 nats per token (−0.001)",
    ):
        assert part in text, part
    assert len(re.findall(r"<li>", example.html.split('id="method"')[1].split("</ol>")[0])) == 5


def test_a_row_says_how_many_of_its_blocks_count(example: Example) -> None:
    decision = next(d for d in example.evidence.decisions if len(d.blocks) > 1)
    first, *others = decision.blocks
    bad = first.model_copy(update={"valid": False, "reasons": ("no steady state",)})
    changed = decision.model_copy(update={"blocks": (bad, *others)})
    (row,) = rows([changed])
    size = decision_view(changed, row, example.evidence).size
    assert size.startswith(f"{len(others)} of {len(decision.blocks)} blocks count, ")


def test_a_complete_campaign_has_no_warning(example: Example) -> None:
    assert "INCOMPLETE" not in words(example.html)


def test_every_chart_is_well_formed_xml(example: Example) -> None:
    charts = re.findall(r"<svg.*?</svg>", example.html, flags=re.DOTALL)
    assert len(charts) == 4 + 1 + sum(case.num_blocks for case in CASES)
    for chart in charts:
        root = ElementTree.fromstring(chart)
        assert root.findtext("title")
        assert root.findtext("desc")


def test_a_campaign_without_a_tax_says_nothing_about_losses_bought(tmp_path: Path) -> None:
    store = Store(tmp_path)
    campaign = build_campaign(store, cases=CASES[:1])
    html = render_report(gather(store, campaign.campaign_id), now=NOW)
    assert 'id="losses"' not in html
    assert "Δ loss" not in words(html)


def test_rows_open_without_javascript(example: Example) -> None:
    without = re.sub(r"<script>.*?</script>", "", example.html, flags=re.DOTALL)
    reader = read(without)
    assert reader.tags.count("details") >= len(CASES)
    assert "button" not in reader.tags
    assert "onclick" not in without


def test_an_incomplete_campaign_says_so_big(tmp_path: Path) -> None:
    store = Store(tmp_path)
    campaign = build_campaign(store, cases=CASES[:1], changes={"status": "INCOMPLETE"})
    text = words(render_report(gather(store, campaign.campaign_id), now=NOW))
    assert "INCOMPLETE This campaign lacks arms or blocks." in text
    assert "this report is not final" in text
    assert "lanewise ablate nam56r-tiny --resume 2026-11-23-nam56r-tiny-7" in text
    assert "is incomplete and decides nothing yet" in text
    assert "proven" not in text


def test_markup_in_names_is_text(example: Example) -> None:
    campaign = example.evidence.campaign
    hostile = '<b onload="x">&"'
    lane = campaign.lane.model_copy(update={"name": hostile, "canonical_name": hostile})
    decisions = tuple(
        d.model_copy(update={"reason": f"{hostile} reason", "stance": hostile, "feature": hostile})
        for d in example.evidence.decisions[:1]
    )
    evidence = Evidence(
        campaign=campaign.model_copy(update={"lane": lane, "notes": (hostile,), "features": ()}),
        decisions=decisions,
        receipts=example.evidence.receipts,
        series=example.evidence.series,
        unreadable={},
    )
    html = render_report(evidence, now=NOW)
    assert "<b onload" not in html
    assert hostile in words(html)


def test_reports_of_one_day_get_a_suffix_and_are_never_overwritten(tmp_path: Path) -> None:
    store = Store(tmp_path)
    campaign_id = build_campaign(store, cases=CASES[-1:]).campaign_id
    first = Path(write_report(store, campaign_id, now=NOW))
    first.write_text("precious", encoding="utf-8")
    second = Path(write_report(store, campaign_id, now=NOW))
    third = Path(write_report(store, campaign_id, now=NOW))
    next_day = Path(write_report(store, campaign_id, now=datetime(2026, 11, 24, tzinfo=UTC)))
    assert [p.name for p in (first, second, third, next_day)] == [
        "2026-11-23-nam56r-tiny.html",
        "2026-11-23-nam56r-tiny-2.html",
        "2026-11-23-nam56r-tiny-3.html",
        "2026-11-24-nam56r-tiny.html",
    ]
    assert first.read_text(encoding="utf-8") == "precious"
    assert first.parent == tmp_path / "reports"


def test_a_failed_write_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path)
    campaign_id = build_campaign(store, cases=CASES[-1:]).campaign_id

    def full(_location: str, _content: bytes) -> None:
        raise StoreError("the disk is full")

    monkeypatch.setattr("lanewise.dash.html.files.write_bytes", full)
    with pytest.raises(StoreError, match="full"):
        write_report(store, campaign_id, now=NOW)
    assert list((tmp_path / "reports").iterdir()) == []


def test_a_damaged_receipt_is_named_and_the_report_still_drawn(tmp_path: Path) -> None:
    store = Store(tmp_path)
    campaign = build_campaign(store, cases=CASES[:1])
    victim = store.receipt_files()[0]
    Path(f"{store.root}/{victim.name}").write_text("{", encoding="utf-8")
    evidence = gather(store, campaign.campaign_id)
    assert len(evidence.unreadable) == 1
    text = words(render_report(evidence, now=NOW))
    assert "Receipts that cannot be read" in text
    assert "unreadable" in text
    assert f"sha256:{victim.stem}" in text


def test_a_missing_decision_is_an_error(tmp_path: Path) -> None:
    store = Store(tmp_path)
    campaign = build_campaign(store, cases=CASES[:1], changes={"decisions": ["gone"]})
    with pytest.raises(ReceiptError, match="gone"):
        gather(store, campaign.campaign_id)


def test_a_campaign_of_nothing_is_still_a_page(tmp_path: Path) -> None:
    store = Store(tmp_path)
    campaign = build_campaign(store, cases=CASES[-1:])
    text = words(render_report(gather(store, campaign.campaign_id), now=NOW))
    assert "2 were not measured" in text
    assert "Nothing to draw" in text
    assert "No step series was kept." in text
    assert Verdict.NOT_MEASURED.value in text
