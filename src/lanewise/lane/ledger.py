"""The ledger of defaults: feature states that decisions have earned, each with the lanes and machines it speaks for.

An entry speaks while what it rests on stands: it has not been demoted, and the backends it was measured with have the
versions they had then. Otherwise the next rule decides, and the reason is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Literal, NamedTuple

from pydantic import Field, FiniteFloat

from lanewise.lane.spec import Spec

LedgerSource = Literal["ledger_lane", "ledger_class"]

VersionOf = Callable[[str], str | None]
"""Distribution or source file → its present version, None where it is gone."""


class Scope(Spec):
    """Where a default holds. A machine class may be cut short (`h100-sxm`): it then covers every memory size.

    Attributes:
        lanes: lane digests.
        models: model digests (same pattern and dimensions), which cover lanes that differ in batch or optimizer.
        machine_class: machine class or its beginning; an entry never speaks for another machine.
    """

    lanes: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    machine_class: str

    def covers_machine(self, machine_class: str) -> bool:
        """Whether this scope speaks for a machine class."""
        return machine_class == self.machine_class or machine_class.startswith(
            f"{self.machine_class}-"
        )


class Effect(Spec):
    """What the evidence measured, for readers; not used to resolve."""

    step_time_ratio: FiniteFloat
    interval: tuple[FiniteFloat, FiniteFloat]


class Demotion(Spec):
    """Two later re-tests that did not find the effect again.

    Attributes:
        date: UTC day of the second.
        evidence: the decisions.
        by: the program that wrote it down.
    """

    date: str
    evidence: tuple[str, ...]
    by: str


class LedgerEntry(Spec):
    """One default: a feature's state, its scope and the decisions that earned it.

    Attributes:
        lane_names: names of the lanes measured, for readers.
        model_digest: pattern and dimensions of those lanes, by which lanes that agree find each other.
        date: UTC day of the confirmation; None in an entry written by hand.
        single_device: whether the store has only ever seen one device of this class, so that no other could confirm it.
        backend_versions: `op=backend` → what it was built of; empty in an entry written by hand, which never expires.
        demoted: why it speaks no longer.
        made_by: `graduate` for entries it wrote; None for others, which it leaves alone.
    """

    feature: str
    state: str
    scope: Scope
    evidence: tuple[str, ...]
    effect: Effect | None = None
    lane_names: tuple[str, ...] = ()
    model_digest: str | None = None
    date: str | None = None
    single_device: bool = False
    backend_versions: dict[str, dict[str, str]] = Field(default_factory=dict)
    demoted: Demotion | None = None
    made_by: Literal["graduate"] | None = None

    def silenced(self, version_of: VersionOf | None, asked: Mapping[str, str]) -> str | None:
        """Why this entry does not speak, or None.

        Args:
            version_of: present versions; None takes the entry at its word.
            asked: op → backend that the entry's state asks for today.
        """
        if self.demoted is not None:
            return f"demoted on {self.demoted.date}"
        if version_of is None or not self.backend_versions:
            return None
        changes = [
            f"{op} is {backend} now"
            for op, backend in asked.items()
            if f"{op}={backend}" not in self.backend_versions
        ]
        changes += dict.fromkeys(version_changes(self.backend_versions, version_of))
        return f"evidence expired: {', '.join(changes)}" if changes else None


class TaxRecord(Spec):
    """What is known about a tax; it stays at its default whatever the record says.

    Attributes:
        budget_ratio: largest acceptable ratio of step times.
        last: the newest decision about it.
        verdict: of that decision, e.g. `OVER_BUDGET`.
        lanes: digests of the lane measured.
    """

    feature: str
    state: str
    budget_ratio: float | None = None
    last: str | None = None
    verdict: str | None = None
    evidence: tuple[str, ...] = ()
    effect: Effect | None = None
    lanes: tuple[str, ...] = ()
    lane_names: tuple[str, ...] = ()
    machine_class: str | None = None
    date: str | None = None
    made_by: Literal["graduate"] | None = None


class LedgerAnswer(NamedTuple):
    """What a ledger says about one feature.

    Attributes:
        state: None when no entry that matches speaks.
        source: by which rule; None without a state.
        evidence: decisions of the entry that spoke.
        passed_over: why a better matching entry did not speak; None when there was none.
        ledger_digest: of the file asked.
    """

    state: str | None
    source: LedgerSource | None
    evidence: tuple[str, ...]
    passed_over: str | None
    ledger_digest: str | None


class Ledger(Spec):
    """All defaults that evidence has earned.

    Attributes:
        digest: of the file they were read from; None for entries that come from no file.
    """

    entries: tuple[LedgerEntry, ...] = Field(default_factory=tuple)
    digest: str | None = None

    def ask(
        self,
        feature: str,
        *,
        lane_digest: str,
        model_digest: str,
        machine_class: str,
        silenced: Callable[[LedgerEntry], str | None],
    ) -> LedgerAnswer | None:
        """What this ledger says about a feature; an entry for the exact lane wins. None when no entry matches.

        Of several entries that match equally well, the last written that still speaks does.

        Args:
            feature: its key.
            lane_digest: of the lane to resolve.
            model_digest: of its pattern and dimensions.
            machine_class: that will run it.
            silenced: why an entry does not speak, or None.
        """
        of_lane, of_class = [], []
        for entry in reversed(self.entries):
            if entry.feature != feature or not entry.scope.covers_machine(machine_class):
                continue
            if lane_digest in entry.scope.lanes:
                of_lane.append(entry)
            elif model_digest in entry.scope.models:
                of_class.append(entry)
        passed_over: str | None = None
        matching: tuple[tuple[LedgerSource, list[LedgerEntry]], ...] = (
            ("ledger_lane", of_lane),
            ("ledger_class", of_class),
        )
        for source, entries in matching:
            for entry in entries:
                reason = silenced(entry)
                if reason is None:
                    return LedgerAnswer(
                        entry.state, source, entry.evidence, passed_over, self.digest
                    )
                passed_over = passed_over or reason
        if passed_over is None:
            return None
        return LedgerAnswer(None, None, (), passed_over, self.digest)


def version_changes(
    recorded: Mapping[str, Mapping[str, str]], version_of: VersionOf
) -> Iterator[str]:
    """What changed since, such as `torch 2.13.0 → 2.14.0`, in the order recorded."""
    for versions in recorded.values():
        for name, version in versions.items():
            present = version_of(name)
            if present != version:
                yield f"{name} {version} → {present or 'gone'}"
