"""Old records pass through pure upcasters, one per major version, before anything else reads them.

MINOR versions add optional fields, MAJOR versions break. A reader accepts every minor of its own major, lifts older
majors step by step, and refuses newer ones with the command that helps.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from lanewise.errors import ReceiptError, one_line
from lanewise.receipts.calibration import CALIBRATION_SCHEMA_VERSION
from lanewise.receipts.ceilings import CEILINGS_SCHEMA_VERSION
from lanewise.receipts.decision import DECISION_SCHEMA_VERSION
from lanewise.receipts.manifest import ARCHIVE_SCHEMA_VERSION
from lanewise.receipts.schema import SCHEMA_VERSION, STEPS_SCHEMA_VERSION

Document = dict[str, Any]
Upcaster = Callable[[Document], Document]

UPGRADE_COMMAND = "pip install --upgrade lanewise"


def parse_version(text: object) -> tuple[int, int]:
    """Major and minor of a `schema_version`.

    Raises:
        ReceiptError: it is not a version such as `1.0.0`.
    """
    found = (
        re.fullmatch(r"([0-9]{1,6})\.([0-9]{1,6})\.[0-9]{1,6}", text)
        if isinstance(text, str)
        else None
    )
    if found is None:
        raise ReceiptError(
            f"schema_version is {one_line(repr(text))}, not a version such as {SCHEMA_VERSION}; "
            "this is no lanewise record"
        )
    return int(found.group(1)), int(found.group(2))


@dataclass(frozen=True, kw_only=True, slots=True)
class History:
    """The versions of one family of records.

    Attributes:
        current: version this program writes.
        upcasters: major → function that lifts a document of it to the next major, raising its `schema_version`.
    """

    current: str
    upcasters: Mapping[int, Upcaster] = field(default_factory=dict)


RECEIPTS = History(current=SCHEMA_VERSION)
DECISIONS = History(current=DECISION_SCHEMA_VERSION)
ARCHIVES = History(current=ARCHIVE_SCHEMA_VERSION)
CALIBRATIONS = History(current=CALIBRATION_SCHEMA_VERSION)
STEPS = History(current=STEPS_SCHEMA_VERSION)
"""Of the step sidecars, which have no `kind`."""
HISTORIES: Mapping[str, History] = {
    "run": RECEIPTS,
    "calibration": RECEIPTS,
    "decision": DECISIONS,
    "campaign": DECISIONS,
    "archive": ARCHIVES,
    "noise_calibration": CALIBRATIONS,
    "ceilings": History(current=CEILINGS_SCHEMA_VERSION),
}
"""`kind` of a record → its versions. No upcaster exists while 1 is the only major."""


def history_of(document: Mapping[str, Any]) -> History:
    """The versions of the family this document belongs to.

    Raises:
        ReceiptError: its `kind` is unknown.
    """
    kind = document.get("kind")
    history = HISTORIES.get(kind) if isinstance(kind, str) else None
    if history is None:
        raise ReceiptError(
            f"kind is {one_line(repr(kind))}, and this lanewise knows {', '.join(HISTORIES)}; "
            f"run `{UPGRADE_COMMAND}` if a newer one wrote it"
        )
    return history


def is_newer_minor(document: Mapping[str, Any], history: History | None = None) -> bool:
    """Whether a document of the current major was written by a newer minor and may hold unknown fields."""
    current = parse_version((history or history_of(document)).current)
    return parse_version(document.get("schema_version")) > current


def upcast(document: Document, history: History | None = None) -> Document:
    """Lift a document to the current major version; one of the current major is returned as it is.

    Args:
        document: the parsed JSON object.
        history: its versions; None looks them up by `kind`.

    Raises:
        ReceiptError: the document is of a newer major, or of one nobody can lift.
    """
    history = history or history_of(document)
    current, _minor = parse_version(history.current)
    version = document.get("schema_version")
    major, _minor = parse_version(version)
    if major > current:
        raise ReceiptError(
            f"written by schema {version}, and this lanewise reads up to {current}.x; "
            f"run `{UPGRADE_COMMAND}`"
        )
    while major < current:
        lift = history.upcasters.get(major)
        if lift is None:
            raise ReceiptError(
                f"claims schema {version}, which no released lanewise wrote; it was altered"
            )
        document = lift(document)
        lifted, _minor = parse_version(document.get("schema_version"))
        assert lifted == major + 1, f"upcaster of major {major} made major {lifted}"
        major = lifted
    return document
