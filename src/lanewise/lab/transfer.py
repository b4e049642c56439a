"""Campaigns move between machines as one archive: pack here, run there, pack, unpack here.

An archive holds plan, journal, receipts with their sidecars and decisions of its campaigns, the calibrations drawn from
them, the calibration or A/A decision they were planned with, all receipts that these cite, and the ledger.
Unpacking merges it into a store that may hold earlier states of the same campaigns. What never changes (receipts, plans)
must be identical where both have it. A journal only grows: where one is the beginning of the other, the longer one is the
newer state, and the documents drawn from it come from its side; where both have grown, the campaign was driven in two
places and the archive is refused. A calibration gains a control and an observer: the one that says all the other says is the
newer. Nothing is changed unless everything can be.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lanewise.errors import CampaignError, LanewiseError, StoreError, UsageError, one_line
from lanewise.lab.campaign import JOURNAL, PLAN, RECORD, CampaignFolder, stored_plans
from lanewise.lab.decide import PRODUCER
from lanewise.lab.packing import names_of
from lanewise.receipts import files
from lanewise.receipts.archive import ROOT_FILES, read_archive, write_archive
from lanewise.receipts.document import parse_json, parse_receipt
from lanewise.receipts.index import Index
from lanewise.receipts.manifest import ArchiveManifest
from lanewise.receipts.seal import SEAL
from lanewise.receipts.store import STEPS_SUFFIX, Store, sha256_of

STAGING = ".unpacking-"
UNPACK_LOCK = ".unpacking.lock"
_WRITTEN_AT = ("created_at", "finished_at", "producer")
"""Fields in which two drawings of one decision differ."""

Fate = Literal["new", "same", "newer", "older", "kept"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Unpacked:
    """What unpacking did.

    Attributes:
        campaigns: campaigns of the archive, each with what it is to the store: `new`, `same`, `newer` or `older`.
        num_new: files that were not there.
        num_replaced: files of campaigns of which the archive has the newer state, and damaged receipts made good.
        num_kept: files that were there already, identical or newer.
        notes: what a person should know, e.g. that ledgers differ.
    """

    campaigns: Mapping[str, Fate]
    num_new: int
    num_replaced: int
    num_kept: int
    notes: tuple[str, ...]


def pack(store: Store, target: Path, campaigns: Sequence[str] | None) -> ArchiveManifest:
    """Write an archive of campaigns with all that they need.

    Args:
        store: a folder of this machine.
        target: the archive; an earlier one is replaced.
        campaigns: ids; None takes all.

    Raises:
        UsageError: there is no such campaign, or none at all.
        CampaignError: one is being driven, or a file of it is damaged.
        StoreError: the disk refuses the archive.
    """
    root = _local(store)
    plans = {plan.campaign_id for plan in stored_plans(store.root)}
    wanted = sorted(plans) if campaigns is None else list(dict.fromkeys(campaigns))
    if not wanted:
        raise UsageError(f"no campaign in {store.root}; run `lanewise ablate LANE` first")
    found = [CampaignFolder.find(store.root, campaign) for campaign in wanted]
    with contextlib.ExitStack() as stack:
        for folder in found:
            stack.enter_context(folder.locked())
        names: set[str] = {name for name in ROOT_FILES if (root / name).is_file()}
        index = Index(store)
        locations = {f"sha256:{file.stem}": file.name for file in store.receipt_files()}
        for folder in found:
            names |= set(names_of(store, index, folder, locations))
        faulty = _faults(store, sorted(names))
        if faulty:
            raise CampaignError(f"nothing was packed: {faulty}")
        return write_archive(
            target, root, sorted(names), campaigns=[f.path.name for f in found], producer=PRODUCER
        )


def unpack(store: Store, archive: Path) -> Unpacked:
    """Merge an archive into a store: everything or nothing, and nothing different is ever overwritten.

    Repeating it is harmless; after a kill in the middle it completes what was begun.

    Raises:
        ReceiptError: the archive is truncated, altered or malicious.
        CampaignError: a file is damaged, a campaign is being driven, or store and archive disagree; the files are named.
        StoreError: the disk refuses; the store is as it was.
    """
    root = _local(store)
    if not archive.is_file():
        raise UsageError(f"no archive {archive}; check the path")
    with _alone(root):
        staging = root / f"{STAGING}{secrets.token_hex(4)}"
        try:
            staging.mkdir()
            manifest = read_archive(archive, staging)
            names = [file.name for file in manifest.files]
            faulty = _faults(Store(staging), names)
            if faulty:
                raise CampaignError(f"{archive}: {faulty}; nothing was unpacked")
            with contextlib.ExitStack() as stack:
                for campaign in _campaigns_in(names):
                    if (root / "campaigns" / campaign).is_dir():
                        folder = CampaignFolder(root / "campaigns" / campaign)
                        stack.enter_context(folder.locked())
                return _merge(root, staging, names, archive)
        except OSError as error:
            raise StoreError(
                f"{root}: cannot be written ({error.strerror or error}); free some space or give another --store, then "
                "repeat the command; the store is as it was"
            ) from error
        finally:
            shutil.rmtree(staging, ignore_errors=True)


def _faults(store: Store, names: Sequence[str]) -> str:
    """The first file that does not hold what it claims, and how many others; empty when all are sound."""
    faulty = []
    for name in names:
        try:
            _require_sound(store, name)
        except LanewiseError as error:
            faulty.append(str(error).replace(f"{store.root}/", ""))
    more = f" (and {len(faulty) - 1} more files)" if len(faulty) > 1 else ""
    return f"{faulty[0]}{more}" if faulty else ""


def _require_sound(store: Store, name: str) -> None:
    location = f"{store.root}/{name}"
    if name.startswith("receipts/"):
        if not name.endswith(STEPS_SUFFIX):  # sidecars are checked with the receipts that cite them
            _require_named(name, store.read_receipt(location).receipt_id.removeprefix("sha256:"))
            store.read_steps(location)
    elif name.startswith("decisions/"):
        _require_named(name, store.read_decision(location).decision_id)
    elif name.startswith("calibrations/"):
        _require_named(name, store.read_calibration(location).calibration_id)
    elif name.endswith(f"/{RECORD}"):
        store.read_campaign(location)
    elif name.endswith(f"/{PLAN}"):
        folder = CampaignFolder(Path(location).parent)
        folder.missing()
        if folder.plan().campaign_id != folder.path.name:
            raise CampaignError(f"{name}: is the plan of {one_line(folder.plan().campaign_id)}")


def _require_named(name: str, identity: str) -> None:
    if name.rpartition("/")[2] != f"{identity}.json":
        raise CampaignError(f"{name}: holds the record {one_line(identity)}; it was renamed")


def _campaigns_in(names: Sequence[str]) -> tuple[str, ...]:
    return tuple(
        dict.fromkeys(
            name.split("/")[1]
            for name in names
            if name.startswith("campaigns/") and name.endswith(f"/{PLAN}")
        )
    )


def _merge(root: Path, staging: Path, names: Sequence[str], archive: Path) -> Unpacked:
    relations = {campaign: _journals(root, staging, campaign) for campaign in _campaigns_in(names)}
    split = sorted(campaign for campaign, relation in relations.items() if relation is None)
    if split:
        raise CampaignError(
            f"{archive}: campaign {split[0]} was driven in both places, so their journals differ; keep one of them: "
            "nothing was unpacked"
        )
    fates = {name: _fate(root, staging, name, relations) for name in names}
    conflicts = sorted(name for name, fate in fates.items() if fate is None)
    if conflicts:
        more = f" and {len(conflicts) - 3} more" if len(conflicts) > 3 else ""
        raise CampaignError(
            f"{archive}: {', '.join(conflicts[:3])}{more} in {root} and in the archive differ; move yours away or unpack "
            "into another --store; nothing was unpacked"
        )
    _put(root, staging, [name for name, fate in fates.items() if fate in ("new", "newer")])
    found = list(fates.values())
    return Unpacked(
        campaigns={campaign: relation for campaign, relation in relations.items() if relation},
        num_new=found.count("new"),
        num_replaced=found.count("newer"),
        num_kept=len(found) - found.count("new") - found.count("newer"),
        notes=tuple(
            f"{name} differs from the archive's; this store's was kept"
            for name in ROOT_FILES
            if fates.get(name) == "kept"
        ),
    )


def _journals(root: Path, staging: Path, campaign: str) -> Fate | None:
    """What the archive's journal is to the store's; None where each has blocks that the other lacks."""
    ours, theirs = (_content(place / "campaigns" / campaign / JOURNAL) for place in (root, staging))
    if not (root / "campaigns" / campaign / PLAN).is_file():
        return "new"
    if ours == theirs:
        return "same"
    # Half a line is what a kill left: whoever drives the campaign next drops it.
    ours, theirs = (journal[: journal.rfind(b"\n") + 1] for journal in (ours, theirs))
    if theirs.startswith(ours):
        return "newer"
    return "older" if ours.startswith(theirs) else None


def _fate(
    root: Path, staging: Path, name: str, relations: Mapping[str, Fate | None]
) -> Fate | None:
    """What becomes of a file of the archive; None is a conflict."""
    if not (root / name).exists():
        return "new"
    ours, theirs = _content(root / name), _content(staging / name)
    if ours == theirs:
        return "same"
    if name in ROOT_FILES:
        return "kept"
    if name.startswith("receipts/"):
        # The archive's is sound, or it would not have come this far; a damaged one here is made good by it.
        return "newer" if _is_damaged(root, name) else None
    if name.startswith("calibrations/"):
        return _growth(ours, theirs)
    relation = relations.get(_campaign_of(staging, name))
    if relation in (None, "new") or name.endswith(f"/{PLAN}"):
        return None
    if relation == "same":
        return "same" if _drawn_alike(ours, theirs) else None
    return relation


def _is_damaged(root: Path, name: str) -> bool:
    """Whether a receipt or a sidecar is not what its name says."""
    location = root / name
    if name.endswith(STEPS_SUFFIX):
        named = location.name.removesuffix(STEPS_SUFFIX)
        return sha256_of(_content(location)) != f"sha256:{named}"
    try:
        return parse_receipt(_content(location), name).receipt_id != f"sha256:{location.stem}"
    except LanewiseError:
        return True


def _campaign_of(staging: Path, name: str) -> str:
    """The campaign whose state a file tells: its folder, or what a decision says."""
    if name.startswith("campaigns/"):
        return name.split("/")[1]
    if name.startswith("decisions/"):
        return str(parse_json(_content(staging / name), name).get("campaign_id"))
    return ""


def _drawn_alike(ours: bytes, theirs: bytes) -> bool:
    """Whether two documents drawn from one journal say the same, but for when and by whom."""
    try:
        mine, other = parse_json(ours, "store"), parse_json(theirs, "archive")
    except LanewiseError:
        return False
    return all(
        mine.get(key) == other.get(key)
        for key in (mine.keys() | other.keys()) - {*_WRITTEN_AT, SEAL}
    )


def _growth(ours: bytes, theirs: bytes) -> Fate | None:
    """What the archive's calibration is to the store's; None where each says what the other does not."""
    try:
        mine, other = parse_json(ours, "store"), parse_json(theirs, "archive")
    except LanewiseError:
        return None
    for document in (mine, other):
        document.pop("producer", None)
        document.pop(SEAL, None)
    if _says_all(other, mine):
        return "same" if _says_all(mine, other) else "newer"
    return "older" if _says_all(mine, other) else None


def _says_all(whole: object, part: object) -> bool:
    """Whether a document holds every value of another that is not null."""
    if part is None:
        return True
    if isinstance(part, dict) and isinstance(whole, dict):
        return all(_says_all(whole.get(key), value) for key, value in part.items())
    return whole == part


def _put(root: Path, staging: Path, names: Sequence[str]) -> None:
    """Move files into the store; on any error take them out again.

    Journals and plans go last: until then the store's campaigns are in their old state, and the same archive unpacked
    again completes what a kill has cut short.
    """
    done: list[tuple[Path, bytes | None]] = []
    try:
        for name in sorted(names, key=_turn):
            target = root / name
            files.make_folder(target.parent)
            before = _content(target) if target.exists() else None
            os.replace(staging / name, target)
            done.append((target, before))
        for folder in {target.parent for target, _before in done}:
            files.sync_folder(folder)
    except BaseException:
        for target, before in reversed(done):
            with contextlib.suppress(OSError, StoreError):
                if before is None:
                    target.unlink()
                else:
                    files.write_bytes(str(target), before)
        raise


def _turn(name: str) -> tuple[int, str]:
    """Sidecars before the receipts that cite them, what is drawn from journals before the journals, plans at the end."""
    ends = {RECORD: 5, JOURNAL: 6, PLAN: 7}
    folders = {"receipts": 1, "calibrations": 2, "decisions": 3}
    if name.endswith(STEPS_SUFFIX):
        return 0, name
    folder, _slash, rest = name.partition("/")
    return folders.get(folder, ends.get(rest.rpartition("/")[2], 4)), name


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""


@contextlib.contextmanager
def _alone(root: Path) -> Iterator[None]:
    """One process unpacks into a store at a time; it removes what killed ones left."""
    try:
        files.make_folder(root)
        with (root / UNPACK_LOCK).open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            for leftover in root.glob(f"{STAGING}*"):
                if leftover.is_dir():
                    shutil.rmtree(leftover, ignore_errors=True)
            yield
    except OSError as error:
        raise StoreError(
            f"{root}: cannot be written ({error.strerror or error}); check the permissions, or give another --store"
        ) from error


def _local(store: Store) -> Path:
    if files.is_remote(store.root):
        raise UsageError(
            f"--store {store.root} is not a folder of this machine; copy it to one and pack from there"
        )
    return Path(store.root)
