"""The ledger of defaults: feature states that decisions have earned, each with the lanes and machines it speaks for."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, FiniteFloat

from lanewise.lane.spec import Spec

LedgerSource = Literal["ledger_lane", "ledger_class"]


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


class LedgerEntry(Spec):
    """One default: a feature's state, its scope and the decisions that earned it."""

    feature: str
    state: str
    scope: Scope
    evidence: tuple[str, ...]
    effect: Effect | None = None


class Ledger(Spec):
    """All defaults that evidence has earned."""

    entries: tuple[LedgerEntry, ...] = Field(default_factory=tuple)

    def state_of(
        self, feature: str, *, lane_digest: str, model_digest: str, machine_class: str
    ) -> tuple[str, LedgerSource] | None:
        """The state this ledger gives a feature, and by which rule; an entry for the exact lane wins.

        Of several entries that match equally well, the last written speaks.
        """
        of_class: str | None = None
        for entry in reversed(self.entries):
            if entry.feature != feature or not entry.scope.covers_machine(machine_class):
                continue
            if lane_digest in entry.scope.lanes:
                return entry.state, "ledger_lane"
            if of_class is None and model_digest in entry.scope.models:
                of_class = entry.state
        return None if of_class is None else (of_class, "ledger_class")
