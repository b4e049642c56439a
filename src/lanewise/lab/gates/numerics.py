"""Gates on what was computed: finite losses, and equal losses where equal mathematics is promised."""

from __future__ import annotations

from lanewise.lab import protocol
from lanewise.lab.arms import Arms
from lanewise.lab.evidence import BlockEvidence
from lanewise.lab.gates.gate import Fault, Gate, visits
from lanewise.receipts.failures import FailureFamily


def finite_losses(block: BlockEvidence) -> Gate:
    """No loss of any visit is NaN or infinite."""
    return Gate(
        name="finite_losses",
        rule="every loss is finite",
        received="all finite",
        faults=tuple(
            Fault(
                text=f"arm {arm}: a loss is not finite",
                family=FailureFamily.NUMERICS,
                structural=True,
            )
            for arm, receipt in visits(block)
            if not receipt.numerics.losses_finite
        ),
    )


def paired_losses(block: BlockEvidence, arms: Arms) -> Gate:
    """Arms that promise the same mathematics agree over the first steps, within rounding that training amplifies."""
    name = "paired_losses"
    compute = arms.control.lane.precision.compute
    rule = (
        "losses of arms with equal mathematics agree within rounding over "
        f"{protocol.PAIRED_LOSS_STEPS[compute]} steps of {compute}"
    )
    if not arms.equal_mathematics:
        return Gate(name=name, rule=rule, received="the feature changes the mathematics")
    largest = 0.0
    for step, control, treated in block.paired_losses(compute):
        if control is None or treated is None:
            break
        difference = abs(treated - control)
        allowed = protocol.loss_tolerance(step, control, compute)
        if difference > allowed:
            text = (
                f"losses differ by {difference:.2e} nats at step {step}, allowed {allowed:.2e}: "
                "the arms do not compute the same thing"
            )
            return Gate(
                name=name,
                rule=rule,
                received=text,
                faults=(Fault(text=text, family=FailureFamily.NUMERICS, structural=True),),
            )
        largest = max(largest, difference)
    return Gate(name=name, rule=rule, received=f"largest difference {largest:.1e} nats")
