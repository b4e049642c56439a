"""What a gate says: what it received, its rule, and the faults it found."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from lanewise.lab.evidence import BlockEvidence
from lanewise.lab.schedule import ArmName
from lanewise.receipts.failures import Failure, FailureFamily
from lanewise.receipts.schema import Check, RunReceipt

ARM_NAMES: tuple[ArmName, ...] = ("A", "B")


@dataclass(frozen=True, kw_only=True, slots=True)
class Fault:
    """Why a block does not count.

    Attributes:
        text: what was asked, what was observed.
        family: kind of failure; None where the run behind it did not say, as in receipts before 1.2.
        failure: its facts, where the gate has them.
        structural: whether it makes the feature's verdict INVALID; noise (no steady state, a busy host) only costs the block.
        about_backend: whether something else ran than was asked for.
        disturbed: whether others used the machine, so that running the block again may help.
    """

    text: str
    family: FailureFamily | None
    failure: Failure | None = None
    structural: bool
    about_backend: bool = False
    disturbed: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Gate:
    """One gate applied to one block.

    Attributes:
        name: stable name for decisions.
        rule: what must hold.
        received: what was found, in words; also where nothing was recorded.
        faults: empty when the block passes.
    """

    name: str
    rule: str
    received: str
    faults: tuple[Fault, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether the block passes."""
        return not self.faults

    def check(self) -> Check:
        """The gate as a decision keeps it."""
        found = "; ".join(fault.text for fault in self.faults) or self.received
        return Check(name=self.name, ok=self.ok, detail=f"{found} (rule: {self.rule})")


def visits(block: BlockEvidence) -> Iterator[tuple[ArmName, RunReceipt]]:
    """Arm and receipt of every visit, arm A first."""
    for arm in ARM_NAMES:
        for receipt in block.receipts[arm]:
            yield arm, receipt
