"""The seal of a document that is not named by its content: a digest over what it says, kept beside it.

Receipts are named by their digest. Plans, journal lines, decisions, campaigns, calibrations and ceilings have names of
their own, and an altered digit in one of them would not show. A seal notices mistakes and partial edits; who writes
document and seal anew is not stopped. It belongs to the stored document, not to the record: documents written before there
were seals have none and are read as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lanewise.errors import ReceiptError, one_line
from lanewise.lane.digest import digest

SEAL = "body_digest"
"""Name of the seal in a document."""

NUM_SHOWN = 12
"""Digits of a digest in a message."""


def sealed(body: Mapping[str, Any]) -> dict[str, Any]:
    """A document with its seal: `sha256:…` over the canonical JSON (RFC 8785) of all else that it holds."""
    unsealed = _without(body)
    return {**unsealed, SEAL: digest(unsealed)}


def opened(document: Mapping[str, Any]) -> dict[str, Any]:
    """A document without its seal, after a look at it; one without a seal is taken as it is.

    Raises:
        ReceiptError: the content is not what was sealed. The message names neither file nor remedy.
    """
    body = _without(document)
    if SEAL not in document:
        return body
    claimed = document[SEAL]
    try:
        actual = digest(body)
    except ValueError as error:
        raise ReceiptError(f"altered: it cannot be hashed ({error})") from error
    if claimed != actual:
        raise ReceiptError(
            f"altered: its {SEAL} is {_short(str(claimed))} and its content has {_short(actual)}"
        )
    return body


def _without(document: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in document.items() if name != SEAL}


def _short(text: str) -> str:
    return one_line(text.removeprefix("sha256:")[:NUM_SHOWN])
