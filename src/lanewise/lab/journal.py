"""The campaign's append-only record of what has run: one JSON line per finished or discarded block, or early stop.

A line counts when it is complete. A process killed in the middle of a write leaves half a line, which is dropped when
the journal is next opened, and the block it belonged to is run again.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter, ValidationError

from lanewise.errors import CampaignError, StoreError
from lanewise.lab.protocol import BlockDesign
from lanewise.receipts import files
from lanewise.receipts.decision import LookRecord
from lanewise.receipts.document import first_fault
from lanewise.receipts.failures import Failure, FailureFamily
from lanewise.receipts.schema import Digest, Record


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
    """A block that was thrown away because a process failed in it, or because others used the machine.

    Attributes:
        failure_family: kind of failure; null where input was refused, and in journals before there were families.
        failure: its facts.
        receipts: arm → receipt ids of a block that ran to its end and was disturbed; empty where a process failed.
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

_ENTRY: TypeAdapter[Entry] = TypeAdapter(Annotated[Entry, Field(discriminator="event")])


class Journal:
    """Reads and appends entries of one file."""

    def __init__(self, path: Path) -> None:
        """Name the file; it need not exist."""
        self.path = path

    def read(self) -> tuple[Entry, ...]:
        """All complete entries, in order.

        Raises:
            CampaignError: a complete line does not hold an entry.
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
        line = json.dumps(entry.model_dump(mode="json"), ensure_ascii=False).encode() + b"\n"
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
        try:
            return _ENTRY.validate_json(line)
        except ValidationError as error:
            raise CampaignError(
                f"{self.path}:{number}: not a journal entry ({first_fault(error)}); the file was altered, so this "
                "campaign cannot be trusted: start a new one"
            ) from error
