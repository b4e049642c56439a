"""The report: one offline HTML file, drawn from a campaign's documents."""

from __future__ import annotations

import re
from datetime import datetime
from functools import cache
from importlib import resources
from pathlib import Path

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from lanewise.dash.by_lane import HEADERS, NUMBERS, LaneTable
from lanewise.dash.evidence import Evidence, EvidenceStore, gather
from lanewise.dash.page import build_page
from lanewise.receipts import files

TEMPLATE = "report.html.j2"
BY_LANE_TEMPLATE = "by_lane.html.j2"
STYLE = "report.css"
SCRIPT = "report.js"
MAX_NAME_CHARACTERS = 100


def write_report(store: EvidenceStore, campaign_id: str, *, now: datetime) -> str:
    """Write `<store>/reports/<date>-<lane>.html`; a second report of the day gets a suffix, none is overwritten.

    Args:
        store: where the campaign's documents are.
        campaign_id: the campaign.
        now: the time the report is drawn, with its zone; its date names the file.

    Returns:
        The location written.

    Raises:
        ReceiptError: the campaign or a decision is missing or damaged.
        StoreError: the disk is full or the folder cannot be written.
    """
    evidence = gather(store, campaign_id)
    return _write(store.root, evidence.campaign.lane.name, render_report(evidence, now=now), now)


def write_by_lane(root: str, table: LaneTable, *, now: datetime) -> str:
    """Write `<root>/reports/<date>-by-lane-<features>.html`; returns its location.

    Args:
        root: the store that keeps it.
        table: features side by side on several lanes.
        now: the time it is drawn, with its zone.

    Raises:
        StoreError: the disk is full or the folder cannot be written.
    """
    name = f"by-lane-{'-'.join(table.features)}"[:MAX_NAME_CHARACTERS]
    return _write(root, name, render_by_lane(table, now=now), now)


def render_by_lane(table: LaneTable, *, now: datetime) -> str:
    """The by-lane table as one HTML document, as self-contained as the report."""
    template = _environment().get_template(BY_LANE_TEMPLATE)
    return template.render(
        table=table,
        headers=HEADERS,
        numbers=NUMBERS,
        now=now,
        style=Markup(_asset(STYLE)),
        script=Markup(_asset(SCRIPT)),
    )


def _write(root: str, name: str, text: str, now: datetime) -> str:
    location = _claim(root, name, now)
    try:
        files.write_bytes(location, text.encode("utf-8"))
    except BaseException:
        files.remove(location)
        raise
    return location


def render_report(evidence: Evidence, *, now: datetime) -> str:
    """The report as one HTML document: no request leaves it, it reads without JavaScript, it prints on A4."""
    template = _environment().get_template(TEMPLATE)
    return template.render(
        page=build_page(evidence, now=now),
        # Our own files, not evidence: the only text that is not escaped, besides charts built as XML.
        style=Markup(_asset(STYLE)),
        script=Markup(_asset(SCRIPT)),
    )


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FunctionLoader(_asset),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["breakable"] = _breakable
    environment.filters["svg"] = Markup
    return environment


def _asset(name: str) -> str:
    return (resources.files("lanewise.dash") / "templates" / name).read_text(encoding="utf-8")


def _breakable(text: str) -> Markup:
    """Escaped text that may break after `_`, `.`, `-`, `/`, `,` and `:` instead of being cut, not before ✓ and ✗."""
    text = re.sub(r" (?=[✓✗])", "\N{NO-BREAK SPACE}", text)
    pieces = re.split(r"(?<=[_.\-/,:])(?=\w)", text)
    return Markup("<wbr>").join(pieces)


def _claim(root: str, lane_name: str, now: datetime) -> str:
    """Reserve a file name that no report has, also against another process that writes at the same time."""
    stem = f"{now:%Y-%m-%d}-{re.sub(r'[^A-Za-z0-9_.-]+', '-', lane_name).strip('-.') or 'lane'}"
    number = 1
    while True:
        location = f"{root}/reports/{stem}{'' if number == 1 else f'-{number}'}.html"
        if files.exists(location):
            number += 1
            continue
        if files.is_remote(location):
            return location
        Path(location).parent.mkdir(parents=True, exist_ok=True)
        try:
            Path(location).open("xb").close()
        except FileExistsError:
            number += 1
            continue
        return location
