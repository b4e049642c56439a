"""One document of every version that is written now, with no field left empty: `tools.golden` freezes them."""

from __future__ import annotations

import enum
import types
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel

from lanewise.receipts.goodput import GoodputByRank
from lanewise.receipts.manifest import ArchivedFile, ArchiveManifest
from lanewise.receipts.profile import LedgerMark
from lanewise.receipts.record import Record
from lanewise.receipts.schema import Producer
from tests.receipts.calibrations import make_calibration
from tests.receipts.factory import (
    make_campaign,
    make_ceilings,
    make_decision,
    make_receipt,
    make_steps,
    sha,
)

RecordT = TypeVar("RecordT", bound=BaseModel)


def complete(record: RecordT, **changes: Any) -> RecordT:
    """A record whose null and empty fields, those inside included, hold a value of their type."""
    return type(record).model_validate(
        {**_filled(type(record), record.model_dump(mode="json")), **changes}
    )


def sample(annotation: Any, metadata: tuple[Any, ...] = ()) -> Any:
    """A JSON value of a field's type."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return sample(inner[0], annotation.__metadata__)
    if origin in (Union, types.UnionType):
        return sample(next(each for each in inner if each is not type(None)), metadata)
    if origin is Literal:
        return inner[0]
    if origin is tuple:
        return [sample(inner[0])]
    if origin is dict:
        return {sample(inner[0]): sample(inner[1])}
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return _filled(annotation, {})
    if isinstance(annotation, type) and issubclass(annotation, enum.Enum):
        return next(iter(annotation)).value
    has_pattern = any(getattr(each, "pattern", None) for each in _flat(metadata))
    return {str: sha("sample") if has_pattern else "text", int: 1, float: 1.0, bool: True}[
        annotation
    ]


def _flat(metadata: tuple[Any, ...]) -> list[Any]:
    return [part for each in metadata for part in (each, *getattr(each, "metadata", ()))]


def _filled(model: type[BaseModel], document: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, field in model.model_fields.items():
        value = document.get(name)
        if value in (None, [], {}):
            default = field.default
            constant = isinstance(default, str) and name in ("schema_version", "kind", "family")
            found[name] = default if constant else sample(field.annotation, tuple(field.metadata))
            continue
        inner = _model_inside(field.annotation)
        if (
            inner is not None
            and isinstance(value, dict)
            and value.keys() <= inner.model_fields.keys()
        ):
            value = _filled(inner, value)
        elif inner is not None and isinstance(value, list):
            value = [_filled(inner, each) for each in value]
        found[name] = value
    return found


def _model_inside(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for each in get_args(annotation):
        found = _model_inside(each)
        if found is not None:
            return found
    return None


EXAMPLES: Mapping[str, Record] = {
    "receipt-1.2.json": make_receipt(
        {
            "goodput_by_rank": sample(GoodputByRank),
            "ledger": {"fused_moe": sample(LedgerMark)},
            "extensions": {"io.example.note": {"any": ["thing"]}},
        }
    ),
    "decision-1.2.json": complete(make_decision(), schema_version="1.2.0"),
    "campaign-1.2.json": complete(make_campaign(), schema_version="1.2.0"),
    "calibration-1.0.json": complete(make_calibration()),
    "steps-1.1.json": make_steps(),
    "archive-1.0.json": ArchiveManifest(
        producer=Producer(name="lanewise", version="0.1.0"),
        campaigns=("2026-11-23-lane-1",),
        files=(
            ArchivedFile(
                name="campaigns/2026-11-23-lane-1/plan.json", size_bytes=7, sha256=sha("plan")
            ),
        ),
    ),
    "ceilings-1.0.json": make_ceilings(),
}
"""Name of the schema → a document of it."""
