"""The table of decisions on a terminal, and as plain aligned lines anywhere else."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from lanewise.dash.interactions import HEAD, interaction_rows
from lanewise.dash.progress import CampaignProgress
from lanewise.dash.rows import OBSERVED_WRONG, Column, Row, Tone, columns, rows
from lanewise.dash.summary import LaneFacts, closing_lines, header_lines, plan_lines
from lanewise.dash.waterfall import waterfall_lines
from lanewise.receipts.decision import CampaignRecord, Decision

__all__ = [
    "CampaignProgress",
    "LaneFacts",
    "closing_lines",
    "decision_table",
    "header_lines",
    "interaction_lines",
    "plan_lines",
]

GAP = 2
"""Spaces between columns."""
LEAST_WIDTHS: Mapping[str, int] = {"feature": 18, "versus": 11, "observed": 11, "stance": 12}
"""Text columns wrap down to this width, or to their longest unbreakable piece, before a column is dropped."""
WIDEN_ORDER = ("observed", "versus", "stance", "feature")
"""Who gets spare room first."""

_STYLES: Mapping[Tone, str] = {
    "good": "bold green",
    "bad": "bold red",
    "open": "yellow",
    "quiet": "dim",
}
_GLUE = "\N{NO-BREAK SPACE}"


def interaction_lines(campaign: CampaignRecord, decisions: Sequence[Decision]) -> tuple[Text, ...]:
    """The waterfall and the table of interactions; empty for a campaign that looked for none."""
    if campaign.interactions is None:
        return ()
    steps = waterfall_lines(campaign, decisions)
    lines = ["", "from the bare lane to the full stack", *steps] if steps else []
    rows = [HEAD, *interaction_rows(campaign.interactions)]
    widths = [max(cell_len(row[at]) for row in rows) for at in range(len(HEAD))]
    lines.append("")
    for row in rows:
        cells = [
            cell + " " * (width - cell_len(cell)) for cell, width in zip(row, widths, strict=True)
        ]
        lines.append((" " * GAP).join(cells).rstrip())
    return tuple(Text(line) for line in (*lines, ""))


class DecisionTable:
    """A rich renderable that fits the width it is given."""

    def __init__(self, decisions: Sequence[Decision]) -> None:
        """Prepare the cells."""
        self._rows = rows(decisions)
        self._columns = columns(decisions)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield a fitted table on a terminal, aligned plain lines elsewhere."""
        widths = self._fit(options.max_width) if console.is_terminal else None
        if widths is None:
            for line in self._plain_lines():
                yield Segment(line)
                yield Segment.line()
            return
        yield self._table(widths)
        if dropped := [c.title for c in self._columns if c.key not in widths]:
            yield Text(f"not shown at this width: {', '.join(dropped)}", style="dim")

    def _plain_lines(self) -> Iterator[str]:
        widths = [self._natural_width(column) for column in self._columns]
        yield _aligned(self._columns, widths, [column.title for column in self._columns])
        for row in self._rows:
            yield _aligned(self._columns, widths, [row.cell(column) for column in self._columns])

    def _natural_width(self, column: Column) -> int:
        return max([cell_len(column.title), *(cell_len(row.cell(column)) for row in self._rows)])

    def _least_width(self, column: Column) -> int:
        header = max(cell_len(word) for word in column.title.replace(" %", "_%").split())
        cells = [row.cell(column) for row in self._rows]
        if column.key not in LEAST_WIDTHS:
            return max([header, *(cell_len(cell) for cell in cells)])
        pieces = [cell_len(piece) for cell in cells for piece in _pieces(cell, column.key)]
        return min(self._natural_width(column), max([LEAST_WIDTHS[column.key], header, *pieces]))

    def _fit(self, available: int) -> dict[str, int] | None:
        """Column key → width: texts wrap first, then columns go in the order of their rank.

        None when even the columns that are always kept do not fit.
        """
        shown = list(self._columns)
        widths = {column.key: self._least_width(column) for column in shown}
        while sum(widths.values()) + GAP * (len(widths) - 1) > available:
            droppable = [column for column in shown if column.drop_rank]
            if not droppable:
                return None
            victim = min(droppable, key=lambda column: column.drop_rank)
            shown.remove(victim)
            del widths[victim.key]
        spare = available - sum(widths.values()) - GAP * (len(widths) - 1)
        numbers = [column.key for column in shown if column.key not in WIDEN_ORDER]
        by_key = {column.key: column for column in shown}
        for key in (*(key for key in WIDEN_ORDER if key in widths), *numbers):
            more = min(spare, self._natural_width(by_key[key]) - widths[key])
            widths[key] += more
            spare -= more
        return widths

    def _table(self, widths: Mapping[str, int]) -> Table:
        table = Table(
            box=None,
            header_style="bold",
            pad_edge=False,
            padding=(0, GAP, 0, 0),
            collapse_padding=True,
        )
        shown = [column for column in self._columns if column.key in widths]
        for column in shown:
            table.add_column(
                Text("\n".join(_wrap_words(column.title, widths[column.key]))),
                justify="right" if column.right else "left",
                vertical="top",
                no_wrap=True,
                width=widths[column.key],
            )
        for row in self._rows:
            table.add_row(*(_styled(row, column, widths[column.key]) for column in shown))
        return table


def decision_table(decisions: Sequence[Decision]) -> RenderableType:
    """The table of decisions, one row each, in the order given.

    On a terminal it fits the width: names and the stance wrap, then columns are left out in the order of
    `Column.drop_rank`, and a last line names them. Elsewhere, and where a terminal is too narrow for the columns that
    are always kept, every column is printed, aligned, however long the lines are; print it with `soft_wrap=True`
    there, as `cli.output.console` does, so that rich does not crop them.
    """
    return DecisionTable(decisions)


def _styled(row: Row, column: Column, width: int) -> Text:
    cell = row.cell(column)
    if column.key == "stance":
        cell = "\n".join(_wrap_words(cell, width))
    elif column.key in LEAST_WIDTHS:
        cell = "\n".join(_wrap_pieces(_pieces(cell, column.key), width))
    if column.key == "verdict":
        return Text(cell, style=_STYLES[row.tone])
    if column.key == "observed" and OBSERVED_WRONG in row.observed:
        return Text(cell, style="bold red")
    return Text(cell, style="bold" if column.key in ("feature", "step_time") else "")


def _pieces(cell: str, key: str) -> list[str]:
    """Where a cell may break: words of the stance, parts of a name; `✓` stays with the last part."""
    if key == "stance":
        return cell.split()
    glued = re.sub(r" (?=[✓✗])", _GLUE, cell)
    return [piece.replace(_GLUE, " ") for piece in re.findall(r"[^_./ ]*[_./ ]|[^_./ ]+", glued)]


def _wrap_pieces(pieces: Sequence[str], width: int) -> list[str]:
    lines = [""]
    for piece in pieces:
        if lines[-1] and cell_len(lines[-1]) + cell_len(piece.rstrip()) > width:
            lines.append("")
        lines[-1] += piece
    return [line.rstrip() for line in lines]


def _wrap_words(text: str, width: int) -> list[str]:
    glued = text.replace(" %", f"{_GLUE}%")
    wrapped = textwrap.wrap(glued, width, break_long_words=False, break_on_hyphens=False)
    return [line.replace(_GLUE, " ") for line in wrapped] or [""]


def _aligned(shown: Sequence[Column], widths: Sequence[int], cells: Sequence[str]) -> str:
    padded = []
    for column, width, cell in zip(shown, widths, cells, strict=True):
        space = " " * (width - cell_len(cell))
        padded.append(space + cell if column.right else cell + space)
    return (" " * GAP).join(padded).rstrip()
