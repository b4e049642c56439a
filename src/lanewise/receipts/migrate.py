"""Old receipts pass through pure upcasters, one per major version, before anything else reads them.

MINOR versions add optional fields, MAJOR versions break. A reader accepts every minor of its own major, lifts older
majors step by step, and refuses newer ones with the command that helps.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from lanewise.errors import ReceiptError
from lanewise.receipts.schema import SCHEMA_VERSION

Document = dict[str, Any]
Upcaster = Callable[[Document], Document]

UPCASTERS: Mapping[int, Upcaster] = {}
"""Major version → function that lifts a document of it to the next major. Empty while 1 is the only major."""

UPGRADE_COMMAND = "pip install --upgrade lanewise"


def parse_version(text: object) -> tuple[int, int]:
    """Major and minor of a `schema_version`.

    Raises:
        ReceiptError: it is not a version such as `1.0.0`.
    """
    found = re.fullmatch(r"(\d+)\.(\d+)\.\d+", text) if isinstance(text, str) else None
    if found is None:
        raise ReceiptError(
            f"schema_version is {text!r}, not a version such as {SCHEMA_VERSION}; "
            "this is no lanewise document"
        )
    return int(found.group(1)), int(found.group(2))


CURRENT_MAJOR, CURRENT_MINOR = parse_version(SCHEMA_VERSION)


def upcast(
    document: Document,
    *,
    upcasters: Mapping[int, Upcaster] = UPCASTERS,
    current_major: int = CURRENT_MAJOR,
) -> Document:
    """Lift a document to the current major version; one of the current major is returned as it is.

    Args:
        document: the parsed JSON object.
        upcasters: major → function to the next major; each must raise the document's own `schema_version`.
        current_major: major version this program writes.

    Raises:
        ReceiptError: the document is of a newer major, or of one nobody can lift.
    """
    major, _minor = parse_version(document.get("schema_version"))
    if major > current_major:
        raise ReceiptError(
            f"written by schema {document['schema_version']}, and this lanewise reads up to "
            f"{current_major}.x; run `{UPGRADE_COMMAND}`"
        )
    while major < current_major:
        lift = upcasters.get(major)
        if lift is None:
            raise ReceiptError(
                f"written by schema {document['schema_version']}, which no released lanewise wrote; "
                "the file was altered"
            )
        document = lift(document)
        lifted, _minor = parse_version(document.get("schema_version"))
        if lifted != major + 1:
            raise AssertionError(f"upcaster of major {major} made major {lifted}")
        major = lifted
    return document
