"""The folder of one campaign: plan, journal, lock, and the document that says how it ended.

    <store>/campaigns/<id>/plan.json       written once, before anything is measured
    <store>/campaigns/<id>/journal.jsonl   one line per block, and per feature that a look ended early
    <store>/campaigns/<id>/lock            held by the process that drives it

Different campaigns share a store freely: receipts are immutable files with names of their own.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from pydantic import ValidationError

from lanewise.errors import CampaignError, ReceiptError, StoreError, UsageError, one_line
from lanewise.lab.journal import BlockDone, BlockLost, Journal, Stopped
from lanewise.lab.plan import PLAN_SCHEMA_VERSION, CampaignPlan
from lanewise.receipts import files
from lanewise.receipts.decision import CampaignRecord, LookRecord
from lanewise.receipts.document import first_fault, parse_json, parse_record
from lanewise.receipts.migrate import UPGRADE_COMMAND, History, is_newer_minor
from lanewise.receipts.seal import opened, sealed
from lanewise.receipts.store import json_bytes

PLAN = "plan.json"
JOURNAL = "journal.jsonl"
LOCK = "lock"
RECORD = "campaign.json"

_PLANS = History(current=PLAN_SCHEMA_VERSION)

MAX_ATTEMPTS = 2
"""A block is run again once after its first attempt was thrown away, however often the campaign is resumed."""


class CampaignFolder:
    """One campaign on disk."""

    def __init__(self, path: Path) -> None:
        """Name a folder; `create` or `find` make sure that it is there."""
        self.path = path
        self.journal = Journal(path / JOURNAL)

    @classmethod
    def create(cls, store_root: str, plan: CampaignPlan) -> CampaignFolder:
        """Make the folder and write the plan.

        Raises:
            StoreError: the disk refuses it.
        """
        folder = cls(Path(store_root) / "campaigns" / plan.campaign_id)
        # A folder without a plan is left of a process that was killed right here: nothing was measured, so it is taken.
        if (folder.path / PLAN).exists():
            raise StoreError(f"{folder.path}: there is such a campaign already; start another one")
        document = sealed(plan.model_dump(mode="json"))
        files.write_bytes(str(folder.path / PLAN), json_bytes(document))
        return folder

    @classmethod
    def find(cls, store_root: str, campaign_id: str) -> CampaignFolder:
        """An existing campaign.

        Raises:
            UsageError: there is none of this name.
        """
        folder = cls(Path(store_root) / "campaigns" / campaign_id)
        if not (folder.path / PLAN).is_file():
            known = ", ".join(found.campaign_id for found in stored_plans(store_root)[:5])
            raise UsageError(
                f"no campaign {campaign_id!r} in {store_root}"
                + (f". Newest: {known}" if known else "; it holds none")
            )
        return folder

    def plan(self) -> CampaignPlan:
        """The plan as it was made.

        Raises:
            CampaignError: the file cannot be read.
        """
        path = self.path / PLAN
        try:
            content = path.read_bytes()
            document = parse_json(content, str(path))
            if is_newer_minor(document, _PLANS):
                # A newer plan may hold rules that this program would not follow, so not even a minor one is run.
                raise CampaignError(
                    f"{path}: written by plan schema {document['schema_version']}, and this lanewise reads up to "
                    f"{PLAN_SCHEMA_VERSION}; run `{UPGRADE_COMMAND}`"
                )
            return CampaignPlan.model_validate_json(json_bytes(opened(document)))
        except (OSError, ValidationError, ReceiptError) as error:
            why = first_fault(error) if isinstance(error, ValidationError) else str(error)
            raise CampaignError(
                f"{path}: not a campaign plan ({why.removeprefix(f'{path}: ')}); without it its blocks cannot be "
                "judged: restore the file from a copy, or start a new campaign"
            ) from error

    def finished(self) -> dict[tuple[str, int], BlockDone]:
        """(feature, block) → the attempt that has its receipts, in the order these attempts ended."""
        found: dict[tuple[str, int], BlockDone] = {}
        for entry in self.journal.read():
            if isinstance(entry, BlockDone):
                # A later attempt takes its place in time too: looks see blocks in the order they were run.
                found.pop((entry.feature, entry.block), None)
                found[entry.feature, entry.block] = entry
        return found

    def lost(self) -> tuple[BlockLost, ...]:
        """Discarded attempts, in order."""
        return tuple(e for e in self.journal.read() if isinstance(e, BlockLost))

    def stopped(self) -> dict[str, LookRecord]:
        """Feature → the look that ended it early."""
        return {e.feature: e.look for e in self.journal.read() if isinstance(e, Stopped)}

    def missing(self) -> tuple[tuple[str, int], ...]:
        """Planned blocks without receipts, of features that no look has ended."""
        finished, stopped = self.finished(), self.stopped()
        return tuple(
            (feature, block)
            for feature, count in self.plan().blocks.items()
            for block in range(1, count + 1)
            if (feature, block) not in finished and feature not in stopped
        )

    def used_up(self, lost: Sequence[BlockLost] | None = None) -> tuple[tuple[str, int], ...]:
        """Missing blocks that get no further attempt: theirs have failed, or their feature has only ever failed.

        Args:
            lost: the attempts that count; None takes all of them.
        """
        counted = self.lost() if lost is None else lost
        attempts = Counter((entry.feature, entry.block) for entry in counted)
        failures = Counter(entry.feature for entry in counted if not entry.receipts)
        proven = {feature for feature, _block in self.finished()}
        return tuple(
            (feature, block)
            for feature, block in self.missing()
            if attempts[feature, block] >= MAX_ATTEMPTS
            or (failures[feature] >= MAX_ATTEMPTS and feature not in proven)
        )

    def is_complete(self) -> bool:
        """Whether nothing is missing and its document, written after all decisions, says so."""
        path = self.path / RECORD
        try:
            record = parse_record(CampaignRecord, path.read_bytes(), str(path))
        except (OSError, ReceiptError):
            return False
        return record.status == "COMPLETE" and not self.missing()

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Drive the campaign alone; the system gives the lock back even after kill −9.

        Raises:
            CampaignError: another process drives it.
        """
        with contextlib.ExitStack() as stack:
            try:
                # Whoever holds the lock writes its number there, and a full disk must not keep it from going on.
                file = stack.enter_context(
                    (self.path / LOCK).open("a+", encoding="ascii", errors="replace")
                )
            except OSError as error:
                raise StoreError(
                    f"{self.path / LOCK}: cannot be opened ({error.strerror or error}); check the permissions, or give "
                    "another --store"
                ) from error
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                file.seek(0)
                raise CampaignError(
                    f"campaign {self.path.name} is being driven by process {one_line(file.read(20).strip()) or '?'}; wait "
                    "for it, or start another campaign"
                ) from error
            with contextlib.suppress(OSError):
                os.ftruncate(file.fileno(), 0)
                os.write(file.fileno(), str(os.getpid()).encode())
            yield


def stored_plans(store_root: str) -> list[CampaignPlan]:
    """Plans of every campaign in a store, newest first; a folder whose plan cannot be read is passed over."""
    return plans_and_damaged(store_root)[0]


def plans_and_damaged(store_root: str) -> tuple[list[CampaignPlan], list[CampaignError]]:
    """Plans of every campaign in a store, newest first, and why others cannot be read; each names its file."""
    plans, damaged = [], []
    for path in sorted((Path(store_root) / "campaigns").glob(f"*/{PLAN}")):
        try:
            plans.append(CampaignFolder(path.parent).plan())
        except CampaignError as error:
            damaged.append(error)
    return sorted(plans, key=lambda plan: plan.created_at, reverse=True), damaged


def working_file_faults(store_root: str) -> Iterator[tuple[str, list[str]]]:
    """Check the plan and the journal of every campaign of a store, which `receipts.validate` cannot read.

    Yields:
        Location and faults of each file, sound ones included.
    """
    for plan in sorted((Path(store_root) / "campaigns").glob(f"*/{PLAN}")):
        folder = CampaignFolder(plan.parent)
        yield str(plan), _faults(folder.plan, str(plan))
        if folder.journal.path.is_file():
            where = str(folder.journal.path)
            yield where, _faults(folder.journal.read, where)


def _faults(read: Callable[[], object], where: str) -> list[str]:
    try:
        read()
    except CampaignError as error:
        return [str(error).removeprefix(where).removeprefix(": ").removeprefix(":")]
    return []
