"""How verbs print: JSON on request, rich tables on a terminal, plain lines elsewhere."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    from rich.console import Console

JsonFlag = Annotated[bool, typer.Option("--json", help="Print JSON for programs, nothing else.")]
StoreOption = Annotated[
    str | None,
    typer.Option(
        "--store", help="Folder of receipts, decisions and reports.", show_default=".lanewise"
    ),
]

DeviceOption = Annotated[
    Literal["auto", "cpu", "cuda"],
    typer.Option("--device", help="Where to run; auto takes a GPU where one answers."),
]


def store_root(option: str | None) -> str:
    """The store to use: the flag, else `LANEWISE_STORE`, else `.lanewise` in the current folder."""
    from lanewise.receipts.environment import variable

    return option or variable("LANEWISE_STORE") or ".lanewise"


def print_json(value: Any) -> None:
    """Print one JSON document to standard output; pydantic models are dumped in JSON mode."""
    sys.stdout.write(
        json.dumps(_plain(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    )


def console(*, stderr: bool = False) -> Console:
    """A rich console that prints plain, unwrapped lines when it is not on a terminal."""
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    return Console(
        stderr=stderr,
        highlight=False,
        width=None if stream.isatty() else 240,
        soft_wrap=not stream.isatty(),
    )


def print_table(
    headers: Sequence[str], rows: Iterable[Sequence[str]], *, title: str | None = None
) -> None:
    """Print rows as a light table; numbers are the caller's business to format."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, header_style="bold", title=title, title_justify="left", pad_edge=False)
    for header in headers:
        table.add_column(header, overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    console().print(table)


def _plain(value: Any) -> Any:
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json")
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value
