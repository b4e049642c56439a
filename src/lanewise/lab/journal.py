"""The campaign's append-only record of what has run: one JSON line per finished or discarded block, or early stop.

A line counts when it is complete. A process killed in the middle of a write leaves half a line, which is dropped when
the journal is next opened, and the block it belonged to is run again.

Beside its entry a line holds the version of its schema and a seal (`receipts.seal`); lines before 1.1 have neither. Versions
mean what they mean for receipts: fields of a newer minor are kept and not understood, a newer major is refused. A line, and
not the file, has a version because a campaign may be resumed by another version of this program.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from lanewise.errors import CampaignError, ReceiptError, StoreError, one_line
from lanewise.lab.protocol import BlockDesign
from lanewise.receipts import files
from lanewise.receipts.decision import LookRecord
from lanewise.receipts.document import first_fault, lenient, parse_json
from lanewise.receipts.failures import Failure, FailureFamily
from lanewise.receipts.migrate import UPGRADE_COMMAND, History, is_newer_minor, upcast
from lanewise.receipts.schema import Digest, Record
from lanewise.receipts.seal import SEAL, opened, sealed

JOURNAL_SCHEMA_VERSION = "1.1.0"
"""1.1: version and seal of every line, failure family and facts of lost blocks, early stops."""

_JOURNALS = History(current=JOURNAL_SCHEMA_VERSION)
_FIRST_VERSION = "1.0.0"
"""Of lines that name none."""


class BlockDone(Record):
    """A block whose receipts are written.

    Attributes:
        block: from 1.
        attempt: 1, or 2 after the first was discarded; more where a person asked for new attempts.
        order: quads of a lockstep block (`ABBA`, `BAAB`), or the one order of visits of a sequential block.
        order_seed: what the order was drawn from.
        started_first: arm whose process was started first.
        lead_steps: steps each arm took before the first quad.
        warmup_steps: steps dropped at the start of every visit of the block.
        steady: whether a steady state was found.
        warmup_reason: why these steps, or why none was found.
        receipts: arm → receipt ids, in the order of the visits.
        wall_seconds: what the block cost.
    """

    event: Literal["block"] = "block"
    feature: str
    block: int
    attempt: int
    design: BlockDesign
    order: tuple[str, ...]
    order_seed: int
    started_first: Literal["A", "B"]
    lead_steps: int
    warmup_steps: int
    steady: bool
    warmup_reason: str
    receipts: dict[str, tuple[Digest, ...]]
    wall_seconds: float


class BlockLost(Record):
    """A block that was thrown away because a process failed in it, because others used the machine, or because no
    difference of its arms held.

    Attributes:
        failure_family: kind of failure; null where input was refused, and in journals before there were families.
        failure: its facts.
        receipts: arm → receipt ids of a block that ran to its end all the same; empty where a process failed.
    """

    event: Literal["discarded"] = "discarded"
    feature: str
    block: int
    attempt: int
    reason: str
    wall_seconds: float
    failure_family: FailureFamily | None = None
    failure: Failure | None = None
    receipts: dict[str, tuple[Digest, ...]] = Field(default_factory=dict)


class Stopped(Record):
    """A look ended a feature early, so its blocks still planned are not run.

    The entry says what happened and spares a reader the receipts. Whether the look stops is drawn from the blocks again by
    whoever decides, so a kill between the last block and this entry changes nothing.
    """

    event: Literal["stopped"] = "stopped"
    feature: str
    look: LookRecord


Entry = BlockDone | BlockLost | Stopped

_ENVELOPE = ("schema_version", SEAL)
"""What a line holds beside its entry."""

_EVENTS: dict[str, type[BlockDone] | type[BlockLost] | type[Stopped]] = {
    "block": BlockDone,
    "discarded": BlockLost,
    "stopped": Stopped,
}


def journal_line(entry: Entry) -> bytes:
    """An entry as it is written, with version, seal and line end."""
    document = sealed({"schema_version": JOURNAL_SCHEMA_VERSION, **entry.model_dump(mode="json")})
    return json.dumps(document, ensure_ascii=False).encode() + b"\n"


class Journal:
    """Reads and appends entries of one file."""

    def __init__(self, path: Path) -> None:
        """Name the file; it need not exist."""
        self.path = path

    def read(self) -> tuple[Entry, ...]:
        """All complete entries, in order.

        Raises:
            CampaignError: a complete line holds no entry, is not what was sealed, or is of a newer major version.
        """
        return tuple(
            self._parse(line, number)
            for number, line in enumerate(self._complete_lines().split(b"\n")[:-1], start=1)
        )

    def append(self, entry: Entry) -> None:
        """Write one entry and wait until it is on the disk.

        Raises:
            StoreError: the disk refuses it; the journal is as it was before.
        """
        line = journal_line(entry)
        whole = len(self._complete_lines())
        try:
            with self.path.open("ab", buffering=0) as file:
                file.truncate(whole)
                try:
                    rest = memoryview(line)
                    while rest:  # a disk that fills up takes a part first and refuses the rest
                        rest = rest[file.write(rest) :]
                    os.fsync(file.fileno())
                except OSError:
                    file.truncate(whole)
                    raise
            if whole == 0:
                files.sync_folder(self.path.parent)
        except OSError as error:
            raise StoreError(
                f"{self.path}: cannot be written ({error.strerror or error}); free some space, then repeat "
                "the command with --resume"
            ) from error

    def _complete_lines(self) -> bytes:
        try:
            content = self.path.read_bytes()
        except FileNotFoundError:
            return b""
        return content[: content.rfind(b"\n") + 1]

    def _parse(self, line: bytes, number: int) -> Entry:
        where = f"{self.path}:{number}"
        try:
            return _entry(line, where)
        except ReceiptError as error:
            why = str(error).removeprefix(f"{where}: ")
            raise CampaignError(
                f"{where}: not a journal entry ({why}); the file was altered, so this campaign cannot be trusted: "
                "restore it from a copy, or start a new one"
            ) from error


def _entry(line: bytes, where: str) -> Entry:
    """The entry of a complete line.

    Raises:
        ReceiptError: the line is damaged.
        CampaignError: a newer program wrote it, and this one does not understand it.
    """
    document = parse_json(line, where)
    version = {"schema_version": document.get("schema_version", _FIRST_VERSION)}
    newer = is_newer_minor(version, _JOURNALS)
    try:
        upcast(version, _JOURNALS)
    except ReceiptError as error:
        raise CampaignError(f"{where}: {error}") from error
    opened(document)
    try:
        return _understood(document, newer=newer)
    except ReceiptError as error:
        if not newer:
            raise
        raise CampaignError(
            f"{where}: written by journal schema {version['schema_version']}, which this lanewise "
            f"({JOURNAL_SCHEMA_VERSION}) does not understand: {error}; run `{UPGRADE_COMMAND}`"
        ) from error


def _understood(document: Mapping[str, Any], *, newer: bool) -> Entry:
    event = document.get("event")
    model = _EVENTS.get(event) if isinstance(event, str) else None
    if model is None:
        raise ReceiptError(f"event is {one_line(repr(event))}, not one of {', '.join(_EVENTS)}")
    body = {name: value for name, value in document.items() if name not in _ENVELOPE}
    reader = lenient(model) if newer else model
    try:
        return reader.model_validate_json(json.dumps(body))
    except ValidationError as error:
        raise ReceiptError(first_fault(error)) from error
