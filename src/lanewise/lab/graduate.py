"""From evidence to the ledger: rules per decision, a replay per lane, then what lanes of one model have in common.

FASTER earns `on`. SLOWER earns `off` where the stance has the feature on, by the same rules.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

from lanewise.lab.graduate_evidence import Evidence, is_measured
from lanewise.lab.graduate_replay import (
    Attempt,
    Key,
    Replay,
    key_of_attempt,
    key_of_entry,
    log_ratio,
    versions_text,
)
from lanewise.lab.graduate_rules import apply_rules
from lanewise.lane.digest import lane_digest
from lanewise.lane.features import BY_KEY, Role
from lanewise.lane.ledger import Effect, LedgerEntry, Scope, TaxRecord
from lanewise.receipts.decision import Verdict
from lanewise.receipts.schema import RunReceipt

Result = Literal["graduated", "demoted", "held", "refused", "tax"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """One feature on one lane and machine class, and what became of it.

    Attributes:
        text: why, in words.
        entries: for the ledger: the state earned, and what was demoted before.
        tax: record of a tax.
    """

    feature: str
    lane_name: str
    lane_digest: str
    machine_class: str
    attempts: tuple[Attempt, ...]
    result: Result
    text: str
    entries: tuple[LedgerEntry, ...] = ()
    tax: TaxRecord | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Graduation:
    """What the ledger should hold.

    Attributes:
        cases: in the order of features.
        entries: all of them, those of other stores included.
        taxes: all records.
        withdrawn: entries whose own evidence no longer earns them.
        unseen: entries that stay although not all decisions they cite are in the stores.
    """

    cases: tuple[Case, ...]
    entries: tuple[LedgerEntry, ...]
    taxes: tuple[TaxRecord, ...]
    withdrawn: tuple[LedgerEntry, ...]
    unseen: tuple[LedgerEntry, ...] = ()


def graduate(
    evidence: Sequence[Evidence],
    *,
    entries: Sequence[LedgerEntry] = (),
    taxes: Sequence[TaxRecord] = (),
    devices: Mapping[str, Collection[str]] = MappingProxyType({}),
) -> Graduation:
    """Apply the rules to everything the stores hold.

    Args:
        evidence: oldest first.
        entries: what graduate wrote into the ledger before; those of evidence that is elsewhere stay.
        taxes: records it wrote before.
        devices: machine class → machines that the stores know beside those of the evidence.
    """
    eager = _eager_profiles(evidence)
    attempts = [
        Attempt(evidence=e, rules=apply_rules(e, eager[_place(e)]))
        for e in evidence
        if is_measured(e.decision)
    ]
    of_class = _devices(evidence, devices)
    groups: dict[Key, list[Attempt]] = defaultdict(list)
    for attempt in attempts:
        groups[key_of_attempt(attempt)].append(attempt)
    here = {attempt.evidence.cited for attempt in attempts}
    of_lanes = [entry for entry in entries if entry.scope.lanes]
    cases, withdrawn, replayed = [], [], set()
    for key, found in groups.items():
        before = [entry for entry in of_lanes if key_of_entry(entry) == key]
        elsewhere = [e for e in before if not here.issuperset(_ids(e))]
        case = _case(key, found, elsewhere, of_class[key.machine_class])
        cases.append(case)
        replayed.add(key)
        now = {entry.state for entry in case.entries}
        withdrawn += [e for e in before if e.state not in now]
    kept = [entry for entry in of_lanes if key_of_entry(entry) not in replayed]
    per_lane = sorted([*kept, *(e for case in cases for e in case.entries)], key=_entry_order)
    records = {tax.feature: tax for tax in taxes}
    for case in cases:
        known = records.get(case.feature)
        if case.tax and (known is None or (known.date or "") <= (case.tax.date or "")):
            records[case.feature] = case.tax
    return Graduation(
        cases=tuple(sorted(cases, key=lambda c: (_order(c.feature), c.lane_name, c.machine_class))),
        entries=(*per_lane, *_of_models(per_lane)),
        taxes=tuple(sorted(records.values(), key=lambda tax: _order(tax.feature))),
        withdrawn=tuple(withdrawn),
        unseen=tuple(entry for entry in per_lane if not here.issuperset(_ids(entry))),
    )


def _case(
    key: Key, attempts: Sequence[Attempt], before: Sequence[LedgerEntry], devices: frozenset[str]
) -> Case:
    newest = attempts[-1]
    lane = newest.evidence.plan.lane
    feature = BY_KEY[key.feature]

    def case(result: Result, text: str, **made: Any) -> Case:
        return Case(
            feature=key.feature,
            lane_name=lane.name,
            lane_digest=key.lane_digest,
            machine_class=key.machine_class,
            attempts=tuple(attempts),
            result=result,
            text=text,
            **made,
        )

    if feature.role is Role.TAX:
        tax = _tax_record(attempts)
        text = "recorded; it stays opt-in" if tax else "no sound, complete decision to record"
        if tax and feature.default_state != "off":
            text = "recorded; it is part of lanes that have its table"
        return case("tax" if tax else "refused", text, tax=tax)
    replay = Replay(key=key, devices=devices)
    for entry in before:
        if entry.demoted is None:
            replay.earned = entry
        else:
            replay.demoted.append(entry)
    since = max((e.demoted.date if e.demoted else e.date or "" for e in before), default="")
    for attempt in attempts:
        cited = {name for entry in before for name in _ids(entry)}
        if attempt.evidence.days[0] >= since and attempt.evidence.cited not in cited:
            replay.take(attempt)
    entries = (*replay.demoted, *([replay.earned] if replay.earned else []))
    result, text = _verdict_of(replay, attempts)
    return case(result, text, entries=entries)


def _verdict_of(replay: Replay, attempts: Sequence[Attempt]) -> tuple[Result, str]:
    if replay.earned is not None:
        alone = ", single device" if replay.earned.single_device else ""
        against = (
            f"; one re-test against it on {replay.against[0].evidence.days[-1]}"
            if replay.against
            else ""
        )
        return "graduated", f"{replay.earned.state} since {replay.earned.date}{alone}{against}"
    if replay.standing:
        first, newest = replay.standing[0], replay.standing[-1]
        return "held", f"needs {replay.lacking(first, newest)}"
    if replay.demoted:
        demotion = replay.demoted[-1].demoted
        return (
            "demoted",
            f"{replay.demoted[-1].state} was demoted on {demotion.date if demotion else '?'}",
        )
    newest = attempts[-1]
    failed = [rule.rule for rule in newest.rules if rule.ok is False]
    if not failed and newest.state is None:
        return "refused", "slower, and off already by its stance"
    if not failed:
        return "refused", "an earlier entry was demoted, and nothing since has earned it back"
    return "refused", f"{', '.join(failed)} not kept"


def _of_models(entries: Iterable[LedgerEntry]) -> list[LedgerEntry]:
    """Entries for every lane of a model, where two lanes of it agree and none disagrees."""
    groups: dict[tuple[str, ...], list[LedgerEntry]] = defaultdict(list)
    for entry in entries:
        if entry.model_digest is not None:
            name = (
                entry.feature,
                entry.model_digest,
                entry.scope.machine_class,
                versions_text(entry.backend_versions),
            )
            groups[name].append(entry)
    found = []
    for members in groups.values():
        agreed = {member.state for member in members}
        standing = [member for member in members if member.demoted is None]
        lanes = {lane for member in standing for lane in member.scope.lanes}
        if len(agreed) == 1 and len(standing) == len(members) and len(lanes) > 1:
            found.append(_of_model(sorted(standing, key=lambda member: member.lane_names)))
    return found


def _of_model(members: Sequence[LedgerEntry]) -> LedgerEntry:
    first = members[0]
    effects = [member.effect for member in members if member.effect is not None]
    return first.model_copy(
        update={
            "scope": Scope(
                models=(first.model_digest or "",), machine_class=first.scope.machine_class
            ),
            "evidence": tuple(name for member in members for name in member.evidence),
            "effect": min(effects, key=lambda e: abs(log_ratio(e.step_time_ratio)), default=None),
            "lane_names": tuple(name for member in members for name in member.lane_names),
            "date": max(member.date or "" for member in members),
            "single_device": any(member.single_device for member in members),
        }
    )


def _tax_record(attempts: Sequence[Attempt]) -> TaxRecord | None:
    judged = (Verdict.WITHIN_BUDGET, Verdict.OVER_BUDGET, Verdict.INCONCLUSIVE)
    sound = [a for a in attempts if a.sound and a.evidence.decision.verdict in judged]
    if not sound:
        return None
    evidence = sound[-1].evidence
    decision, feature = evidence.decision, BY_KEY[evidence.decision.feature]
    estimate = decision.estimate
    return TaxRecord(
        feature=feature.key,
        state=feature.default_state,
        budget_ratio=decision.tax_budget_ratio,
        last=evidence.cited,
        verdict=decision.verdict.value,
        effect=Effect(
            step_time_ratio=estimate.ratio,
            interval=(estimate.interval_low, estimate.interval_high),
        )
        if estimate
        else None,
        lanes=(lane_digest(evidence.plan.lane),),
        lane_names=(evidence.plan.lane.name,),
        machine_class=evidence.plan.machine_class,
        date=evidence.days[-1],
        made_by="graduate",
    )


def _devices(
    evidence: Iterable[Evidence], others: Mapping[str, Collection[str]]
) -> Mapping[str, frozenset[str]]:
    known: dict[str, frozenset[str]] = defaultdict(frozenset)
    known.update({machine_class: frozenset(found) for machine_class, found in others.items()})
    for each in evidence:
        known[each.plan.machine_class] |= each.devices
    return known


def _place(evidence: Evidence) -> tuple[str, str]:
    """Lane and machine class; the lane's digest is the same whatever its features, compilation among them."""
    return lane_digest(evidence.plan.lane), evidence.plan.machine_class


def _eager_profiles(evidence: Iterable[Evidence]) -> Mapping[tuple[str, str], list[RunReceipt]]:
    """Profiled runs without compiled blocks, of each lane on each machine class, oldest first."""
    found: dict[tuple[str, str], list[RunReceipt]] = defaultdict(list)
    for each in evidence:
        found[_place(each)] += [
            receipt
            for receipt in each.all_receipts
            if receipt.profile is not None and not receipt.compile.enabled
        ]
    return found


def _ids(entry: LedgerEntry) -> set[str]:
    demoting = entry.demoted.evidence if entry.demoted else ()
    return {name.partition(" ")[0] for name in (*entry.evidence, *demoting)}


def _entry_order(entry: LedgerEntry) -> tuple[object, ...]:
    return (
        _order(entry.feature),
        entry.scope.machine_class,
        entry.scope.lanes,
        entry.date or "",
        versions_text(entry.backend_versions),
    )


def _order(feature: str) -> int:
    return list(BY_KEY).index(feature)
