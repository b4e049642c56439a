"""Canonical JSON and the digests of lanes.

Canonical JSON is RFC 8785 (JCS): keys sorted by UTF-16 code units, no white space, ECMAScript number formatting, UTF-8.
It is implemented here because it is forty lines and its number formatting rests on Python's own shortest `repr`; the
vectors of RFC 8785 appendix B are in the tests.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from typing import Any

from pydantic import BaseModel

from lanewise.lane.schema import Lane

MAX_SAFE_INTEGER = 2**53 - 1
"""Largest integer an IEEE double holds exactly with all its neighbours (RFC 7493)."""


def canonical_json(value: Any) -> bytes:
    """Serialise a value by RFC 8785.

    Args:
        value: None, bool, int, float, str, or mappings (string keys) and sequences of them; pydantic models are dumped
            in JSON mode first.

    Returns:
        UTF-8 bytes, the same for equal values on every machine.

    Raises:
        ValueError: a number is not finite or too large for a double, or a string holds a lone surrogate.
        TypeError: a value has no JSON form.
    """
    text = _encode(value)
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(
            f"canonical JSON cannot hold the lone surrogate {text[error.start]!r}; clean the text first"
        ) from error


def digest(value: Any) -> str:
    """`sha256:` and the hex digest of the value's canonical JSON."""
    return "sha256:" + hashlib.sha256(canonical_json(value)).hexdigest()


def lane_identity(lane: Lane) -> dict[str, Any]:
    """The tables that decide what is computed: what the lane digest covers and a receipt's `lane.spec` shows.

    Left out are names, features, ops, observability, the machine, and paths: of the data only the recipe counts
    (`stdlib` or `files`, `bytes` or `tokenizer file`); which files they were is the receipt's `data_digest`. Absent
    tables are left out, so that a table added to the schema changes no lane that lacks it.
    """
    tables = lane.model_dump(mode="json")
    data = tables["data"]
    data["source"] = data["source"] if data["source"] == "stdlib" else "files"
    data["tokenizer"] = data["tokenizer"] if data["tokenizer"] == "bytes" else "tokenizer file"
    del tables["topology"]["machine"]
    kept = ("model", "batch", "data", "optimizer", "precision", "recompute", "topology", "seed")
    return {key: _without_absent(tables[key]) for key in kept}


def lane_digest(lane: Lane) -> str:
    """Digest of what is computed; both arms of an ablation share it."""
    return digest(lane_identity(lane))


def model_digest(lane: Lane) -> str:
    """Digest of pattern and dimensions only, by which the ledger recognises the same model in another lane."""
    return digest(lane_identity(lane)["model"])


def config_digest(
    lane_digest_value: str,
    feature_states: Mapping[str, str],
    op_preferences: Mapping[str, Sequence[str]],
) -> str:
    """Digest of the lane digest together with the effective feature states and op preferences."""
    return digest(
        {"lane": lane_digest_value, "features": feature_states, "ops": op_preferences},
    )


def _without_absent(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_absent(item) for key, item in value.items() if item is not None}
    return value


_encode_text = json.JSONEncoder(ensure_ascii=False).encode
"""Escapes exactly what RFC 8785 escapes: quote, backslash and controls, in the same short forms."""


def _encode(value: Any) -> str:
    encode = _BY_TYPE.get(type(value))
    return _encode_other(value) if encode is None else encode(value)


def _encode_other(value: Any) -> str:
    """Of everything that is not of one of JSON's own Python types, among them their subclasses."""
    if value is None or value is True or value is False:
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, str):
        return _encode_text(str(value))
    if isinstance(value, int):
        return _encode_integer(int(value))
    if isinstance(value, float):
        return _encode_float(float(value))
    if isinstance(value, BaseModel):
        return _encode(value.model_dump(mode="json"))
    if isinstance(value, Mapping):
        return _encode_object(value)
    if isinstance(value, Sequence) and not isinstance(value, (bytes, bytearray)):
        return _encode_array(value)
    raise TypeError(
        f"canonical JSON has no form for {type(value).__name__}; pass numbers, strings, lists or dicts"
    )


def _encode_object(value: Mapping[Any, Any]) -> str:
    for key in value:
        if not isinstance(key, str):
            raise TypeError(f"canonical JSON needs string keys, got {key!r}")
    if all(map(str.isascii, value)):
        ordered = sorted(value)  # code points, which are code units here
    else:
        ordered = sorted(value, key=lambda key: key.encode("utf-16-be", "surrogatepass"))
    return "{" + ",".join([f"{_encode_text(key)}:{_encode(value[key])}" for key in ordered]) + "}"


def _encode_array(value: Sequence[Any]) -> str:
    return "[" + ",".join([_encode(item) for item in value]) + "]"


def _encode_integer(value: int) -> str:
    if abs(value) > MAX_SAFE_INTEGER:
        raise ValueError(
            f"canonical JSON cannot hold the integer {value}: beyond ±(2^53 − 1) doubles lose digits; write it as text"
        )
    return str(value)


def _encode_float(value: float) -> str:
    """ECMAScript `Number::toString` (ECMA-262 §6.1.6.1.20) of a finite double."""
    if not math.isfinite(value):
        raise ValueError(f"canonical JSON cannot hold {value}; write null and give the reason")
    if value == 0.0:
        return "0"
    shortest = repr(value)
    if "e" not in shortest:
        return shortest.removesuffix(".0")
    sign, digit_tuple, exponent = Decimal(shortest).as_tuple()
    digits = "".join(map(str, digit_tuple)).rstrip("0")
    assert isinstance(exponent, int)
    # The value is 0.<digits> × 10^point.
    point = len(digit_tuple) + exponent
    prefix = "-" if sign else ""
    if len(digits) <= point <= 21:
        return prefix + digits.ljust(point, "0")
    if 0 < point <= 21:
        return f"{prefix}{digits[:point]}.{digits[point:]}"
    if -6 < point <= 0:
        return f"{prefix}0.{'0' * -point}{digits}"
    mantissa = digits[0] + ("." + digits[1:] if len(digits) > 1 else "")
    power = point - 1
    return f"{prefix}{mantissa}e{'+' if power > 0 else '-'}{abs(power)}"


_BY_TYPE: dict[type, Callable[[Any], str]] = {
    str: _encode_text,
    float: _encode_float,
    dict: _encode_object,
    list: _encode_array,
    int: _encode_integer,
}
