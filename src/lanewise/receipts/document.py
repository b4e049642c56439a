"""From bytes to a checked record: parse, version, identity, shape. Every refusal is one line that names the file."""

from __future__ import annotations

import functools
import json
import math
import operator
import types
import typing
from collections.abc import Mapping
from typing import Annotated, Any, TypeVar, get_args, get_origin

from pydantic import ValidationError, create_model

from lanewise.errors import ReceiptError, one_line
from lanewise.lane.digest import MAX_SAFE_INTEGER, digest
from lanewise.receipts.migrate import STEPS, Document, History, is_newer_minor, upcast
from lanewise.receipts.schema import Record, RunReceipt, StepSeries
from lanewise.receipts.seal import SEAL, opened

RecordT = TypeVar("RecordT", bound=Record)

MAX_DEPTH = 64
"""Tables and lists inside each other; no record nests deeper than ten."""


def receipt_id_of(body: Mapping[str, Any]) -> str:
    """`sha256:…` over the canonical JSON (RFC 8785) of a receipt's body without its `receipt_id`."""
    return digest({name: value for name, value in body.items() if name != "receipt_id"})


def parse_document(content: bytes, where: str) -> Document:
    """Parse JSON bytes and lift them to the current major version.

    Args:
        content: the file's bytes.
        where: the file, for messages.

    Raises:
        ReceiptError: truncated, not JSON, not an object, or of a newer major version.
    """
    return _lift(parse_json(content, where), where)


def parse_json(content: bytes, where: str) -> Document:
    """Parse JSON bytes into an object, whatever version it is of.

    Stricter than `json`, in what could not be written back: no repeated keys, no NaN or infinity, no integer beyond
    ±(2^53 − 1), no lone surrogate, no nesting deeper than `MAX_DEPTH`.

    Raises:
        ReceiptError: truncated, not such JSON, or not an object.
    """
    try:
        document = json.loads(
            content.decode("utf-8"),
            object_pairs_hook=_without_repeats,
            parse_float=_finite,
            parse_int=_safe_integer,
            parse_constant=_finite,
        )
        _check_depth(document)
        if b"\\u" in content:
            json.dumps(document, ensure_ascii=False).encode("utf-8")
    except (ValueError, RecursionError) as error:
        kind = "truncated" if _looks_truncated(content) else "not JSON"
        raise ReceiptError(
            f"{where}: {kind} ({one_line(_why(error))}); restore the file from a copy, or delete it"
        ) from error
    if not isinstance(document, dict):
        raise ReceiptError(
            f"{where}: holds a JSON {type(document).__name__}, a record is an object; delete the file"
        )
    return document


def parse_receipt(content: bytes, where: str) -> RunReceipt:
    """Parse, lift, check the identity and the shape of a receipt.

    Raises:
        ReceiptError: it cannot be read or does not hold what it claims.
    """
    document = parse_json(content, where)
    lifted = _lift(document, where)
    check_identity(document, where)
    return build_record(RunReceipt, lifted, where)


def parse_record(model: type[RecordT], content: bytes, where: str) -> RecordT:
    """Parse, lift, check the seal and the shape of a document that has a name of its own, such as a decision.

    Raises:
        ReceiptError: it cannot be read, is not what was sealed, or does not have the shape of its version.
    """
    document = parse_json(content, where)
    lifted = _lift(document, where)
    try:
        opened(document)
    except ReceiptError as error:
        raise ReceiptError(
            f"{where}: {error}; restore the file from a copy, or delete it and have it made again"
        ) from error
    lifted.pop(SEAL, None)
    return build_record(model, lifted, where)


def parse_steps(content: bytes, where: str) -> StepSeries:
    """Parse, lift and check the shape of a receipt's step sidecar.

    Raises:
        ReceiptError: it cannot be read or does not have the shape of its version.
    """
    document = _lift(parse_json(content, where), where, STEPS)
    return build_record(StepSeries, document, where, STEPS)


def check_identity(document: Document, where: str) -> None:
    """Compare the id in a receipt, as it was written, with the digest of its content.

    Raises:
        ReceiptError: there is no id, or the content is not what was hashed.
    """
    claimed = document.get("receipt_id")
    if not isinstance(claimed, str):
        raise ReceiptError(f"{where}: has no receipt_id; it is no receipt")
    try:
        actual = receipt_id_of(document)
    except ValueError as error:
        raise ReceiptError(f"{where}: cannot be hashed ({error}); it was altered") from error
    if actual != claimed:
        raise ReceiptError(
            f"{where}: altered: it claims {one_line(short(claimed))} and its content is {short(actual)}; "
            "restore the file from a copy, or delete it"
        )


def build_record(
    model: type[RecordT], document: Document, where: str, history: History | None = None
) -> RecordT:
    """Check the shape of a document; fields of a newer minor version are kept, in place, as extras.

    Raises:
        ReceiptError: the first fault, with the number of others.
    """
    reader = lenient(model) if is_newer_minor(document, history) else model
    try:
        return reader.model_validate(document)
    except ValidationError as error:
        raise ReceiptError(f"{where}: {first_fault(error)}; the file was altered") from error


def first_fault(error: ValidationError) -> str:
    """The first fault of a validation in one phrase: path, rule, and how many more there are."""
    faults = error.errors(include_url=False, include_context=False)
    place = ".".join(str(part) for part in faults[0]["loc"]) or "the document"
    more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
    return f"{one_line(place)}: {one_line(faults[0]['msg'])}{more}"


@functools.cache
def lenient(model: type[RecordT]) -> type[RecordT]:
    """The same record for readers: it and every record inside keep fields they do not know."""
    fields: dict[str, Any] = {
        name: (_lenient_annotation(info.annotation), info)
        for name, info in model.model_fields.items()
    }
    return create_model(model.__name__, __base__=model, __cls_kwargs__={"extra": "allow"}, **fields)


def short(receipt_id: str, num_digits: int = 12) -> str:
    """The first digits of an id, as tables show it."""
    return receipt_id.removeprefix("sha256:")[:num_digits]


def _lenient_annotation(annotation: Any) -> Any:
    if isinstance(annotation, type) and issubclass(annotation, Record):
        return lenient(annotation)
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is None or origin is typing.Literal:
        return annotation
    if origin is Annotated:
        return Annotated[(_lenient_annotation(arguments[0]), *arguments[1:])]
    rewritten = tuple(_lenient_annotation(argument) for argument in arguments)
    if origin in {types.UnionType, typing.Union}:
        return functools.reduce(operator.or_, rewritten)
    return origin[rewritten]


def _lift(document: Document, where: str, history: History | None = None) -> Document:
    try:
        return upcast(document, history)
    except ReceiptError as error:
        raise ReceiptError(f"{where}: {error}") from error


def _without_repeats(pairs: list[tuple[str, Any]]) -> Document:
    table = dict(pairs)
    if len(table) < len(pairs):
        names = [name for name, _value in pairs]
        repeated = next(name for name in table if names.count(name) > 1)
        raise ValueError(f"the key {repeated!r} stands twice")
    return table


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is not a finite number")
    return value


def _safe_integer(text: str) -> int:
    value = int(text) if len(text) < len(str(MAX_SAFE_INTEGER)) + 2 else MAX_SAFE_INTEGER + 1
    if abs(value) > MAX_SAFE_INTEGER:
        raise ValueError(f"an integer of {len(text)} digits, beyond ±(2^53 − 1)")
    return value


def _check_depth(document: Any) -> None:
    level = [document] if isinstance(document, (dict, list)) else []
    for _ in range(MAX_DEPTH):
        level = [
            item
            for value in level
            for item in (value.values() if isinstance(value, dict) else value)
            if isinstance(item, (dict, list))
        ]
        if not level:
            return
    raise ValueError(f"nested deeper than {MAX_DEPTH}")


def _why(error: ValueError | RecursionError) -> str:
    if isinstance(error, RecursionError):
        return f"nested deeper than {MAX_DEPTH}"
    return (
        f"not UTF-8 at byte {error.start}" if isinstance(error, UnicodeDecodeError) else str(error)
    )


def _looks_truncated(content: bytes) -> bool:
    stripped = content.strip()
    return not stripped or (stripped.startswith(b"{") and not stripped.endswith(b"}"))
