"""Writes docs/RESULTS.md from the evidence under receipts/: `python -m tools.results`. Nothing in it is typed by hand."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from lanewise.dash.evidence import read_decisions
from lanewise.dash.rows import columns, rows
from lanewise.dash.summary import plan_lines, receipt_ids, stack_sentence, verdict_sentence
from lanewise.receipts.decision import CampaignRecord
from lanewise.receipts.store import Store

ROOT = Path(__file__).resolve().parents[1]
EVIDENCE = ROOT / "receipts"
RESULTS = ROOT / "docs" / "RESULTS.md"

INTRODUCTION = """\
# Results

Made by `python -m tools.results` from the receipts, decisions and campaigns under `receipts/`; do not edit. Effects are
treated ÷ control on step time. `lanewise report CAMPAIGN --store receipts/FOLDER` draws any of them,
`lanewise receipt validate --store receipts/FOLDER` checks every file.
"""


def stores() -> tuple[Path, ...]:
    """Folders of the evidence that are stores; results of proofs lie beside them."""
    return tuple(sorted(path.parent for path in EVIDENCE.glob("*/campaigns")))


def results() -> str:
    """The whole page."""
    sections = [INTRODUCTION]
    for folder in stores():
        store = Store(folder)
        campaigns = sorted(store.iter_campaigns(), key=lambda campaign: campaign.created_at)
        sections += ["\n".join(_section(store, folder.name, campaign)) for campaign in campaigns]
    return "\n".join(sections)


def _section(store: Store, folder: str, campaign: CampaignRecord) -> Iterator[str]:
    decisions = read_decisions(store, campaign)
    cited = receipt_ids(decisions)
    receipt = store.read_receipt(cited[0])
    yield f"## {campaign.created_at[:16].replace('T', ' ')} UTC · {campaign.lane.name} · {campaign.machine.class_name}"
    yield ""
    yield verdict_sentence(campaign, decisions)
    yield ""
    yield f"- campaign `{campaign.campaign_id}` in `receipts/{folder}`, {campaign.status}, {len(cited)} receipts"
    yield f"- lane `{campaign.lane.canonical_name}`, `{campaign.lane.digest[:19]}…`"
    environment = receipt.environment
    yield (
        f"- {environment.host_cpu_model_name}, {environment.host_cpu_count} cores, {environment.num_threads} thread a "
        f"process · Python {environment.python_version} · torch {environment.packages['torch']} · "
        f"lanewise {environment.packages['lanewise']}"
    )
    yield f"- {' '.join(plan_lines(campaign)[0].split())}"
    yield ""
    shown = columns(decisions)
    yield "| " + " | ".join(column.title for column in shown) + " |"
    yield "|" + "|".join("---:" if column.right else "---" for column in shown) + "|"
    for row in rows(decisions):
        yield "| " + " | ".join(row.cell(column) for column in shown) + " |"
    yield ""
    sentence = stack_sentence(campaign)
    if sentence:
        yield sentence
        yield ""


if __name__ == "__main__":
    RESULTS.write_text(results(), encoding="utf-8")
    sys.stdout.write(f"{RESULTS.relative_to(ROOT)} written\n")
