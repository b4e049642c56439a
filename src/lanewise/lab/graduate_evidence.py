"""What `graduate` may rest on: decisions drawn again from plan, journal and receipts, with those receipts. Never trusted: the
documents that say what was decided."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from lanewise.errors import LanewiseError, UsageError
from lanewise.lab.analyse import analyse_campaign
from lanewise.lab.arms import PSEUDO
from lanewise.lab.campaign import PLAN, CampaignFolder
from lanewise.lab.evidence import receipt_locations
from lanewise.lab.keys import split_key
from lanewise.lab.plan import CampaignPlan
from lanewise.receipts.decision import CampaignRecord, Decision, Verdict
from lanewise.receipts.files import is_remote
from lanewise.receipts.schema import Machine, RunReceipt
from lanewise.receipts.store import STEPS_KIND, Store

Analyse = Callable[..., tuple[CampaignRecord, tuple[Decision, ...]]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Evidence:
    """One feature of one campaign.

    Attributes:
        store_root: where it is.
        plan: of the campaign.
        missing: planned blocks and arms that the store lacks, by name; empty for a complete campaign.
        decision: drawn again from the receipts.
        stored: the decision as the campaign wrote it; None where it did not.
        receipts: arm → receipts of the blocks that count.
        uncounted: arm → readable receipts of blocks that do not.
    """

    store_root: str
    plan: CampaignPlan
    missing: tuple[str, ...]
    decision: Decision
    stored: Decision | None
    receipts: Mapping[str, tuple[RunReceipt, ...]]
    uncounted: Mapping[str, tuple[RunReceipt, ...]]

    @property
    def all_receipts(self) -> tuple[RunReceipt, ...]:
        """Of both arms, in blocks that count."""
        return tuple(receipt for arm in sorted(self.receipts) for receipt in self.receipts[arm])

    @property
    def days(self) -> tuple[str, ...]:
        """UTC days on which the blocks that count were run, in order; the campaign's own where none counts."""
        days = {receipt.created_at[:10] for receipt in self.all_receipts}
        return tuple(sorted(days)) or (self.plan.created_at[:10],)

    @property
    def span(self) -> tuple[datetime, datetime]:
        """Times of the first and the last receipt that counts; the plan's where none does."""
        times = [utc(receipt.created_at) for receipt in self.all_receipts]
        times = times or [utc(self.plan.created_at)]
        return min(times), max(times)

    @property
    def devices(self) -> frozenset[str]:
        """Machines that ran them; empty where one is told by its boot alone, which shows no other machine."""
        found = {device_of(receipt.machine) for receipt in self.all_receipts}
        return frozenset() if None in found else frozenset(name for name in found if name)

    @property
    def series(self) -> frozenset[str]:
        """Digests of the step series: no two measurements have one in common."""
        return frozenset(
            artifact.sha256
            for receipt in self.all_receipts
            for artifact in receipt.artifacts
            if artifact.kind == STEPS_KIND
        )

    @property
    def cited(self) -> str:
        """How a ledger cites it."""
        return f"decision:{self.decision.decision_id}"


@dataclass(kw_only=True, slots=True)
class Found:
    """Everything a set of stores holds.

    Attributes:
        evidence: oldest first.
        devices: machine class → machines that any decision of the stores knows, of other features too.
        problems: what could not be read, a line each.
    """

    evidence: list[Evidence] = field(default_factory=list)
    devices: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    problems: list[str] = field(default_factory=list)


def read_evidence(
    roots: Sequence[str],
    *,
    now: str,
    features: Collection[str] = (),
    analyse: Analyse = analyse_campaign,
    tell: Callable[[int, int, str], None] = lambda *_: None,
) -> Found:
    """Draw every decision of the stores again.

    Args:
        roots: folders of stores.
        now: RFC 3339 time, stamped on decisions and without influence.
        features: only these; empty takes all.
        analyse: draws the decisions of one campaign.
        tell: progress: campaigns read before this one, campaigns of this store, its id.

    Raises:
        UsageError: a root is no folder.
    """
    found = Found()
    seen: set[str] = set()
    for root in dict.fromkeys(roots):
        if not is_remote(root) and not Path(root).exists():
            raise UsageError(
                f"no campaign in {root}; run `lanewise ablate LANE` first, or give another --store"
            )
        if is_remote(root) or not Path(root).is_dir():
            raise UsageError(
                f"--store {root}: no folder of this machine; graduate reads campaigns from folders, copy the store here "
                "or give another one"
            )
        store = _ReadOnce(root)
        folders = _campaign_folders(root, found.problems)
        shelf = _shelf(store, {folder.name for folder in folders}, found.problems)
        for stored in shelf.stored.values():
            device = device_of(stored.machine)
            if device is not None:
                found.devices[stored.machine.class_name].add(device)
        for number, folder in enumerate(folders):
            tell(number, len(folders), folder.name)
            if folder.name in seen:
                continue  # the same campaign in a second store is one piece of evidence
            seen.add(folder.name)
            _read_campaign(shelf, folder.name, found, set(features), analyse, now)
            store.forget()
    found.evidence.sort(key=lambda e: (e.days, e.plan.created_at, e.decision.decision_id))
    return found


def _campaign_folders(root: str, problems: list[str]) -> list[Path]:
    try:
        folders = sorted(path for path in (Path(root) / "campaigns").glob("*") if path.is_dir())
    except OSError as error:
        problems.append(f"{root}/campaigns: cannot be listed ({error.strerror or error})")
        return []
    planned = [folder for folder in folders if (folder / PLAN).is_file()]
    problems += [
        f"{folder}: no {PLAN}, so nothing can be drawn from it again"
        for folder in folders
        if folder not in planned
    ]
    return planned


class _ReadOnce(Store):
    """A store whose receipts are parsed and hashed once a campaign, however many steps of the way look at them."""

    def __init__(self, root: str) -> None:
        super().__init__(root)
        self._read: dict[str, RunReceipt] = {}

    def read_receipt(self, reference: str) -> RunReceipt:
        """As `Store.read_receipt`."""
        if reference not in self._read:
            self._read[reference] = super().read_receipt(reference)
        return self._read[reference]

    def forget(self) -> None:
        """The next campaign has others."""
        self._read.clear()


@dataclass(frozen=True, kw_only=True, slots=True)
class _Shelf:
    """A store, listed once: it may hold many thousand receipts."""

    store: _ReadOnce
    stored: Mapping[str, Decision]
    locations: Mapping[str, str]


def _shelf(store: _ReadOnce, campaigns: set[str], problems: list[str]) -> _Shelf:
    unreadable: list[LanewiseError] = []
    stored = {decision.decision_id: decision for decision in store.iter_decisions(unreadable)}
    problems += [
        f"decision {decision.decision_id}: its campaign is not in {store.root}, so it proves nothing here"
        for decision in stored.values()
        if decision.campaign_id not in campaigns
    ]
    problems += [str(error) for error in unreadable]
    return _Shelf(store=store, stored=stored, locations=receipt_locations(store))


def _read_campaign(
    shelf: _Shelf,
    campaign_id: str,
    found: Found,
    features: set[str],
    analyse: Analyse,
    now: str,
) -> None:
    store = shelf.store
    try:
        folder = CampaignFolder.find(store.root, campaign_id)
        plan = folder.plan()
        if plan.campaign_id != campaign_id:
            found.problems.append(
                f"campaign {campaign_id}: its plan is of {plan.campaign_id}; a renamed copy is no second campaign"
            )
            return
        if not _asks(plan, features):
            return
        _record, decisions = analyse(store, campaign_id, now=now, locations=shelf.locations)
        missing = folder.missing()
        for decision in decisions:
            wanted = not features or decision.feature in features
            if not wanted or decision.feature in PSEUDO:
                continue
            counted, uncounted, lacking = _receipts(store, decision, shelf.locations)
            found.evidence.append(
                Evidence(
                    store_root=store.root,
                    plan=plan,
                    missing=(*(f"{key} block {block}" for key, block in missing), *lacking),
                    decision=decision,
                    stored=shelf.stored.get(decision.decision_id),
                    receipts=counted,
                    uncounted=uncounted,
                )
            )
    except LanewiseError as error:
        found.problems.append(f"campaign {campaign_id}: {error}")
    except (LookupError, ValueError, ArithmeticError) as error:
        # A journal or plan altered by hand can hold any numbers; they are no evidence, and no reason to stop.
        found.problems.append(
            f"campaign {campaign_id}: its plan, journal and receipts do not fit together "
            f"({type(error).__name__}: {error}); the files were altered, so it proves nothing"
        )


def _asks(plan: CampaignPlan, features: set[str]) -> bool:
    """Whether a campaign can say anything about these features, or about any where none is named; else nothing is read."""
    if plan.screen_design is not None:
        return True
    asked = {split_key(planned.feature)[0] for planned in plan.features} - PSEUDO
    return bool(asked & features if features else asked)


def _receipts(
    store: Store, decision: Decision, locations: Mapping[str, str]
) -> tuple[dict[str, tuple[RunReceipt, ...]], dict[str, tuple[RunReceipt, ...]], tuple[str, ...]]:
    """Receipts of blocks that count, of those that do not, and what is not there."""
    counted: dict[str, tuple[RunReceipt, ...]] = {"A": (), "B": ()}
    uncounted: dict[str, tuple[RunReceipt, ...]] = {"A": (), "B": ()}
    lacking: list[str] = []
    for block in decision.blocks:
        for arm in ("A", "B"):
            ids = block.receipts.get(arm, ())
            read = tuple(_readable(store, ids, locations))
            into = counted if block.valid else uncounted
            into[arm] = (*into[arm], *read)
            if len(read) < len(ids) or not ids:
                lacking.append(f"{decision.feature} block {block.block} arm {arm}")
    return counted, uncounted, tuple(lacking)


def _readable(
    store: Store, ids: Iterable[str], locations: Mapping[str, str]
) -> Iterable[RunReceipt]:
    for receipt_id in ids:
        if receipt_id in locations:
            try:
                yield store.read_receipt(locations[receipt_id])
            except LanewiseError:
                continue  # the caller counts what came back and names the arm


def is_measured(decision: Decision) -> bool:
    """Whether anything was measured; a feature dropped for its price is no evidence either way."""
    return decision.verdict is not Verdict.NOT_MEASURED


def device_of(machine: Machine) -> str | None:
    """What tells a machine from another of its class, or None: a boot's id changes with every boot."""
    return None if machine.instance_source == "boot" else machine.instance_digest


def utc(text: str) -> datetime:
    """An RFC 3339 time; one without an offset is UTC, and what is no time is older than every plan."""
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        return datetime(1970, 1, 1, tzinfo=UTC)
    return time.astimezone(UTC) if time.tzinfo else time.replace(tzinfo=UTC)
