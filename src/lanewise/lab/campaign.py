"""The folder of one campaign: plan, journal, lock, and the document that says how it ended.

    <store>/campaigns/<id>/plan.json       written once, before anything is measured
    <store>/campaigns/<id>/journal.jsonl   one line per block, and per feature that a look ended early
    <store>/campaigns/<id>/lock            held by the process that drives it

Different campaigns share a store freely: receipts are immutable files with names of their own.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path

from lanewise.errors import CampaignError, ReceiptError, StoreError, UsageError
from lanewise.lab.journal import BlockDone, BlockLost, Journal, Stopped
from lanewise.lab.plan import PLAN_SCHEMA_VERSION, CampaignPlan
from lanewise.receipts.decision import LookRecord
from lanewise.receipts.migrate import UPGRADE_COMMAND, History, is_newer_minor

PLAN = "plan.json"
JOURNAL = "journal.jsonl"
LOCK = "lock"

_PLANS = History(current=PLAN_SCHEMA_VERSION)


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
        try:
            folder.path.mkdir(parents=True)
            temporary = folder.path / f".{PLAN}.{os.getpid()}"
            with temporary.open("w", encoding="utf-8") as file:
                file.write(plan.model_dump_json(indent=2))
                file.flush()
                os.fsync(file.fileno())
            temporary.rename(folder.path / PLAN)
        except OSError as error:
            raise StoreError(
                f"{folder.path}: cannot be written ({error.strerror or error}); free some space or give "
                "another --store"
            ) from error
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
            document = json.loads(content)
            if isinstance(document, dict) and is_newer_minor(document, _PLANS):
                # A newer plan may hold rules that this program would not follow, so not even a minor one is run.
                raise CampaignError(
                    f"{path}: written by plan schema {document['schema_version']}, and this lanewise reads up to "
                    f"{PLAN_SCHEMA_VERSION}; run `{UPGRADE_COMMAND}`"
                )
            return CampaignPlan.model_validate_json(content)
        except (OSError, ValueError, ReceiptError) as error:
            raise CampaignError(
                f"{path}: not a campaign plan; the file was altered, so start a new campaign"
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

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Drive the campaign alone; the system gives the lock back even after kill −9.

        Raises:
            CampaignError: another process drives it.
        """
        with (self.path / LOCK).open("a+", encoding="ascii") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                file.seek(0)
                raise CampaignError(
                    f"campaign {self.path.name} is being driven by process {file.read().strip() or '?'}; wait "
                    "for it, or start another campaign"
                ) from error
            file.truncate(0)
            file.write(str(os.getpid()))
            file.flush()
            yield


def stored_plans(store_root: str) -> list[CampaignPlan]:
    """Plans of every campaign in a store, newest first; a folder whose plan cannot be read is passed over."""
    plans = []
    for path in (Path(store_root) / "campaigns").glob(f"*/{PLAN}"):
        with contextlib.suppress(CampaignError):
            plans.append(CampaignFolder(path.parent).plan())
    return sorted(plans, key=lambda plan: plan.created_at, reverse=True)


def newest_unfinished(store_root: str, lane_name: str) -> CampaignFolder:
    """The newest campaign of a lane that lacks blocks.

    Raises:
        UsageError: there is none.
    """
    for plan in stored_plans(store_root):
        folder = CampaignFolder.find(store_root, plan.campaign_id)
        if plan.lane.name == lane_name and plan.screen_design is None and folder.missing():
            return folder
    raise UsageError(
        f"no unfinished campaign of lane {lane_name!r} in {store_root}; run `lanewise ablate {lane_name}` "
        "without --resume"
    )
