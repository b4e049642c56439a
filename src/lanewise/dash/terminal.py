"""The table of decisions on a terminal, and as plain aligned lines anywhere else."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from lanewise.dash.progress import CampaignProgress
from lanewise.dash.rows import Column, Row, Tone, columns, rows
from lanewise.dash.summary import LaneFacts, closing_lines, header_lines, plan_lines
from lanewise.receipts.decision import Decision

__all__ = [
    "CampaignProgress",
    "LaneFacts",
    "closing_lines",
    "decision_table",
    "header_lines",
    "plan_lines",
]

GAP = 2
"""Spaces between columns."""
MIN_STANCE_WIDTH = 14
"""The stance wraps down to this many cells before a column is dropped."""

_STYLES: dict[Tone, str] = {
    "good": "bold green",
    "bad": "bold red",
    "open": "yellow",
    "quiet": "dim",
}


class DecisionTable:
    """A rich renderable that fits the width it is given."""

    def __init__(self, decisions: Sequence[Decision]) -> None:
        """Prepare the cells."""
        self._rows = rows(decisions)
        self._columns = columns(decisions)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield a fitted table on a terminal, aligned plain lines elsewhere."""
        if not console.is_terminal:
            for line in self._plain_lines():
                yield Segment(line)
                yield Segment.line()
            return
        shown, stance_width = self._fit(options.max_width)
        yield self._table(shown, stance_width)
        if dropped := [c.title for c in self._columns if c not in shown]:
            yield Text(f"not shown at this width: {', '.join(dropped)}", style="dim")

    def _plain_lines(self) -> Iterator[str]:
        widths = [self._width(column) for column in self._columns]
        yield _aligned(self._columns, widths, [column.title for column in self._columns])
        for row in self._rows:
            yield _aligned(self._columns, widths, [row.cell(column) for column in self._columns])

    def _width(self, column: Column) -> int:
        return max([cell_len(column.title), *(cell_len(row.cell(column)) for row in self._rows)])

    def _fit(self, available: int) -> tuple[tuple[Column, ...], int]:
        """Wrap the stance first, then drop columns in the order of their rank."""
        shown = self._columns
        natural = {column.key: self._width(column) for column in shown}
        while True:
            fixed = sum(natural[c.key] for c in shown if c.key != "stance") + GAP * (len(shown) - 1)
            room = available - fixed
            droppable = sorted((c for c in shown if c.drop_rank), key=lambda c: c.drop_rank)
            if room >= min(natural["stance"], MIN_STANCE_WIDTH) or not droppable:
                return shown, max(MIN_STANCE_WIDTH, min(natural["stance"], room))
            shown = tuple(c for c in shown if c is not droppable[0])

    def _table(self, shown: Sequence[Column], stance_width: int) -> Table:
        table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, GAP, 0, 0))
        for column in shown:
            stance = column.key == "stance"
            table.add_column(
                column.title,
                justify="right" if column.right else "left",
                no_wrap=not stance,
                width=stance_width if stance else None,
                overflow="fold",
            )
        for row in self._rows:
            table.add_row(*(_styled(row, column) for column in shown))
        return table


def decision_table(decisions: Sequence[Decision]) -> RenderableType:
    """The table of decisions, one line each, in the order given.

    On a terminal it fits the width: the stance wraps, then tokens/s, goodput, memory, role and `vs` are left out, and
    a last line names what was left out. Elsewhere every column is printed, aligned, however long the lines are.
    """
    return DecisionTable(decisions)


def _styled(row: Row, column: Column) -> Text:
    if column.key == "verdict":
        return Text(row.verdict, style=_STYLES[row.tone])
    if column.key == "observed" and "✗" in row.observed:
        return Text(row.observed, style="bold red")
    return Text(row.cell(column), style="bold" if column.key in ("feature", "step_time") else "")


def _aligned(shown: Sequence[Column], widths: Sequence[int], cells: Sequence[str]) -> str:
    padded = []
    for column, width, cell in zip(shown, widths, cells, strict=True):
        space = " " * (width - cell_len(cell))
        padded.append(space + cell if column.right else cell + space)
    return (" " * GAP).join(padded).rstrip()
