"""What an archive says it holds; `receipts.archive` writes and reads the archives themselves."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from lanewise.receipts.schema import Digest, NonNegativeInt, Producer, Record

ARCHIVE_SCHEMA_VERSION = "1.0.0"


class ArchivedFile(Record):
    """One file of an archive."""

    name: str
    """Relative to the store's root."""
    size_bytes: NonNegativeInt
    sha256: Digest


class ArchiveManifest(Record):
    """What an archive holds, in the order in which it holds it."""

    schema_version: str = ARCHIVE_SCHEMA_VERSION
    kind: Literal["archive"] = "archive"
    producer: Producer
    campaigns: tuple[str, ...]
    """Campaigns that can be resumed from it."""
    files: tuple[ArchivedFile, ...] = Field(default_factory=tuple)
