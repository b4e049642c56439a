"""Puts the tables of the simulation study into docs/METHOD.md: `python -m tools.method`. The prose stays as written."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
METHOD = ROOT / "docs" / "METHOD.md"
STUDY = ROOT / "receipts" / "proofs" / "simulated_campaigns.json"

_TABLE = re.compile(r"(<!-- table: (.+?) -->\n)(.*?)(<!-- end -->)", re.DOTALL)


def method(text: str, study: dict[str, Any]) -> str:
    """The page with every generated part made anew.

    Args:
        text: the page, with `<!-- table: TITLE -->` … `<!-- end -->` around every table; TITLE `counts` is the line that says
            what was simulated.
        study: the committed result of the proof `simulated_campaigns`.

    Raises:
        KeyError: the study has no table of that title.
    """

    def filled(match: re.Match[str]) -> str:
        opening, title, _old, closing = match.groups()
        body = _counts(study) if title == "counts" else _rows(study["tables"][title])
        return f"{opening}{body}\n{closing}"

    return _TABLE.sub(filled, text)


def _rows(rows: list[list[str]]) -> str:
    header, *body = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([header, "|---" + "|---:" * (len(rows[0]) - 1) + "|", *body])


def _counts(study: dict[str, Any]) -> str:
    counts = ", ".join(
        f"{count:,} {what.replace('_', ' ')}" for what, count in study["counts"].items()
    )
    held = sum(claim["holds"] for claim in study["claims"])
    return (
        f"{counts}; {held} of {len(study['claims'])} claims hold; {study['date'][:10]}, "
        f"numpy {study['versions']['numpy']}, scipy {study['versions']['scipy']}."
    )


if __name__ == "__main__":
    page = method(METHOD.read_text("utf-8"), json.loads(STUDY.read_text("utf-8")))
    METHOD.write_text(page, encoding="utf-8")
    sys.stdout.write(f"{METHOD.relative_to(ROOT)} written\n")
