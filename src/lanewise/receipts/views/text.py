"""A view as lines: one field a line, its unit read off its name, tables for rows, and every null with its reason."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lanewise.receipts.record import Record
from lanewise.receipts.summary import format_bytes, format_count, format_percent, format_seconds
from lanewise.receipts.views.base import View

INDENT = "  "
HIDDEN = frozenset({"view", "missing"})
NOTHING = "–"
MAX_NAMES = 3
"""Fields named for one reason before the rest is cut."""


def view_lines(view: View) -> list[str]:
    """The view for a person, in the order of its fields."""
    return list(_record_lines(view, view.missing, "", HIDDEN))


def _record_lines(
    record: Record, missing: Mapping[str, str], path: str, hidden: frozenset[str] = frozenset()
) -> Iterator[str]:
    shown = [name for name in type(record).model_fields if name not in hidden]
    width = max(len(name) for name in shown) + 2
    for name in shown:
        value = getattr(record, name)
        place = f"{path}{name}"
        if isinstance(value, Record):
            yield name
            yield from (INDENT + line for line in _record_lines(value, missing, f"{place}."))
        elif _is_table(value):
            yield name
            yield from (INDENT + line for line in _table_lines(value))
            yield from (INDENT + line for line in _reason_lines(missing, f"{place}."))
        else:
            reason = missing.get(place) if value is None or value == () else None
            tail = f"  ({reason})" if reason else ""
            yield f"{name:<{width}}{format_value(name, value)}{tail}".rstrip()


def _reason_lines(missing: Mapping[str, str], place: str) -> Iterator[str]:
    """Why cells of a table are empty, one line for each reason."""
    fields: dict[str, list[str]] = {}
    for path, reason in missing.items():
        if path.startswith(place):
            fields.setdefault(reason, []).append(path.removeprefix(place))
    for reason, names in fields.items():
        shown = ", ".join(names[:MAX_NAMES]) + (" …" if len(names) > MAX_NAMES else "")
        yield f"({shown}: {reason})"


def _is_table(value: object) -> bool:
    return isinstance(value, tuple) and bool(value) and all(isinstance(v, Record) for v in value)


def _table_lines(rows: Sequence[Record]) -> Iterator[str]:
    names = list(type(rows[0]).model_fields)
    cells = [names, *([format_value(name, getattr(row, name)) for name in names] for row in rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(names))]
    for line in cells:
        yield "  ".join(
            cell.ljust(width) for cell, width in zip(line, widths, strict=True)
        ).rstrip()


def format_value(name: str, value: Any) -> str:
    """A value as people read it; the unit is the ending of its name."""
    if value == () and name.endswith("requested"):
        return "own order"
    if value is None or value == () or value == {}:
        return NOTHING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple):
        if all(isinstance(item, tuple) for item in value):
            return "; ".join(format_value(name, item) for item in value)
        return ", ".join(format_value(name, item) for item in value)
    if isinstance(value, Mapping):
        return "; ".join(f"{key}: {format_value(name, item)}" for key, item in value.items())
    if isinstance(value, int | float):
        return _number(name, value)
    return str(value)


def _number(name: str, value: float) -> str:
    if name.endswith("_bytes"):
        return format_bytes(value)
    if name.endswith("flops_per_second"):
        return f"{value / 1e9:,.1f} GFLOP/s"
    if name.endswith("_over_mean_ratio") or name == "speedup_ratio":
        return f"{value:.3f}×"
    if name.endswith("ratio"):
        return format_percent(value)
    if name.endswith(("_per_second", "_flops_per_token")):
        return format_count(value)
    if name.startswith("tokens_per_second"):
        return f"{value:,.1f}"
    if name.endswith("seconds"):
        return format_seconds(value) if value >= 0 else f"−{format_seconds(-value)}"
    return str(value) if isinstance(value, int) else f"{value:.6g}"
