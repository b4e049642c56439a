"""Figures with limits: what a benchmark returns, how it is printed, kept and judged.

A benchmark is a function that takes nothing and returns `Figure`s; `overheads` runs those of this package.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path

from lanewise.receipts.environment import collect_environment

RESULTS = Path(__file__).resolve().parent / "results"


@dataclass(frozen=True, kw_only=True, slots=True)
class Figure:
    """One measured number and the limit it must stay under.

    Attributes:
        name: what was measured.
        value: the number.
        limit: largest acceptable value.
        unit: of both.
        how: number of repeats and the statistic, for the reader of the table.
    """

    name: str
    value: float
    limit: float
    unit: str
    how: str

    @property
    def ok(self) -> bool:
        """Whether the limit is kept."""
        return self.value < self.limit


def print_figures(figures: Sequence[Figure]) -> None:
    width = max(len(figure.name) for figure in figures)
    print(f"{'':{width}}  {'figure':>12}  {'limit':>9}      how")
    for figure in figures:
        mark = "ok" if figure.ok else "MISSED"
        value, limit = f"{figure.value:.4g} {figure.unit}", f"{figure.limit:g} {figure.unit}"
        print(f"{figure.name:{width}}  {value:>12}  {limit:>9}  {mark:<6}  {figure.how}")


def write_figures(figures: Sequence[Figure], *, name: str, today: date) -> Path:
    """Keep figures with the environment they were measured in, as `results/<date>-<name>.json`."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f"{today.isoformat()}-{name}.json"
    document = {
        "date": today.isoformat(),
        "environment": collect_environment().model_dump(mode="json"),
        "figures": [{**asdict(figure), "ok": figure.ok} for figure in figures],
    }
    path.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return path


def report(figures: Sequence[Figure], *, name: str, write: bool) -> int:
    """Print figures, keep them if asked, and return the exit code: 1 if a limit is missed."""
    print_figures(figures)
    if write:
        print(f"wrote {write_figures(figures, name=name, today=date.today())}")
    missed = [figure.name for figure in figures if not figure.ok]
    if missed:
        sys.stderr.write(f"missed: {', '.join(missed)}\n")
    return 1 if missed else 0
