"""Hypothesis strategies for records, read off the models' own annotations."""

from __future__ import annotations

import enum
import types
import typing
from typing import Annotated, Any, get_args, get_origin

import annotated_types
from hypothesis import strategies as st
from pydantic.fields import FieldInfo

from lanewise.receipts.schema import Record

MAX_SAFE_INTEGER = 2**53 - 1

hexadecimal = st.text("0123456789abcdef", min_size=64, max_size=64)
texts = st.text(max_size=6)
numbers = st.floats(allow_nan=False, allow_infinity=False)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-MAX_SAFE_INTEGER, MAX_SAFE_INTEGER) | numbers | texts,
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2)
    ),
    max_leaves=3,
)


def records(model: type[Record]) -> st.SearchStrategy[Record]:
    """Valid instances of a record; `schema_version` and `kind` keep their defaults."""
    drawn = {
        name: _values(info.annotation, info.metadata)
        for name, info in model.model_fields.items()
        if name not in {"schema_version", "kind"}
    }
    return st.builds(model, **drawn)


def _values(annotation: Any, metadata: list[Any]) -> st.SearchStrategy[Any]:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        found = [m.metadata if isinstance(m, FieldInfo) else [m] for m in arguments[1:]]
        return _values(arguments[0], [*metadata, *(item for items in found for item in items)])
    if origin in {types.UnionType, typing.Union}:
        return st.one_of([_values(argument, metadata) for argument in arguments])
    if origin is typing.Literal:
        return st.sampled_from(arguments)
    if origin is tuple:
        return st.lists(_values(arguments[0], []), max_size=2).map(tuple)
    if origin is dict:
        return st.dictionaries(texts, _values(arguments[1], []), max_size=2)
    if isinstance(annotation, type) and issubclass(annotation, enum.Enum):
        return st.sampled_from(list(annotation))
    if isinstance(annotation, type) and issubclass(annotation, Record):
        return records(annotation)
    return _plain(annotation, metadata)


def _plain(annotation: Any, metadata: list[Any]) -> st.SearchStrategy[Any]:
    above = next((m.gt for m in metadata if isinstance(m, annotated_types.Gt)), None)
    least = next((m.ge for m in metadata if isinstance(m, annotated_types.Ge)), None)
    if annotation is str:
        has_pattern = any(getattr(m, "pattern", None) for m in metadata)
        return hexadecimal.map("sha256:{}".format) if has_pattern else texts
    if annotation is bool:
        return st.booleans()
    if annotation is int:
        return st.integers(-MAX_SAFE_INTEGER if least is None else int(least), MAX_SAFE_INTEGER)
    if annotation is float and above is not None:
        return st.floats(above, 1e300, exclude_min=True)
    if annotation is float:
        return numbers if least is None else st.floats(least, 1e300)
    if annotation is type(None):
        return st.none()
    if annotation is Any:
        return json_values
    raise TypeError(f"no strategy for {annotation!r}")
