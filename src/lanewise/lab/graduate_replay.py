"""The replay of one lane's decisions about one feature: what two of different days earn, and what two later ones take away.

Two passes in a row graduate a state if they share no day and, where the stores know another device of the class, no
device; a decision between them that does not find the effect starts the count anew. Afterwards two decisions of
different days that do not find it again, with no pass between them, demote it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from lanewise.lab.graduate_evidence import Evidence
from lanewise.lab.graduate_rules import RuleResult
from lanewise.lane.digest import lane_digest, model_digest
from lanewise.lane.features import BY_KEY
from lanewise.lane.ledger import Demotion, Effect, LedgerEntry, Scope
from lanewise.receipts.decision import Verdict

DECIDED = frozenset({Verdict.FASTER, Verdict.SLOWER, Verdict.EQUIVALENT, Verdict.INCONCLUSIVE})

HOURS_APART: Final = 6
"""Least time between a campaign and its confirmation: midnight alone makes no other day of what one load disturbed."""

AUTHOR: Final = "lanewise graduate"


class Key(NamedTuple):
    """What one replay is about."""

    feature: str
    lane_digest: str
    machine_class: str
    versions: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Attempt:
    """One decision under the rules."""

    evidence: Evidence
    rules: tuple[RuleResult, ...]

    @property
    def state(self) -> str | None:
        """The state this decision speaks for; None where it speaks for no default."""
        decision = self.evidence.decision
        control, treated = decision.arms["A"].state, decision.arms["B"].state
        if decision.verdict is Verdict.FASTER:
            return treated
        on_by_stance = BY_KEY[decision.feature].default_state == treated
        return control if decision.verdict is Verdict.SLOWER and on_by_stance else None

    @property
    def passes(self) -> bool:
        """Whether every rule is kept and there is a state to earn."""
        return self.state is not None and all(rule.ok is not False for rule in self.rules)

    @property
    def sound(self) -> bool:
        """Whether the evidence is good, whatever it says."""
        return all(c.ok is not False for rule in self.rules for c in rule.checks if c.sound)

    def denies(self, state: str, effect_log: float) -> bool:
        """Whether this is a fair test that did not find the effect; one too small to see it is none."""
        decision = self.evidence.decision
        if not self.sound or decision.verdict not in DECIDED or self.state == state:
            return False
        if decision.verdict is not Verdict.INCONCLUSIVE:
            return True
        detects = decision.estimate.mde_log if decision.estimate else None
        return detects is not None and detects <= abs(effect_log)


@dataclass(slots=True)
class Replay:
    """What has been earned so far.

    Attributes:
        devices: machines of the class that the stores know.
        earned: the state that stands.
        demoted: those that stood before.
        standing: passes since the last decision against them, not yet confirmed.
        against: decisions against what is earned, since the last one for it.
    """

    key: Key
    devices: frozenset[str]
    earned: LedgerEntry | None = None
    demoted: list[LedgerEntry] = field(default_factory=list)
    standing: list[Attempt] = field(default_factory=list)
    against: list[Attempt] = field(default_factory=list)

    def take(self, attempt: Attempt) -> None:
        """Go on by one decision, later than all before."""
        if self.earned is None:
            self._towards(attempt)
        else:
            self._after(self.earned, attempt)

    def _towards(self, attempt: Attempt) -> None:
        if attempt.passes:
            self.standing = [each for each in self.standing if each.state == attempt.state]
            partner = next((e for e in self.standing if not self.lacking(e, attempt)), None)
            self.standing.append(attempt)
            if partner is not None:
                self.earned = _entry(self.key, partner, attempt, single=len(self.devices) < 2)
                self.standing, self.against = [], []
        elif any(attempt.denies(e.state or "", _effect_log(e)) for e in self.standing):
            self.standing = []

    def _after(self, earned: LedgerEntry, attempt: Attempt) -> None:
        if attempt.passes and attempt.state == earned.state:
            self.against = []
            return
        log = log_ratio(earned.effect.step_time_ratio) if earned.effect else 0.0
        if not attempt.denies(earned.state, log):
            return
        if self.against and set(attempt.evidence.days) & set(self.against[-1].evidence.days):
            return
        self.against.append(attempt)
        if len(self.against) == 2:
            first, second = self.against
            demotion = Demotion(
                date=second.evidence.days[-1],
                evidence=(first.evidence.cited, second.evidence.cited),
                by=AUTHOR,
            )
            self.demoted.append(earned.model_copy(update={"demoted": demotion}))
            self.earned, self.against = None, []
            # Two that found the opposite have earned the opposite, by the same rules as any other two.
            for each in (first, second):
                self._towards(each)

    def lacking(self, first: Attempt, second: Attempt) -> str | None:
        """What keeps the second from confirming the first, or None."""
        shared = sorted(set(first.evidence.days) & set(second.evidence.days))
        if shared:
            return f"a confirmation on another UTC day than {shared[0]}"
        if first.evidence.series & second.evidence.series:
            return f"a second measurement: {second.evidence.cited} holds step series of {first.evidence.cited}"
        hours = _hours_between(first.evidence, second.evidence)
        if hours < HOURS_APART:
            return f"a confirmation at least {HOURS_APART} hours later; the two are {hours:.1f} hours apart"
        if len(self.devices) > 1 and not _on_other_devices(first.evidence, second.evidence):
            return f"a confirmation on another device: the stores know {len(self.devices)} of {self.key.machine_class}"
        return None


def _entry(key: Key, first: Attempt, second: Attempt, *, single: bool) -> LedgerEntry:
    """The effect is the confirmation's: the first was chosen for being large, the second was not."""
    decision, lane = second.evidence.decision, second.evidence.plan.lane
    assert decision.estimate is not None, "FASTER and SLOWER have an estimate"
    assert second.state is not None, "only passes make entries"
    elsewhere = ", other device" if _on_other_devices(first.evidence, second.evidence) else ""
    return LedgerEntry(
        feature=key.feature,
        state=second.state,
        scope=Scope(lanes=(key.lane_digest,), machine_class=key.machine_class),
        evidence=(first.evidence.cited, f"{second.evidence.cited} (confirmatory{elsewhere})"),
        effect=Effect(
            step_time_ratio=decision.estimate.ratio,
            interval=(decision.estimate.interval_low, decision.estimate.interval_high),
        ),
        lane_names=(lane.name,),
        model_digest=model_digest(lane),
        date=second.evidence.days[-1],
        single_device=single,
        backend_versions=decision.backend_versions,
        made_by="graduate",
    )


def _on_other_devices(first: Evidence, second: Evidence) -> bool:
    """Whether two pieces of evidence are known to come from different machines."""
    known = bool(first.devices) and bool(second.devices)
    return known and not first.devices & second.devices


def _hours_between(first: Evidence, second: Evidence) -> float:
    """From the last receipt of the earlier to the first of the later; 0 where they overlap."""
    (_, end), (start, _) = sorted((first.span, second.span))
    return max(0.0, (start - end).total_seconds() / 3600)


def key_of_attempt(attempt: Attempt) -> Key:
    """What an attempt is about."""
    decision = attempt.evidence.decision
    return Key(
        decision.feature,
        lane_digest(attempt.evidence.plan.lane),
        attempt.evidence.plan.machine_class,
        versions_text(decision.backend_versions),
    )


def key_of_entry(entry: LedgerEntry) -> Key:
    """What the entry of one lane is about."""
    lane = entry.scope.lanes[0] if entry.scope.lanes else ""
    return Key(
        entry.feature, lane, entry.scope.machine_class, versions_text(entry.backend_versions)
    )


def versions_text(versions: Mapping[str, Mapping[str, str]]) -> str:
    """Versions as one comparable text."""
    return json.dumps(versions, sort_keys=True)


def _effect_log(attempt: Attempt) -> float:
    estimate = attempt.evidence.decision.estimate
    return estimate.log_ratio if estimate else 0.0


def log_ratio(ratio: float) -> float:
    """Natural logarithm of a ratio of step times; 0 for one that a hand made nonsense of."""
    return math.log(ratio) if ratio > 0 else 0.0
