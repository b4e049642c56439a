"""Walk the schema by path: which keys a table has, and which keys may be absent as a whole."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator, Sequence
from typing import Any

from pydantic import BaseModel

from lanewise.lane.schema import Lane


def table_at(path: Sequence[str | int]) -> type[BaseModel] | None:
    """The model behind a table of a lane, e.g. `MoeSpec` for `("model", "moe")`; None when there is none."""
    table: type[BaseModel] = Lane
    for part in path:
        field = table.model_fields.get(str(part))
        found = None if field is None else _model_in(field.annotation)
        if found is None:
            return None
        table = found
    return table


def is_optional_table(path: Sequence[str | int]) -> bool:
    """Whether a path is a table that a lane may do without, such as `model.mtp`."""
    parent = table_at(path[:-1]) if path else None
    field = None if parent is None else parent.model_fields.get(str(path[-1]))
    return (
        field is not None
        and _model_in(field.annotation) is not None
        and type(None) in typing.get_args(field.annotation)
    )


def tables_with_key(key: str) -> Iterator[str]:
    """Dotted names of the tables that have this key, for a key put in the wrong place."""
    yield from _tables_with_key(key, Lane, ())


def _tables_with_key(key: str, table: type[BaseModel], path: tuple[str, ...]) -> Iterator[str]:
    if path and key in table.model_fields:
        yield ".".join(path)
    for name, field in table.model_fields.items():
        inner = _model_in(field.annotation)
        if inner is not None:
            yield from _tables_with_key(key, inner, (*path, name))


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The pydantic model in `Model` or `Model | None`."""
    candidates = (
        typing.get_args(annotation) if isinstance(annotation, types.UnionType) else (annotation,)
    )
    for candidate in candidates:
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate
    return None
