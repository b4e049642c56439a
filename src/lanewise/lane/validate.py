"""Validate merged lane tables: form by the schema, rules between sizes, each problem with its place."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from lanewise.errors import Problem
from lanewise.lane import rules
from lanewise.lane.digest import MAX_SAFE_INTEGER
from lanewise.lane.fields import is_optional_table, table_at, tables_with_key
from lanewise.lane.schema import Lane
from lanewise.lane.sources import KeyPath, dotted
from lanewise.lane.suggest import did_you_mean, nearest

ABSENT = "none"
"""Value that takes an optional table away."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Draft:
    """Merged tables that are not validated yet.

    Attributes:
        tables: the content, base first.
        places: path of a key → where it was set.
        name: the file, for problems without a key.
        base: the tables before the last layer was put on: what stands in for a value that is wrong, so that one run
            can report both the wrong value and the rules broken elsewhere.
    """

    tables: dict[str, Any]
    places: Mapping[KeyPath, str]
    name: str
    base: Mapping[str, Any]

    def where(self, path: KeyPath) -> str:
        """Where a key was set, else its nearest enclosing table, else the file."""
        for length in range(len(path), 0, -1):
            if path[:length] in self.places:
                return self.places[path[:length]]
        return self.name


def validate(draft: Draft) -> tuple[Lane | None, list[Problem]]:
    """The lane, and every problem of form and of rules; only without problems is the lane as asked."""
    tables = _without_absent(draft.tables, ())
    unusable = dict(_unusable_numbers(tables, ()))
    problems = [
        Problem(where=draft.where(path), path=dotted(path), message=message)
        for path, message in unusable.items()
    ]
    lane, errors = _parse(tables)
    problems.extend(_problem(error, draft) for error in errors if error["loc"] not in unusable)
    if lane is None:
        # Rules are checked beside what is wrong in form, so that one run shows everything.
        lane, _ = _parse(_restored(tables, [error["loc"] for error in errors], draft.base))
    if lane is not None:
        problems.extend(
            Problem(where=draft.where(path), path=dotted(path), message=message)
            for path, message in rules.faults(lane)
        )
    return lane, sorted(problems, key=_by_place)


def _parse(tables: Mapping[str, Any]) -> tuple[Lane | None, list[ErrorDetails]]:
    """Validate strictly: through JSON, where lists are tuples but text is no number and true is no count."""
    try:
        return Lane.model_validate_json(json.dumps(tables, default=str), strict=True), []
    except ValidationError as error:
        return None, error.errors(include_url=False)


def _problem(error: ErrorDetails, draft: Draft) -> Problem:
    path: KeyPath = error["loc"]
    return Problem(where=draft.where(path), path=dotted(path), message=_sentence(error))


def _sentence(error: ErrorDetails) -> str:
    path: KeyPath = error["loc"]
    kind = error["type"]
    if kind == "extra_forbidden":
        return _unknown_key(path)
    if kind == "missing":
        return "missing; every lane needs it here (or a base lane in `extends` that has it)"
    value = error["input"]
    shown = json.dumps(value) if not isinstance(value, (dict, list)) else "…"
    context = error.get("ctx", {})
    if kind == "literal_error":
        hint = nearest(str(value), re.findall(r"'([^']*)'", str(context["expected"])))
        suggestion = f" Did you mean '{hint}'?" if hint else ""
        return f"= {shown} is not allowed; use {context['expected']}.{suggestion}"
    expectation = error["msg"].removeprefix("Input ").removeprefix("should be ")
    return f"= {shown} is wrong: it must be {expectation}"


def _unknown_key(path: KeyPath) -> str:
    key = str(path[-1])
    table = table_at(path[:-1])
    known = () if table is None else tuple(table.model_fields)
    elsewhere = [f"[{name}]" for name in tables_with_key(key)]
    if elsewhere:
        return f"unknown key here. It belongs in {' or '.join(elsewhere)}."
    return f"unknown key. {did_you_mean(key, known)}"


def _unusable_numbers(value: Any, path: KeyPath) -> Iterator[tuple[KeyPath, str]]:
    """Numbers that TOML can write and canonical JSON, hence a digest, cannot hold."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _unusable_numbers(item, (*path, key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _unusable_numbers(item, (*path, index))
    elif isinstance(value, float) and not math.isfinite(value):
        yield path, f"= {value} is not a finite number"
    elif isinstance(value, int) and abs(value) > MAX_SAFE_INTEGER:
        yield path, f"= {value} is too large; use at most 2^53 − 1 = {MAX_SAFE_INTEGER}"


def _without_absent(tables: Mapping[str, Any], path: KeyPath) -> dict[str, Any]:
    return {
        key: _without_absent(value, (*path, key)) if isinstance(value, Mapping) else value
        for key, value in tables.items()
        if not (value == ABSENT and is_optional_table((*path, key)))
    }


def _restored(
    tables: Mapping[str, Any], paths: Sequence[KeyPath], base: Mapping[Any, Any]
) -> dict[str, Any]:
    """A copy of the tables with the values at these paths as the base has them, or away."""
    wrong = {path[0] for path in paths if len(path) == 1}
    kept = {key: value for key, value in tables.items() if key not in wrong}
    kept |= {str(key): base[key] for key in wrong if key in base}
    for key, value in kept.items():
        below = [path[1:] for path in paths if path[0] == key and len(path) > 1]
        if below and isinstance(value, Mapping):
            under = base.get(key)
            kept[key] = _restored(value, below, under if isinstance(under, Mapping) else {})
        elif below and key in base:
            kept[key] = base[key]
    return kept


def _by_place(problem: Problem) -> tuple[str, int]:
    """File, then line, so that a file reads from top to bottom."""
    name, _, line = problem.where.rpartition(":")
    return (name, int(line)) if line.isdigit() else (problem.where, 0)


def paths_of(value: Any, path: KeyPath) -> Iterator[KeyPath]:
    """The path of every table and key below a value."""
    if path:
        yield path
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from paths_of(item, (*path, key))
