"""Gate on the positive control: a planted delay is where it belongs, of the planned size, and nowhere else."""

from __future__ import annotations

from lanewise.lab.arms import Arms
from lanewise.lab.evidence import BlockEvidence
from lanewise.lab.gates.gate import Fault, Gate, visits
from lanewise.receipts.failures import FailureFamily
from lanewise.receipts.instruments import PLANTED_KEY, PlantedRecord
from lanewise.receipts.schema import RunReceipt

ROUNDING = 1e-9


def planted_delay(block: BlockEvidence, arms: Arms) -> Gate:
    """Arm B of a positive control was delayed as planned; no other run was delayed at all."""
    faults = []
    for arm, receipt in visits(block):
        wanted = (arms.planted_ratio or 0.0) if arm == "B" else 0.0
        found = _delay(receipt)
        if abs(found - wanted) > ROUNDING:
            text = f"arm {arm} was to be delayed by {wanted:.2%}, its receipt says {found:.2%}"
            faults.append(Fault(text=text, family=FailureFamily.COMPARABILITY, structural=True))
    return Gate(
        name="planted_delay",
        rule="a delay is planted in arm B of a positive control alone",
        received=f"{arms.planted_ratio:.2%} in arm B" if arms.planted_ratio else "no delay",
        faults=tuple(faults),
    )


def _delay(receipt: RunReceipt) -> float:
    """Share of its own time by which every step was prolonged."""
    found = receipt.extensions.get(PLANTED_KEY)
    return 0.0 if found is None else PlantedRecord.model_validate(found).step_time_ratio - 1.0
