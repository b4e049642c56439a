"""P0: may this block count? Every gate is applied and listed, apart from whether the feature is fast."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from lanewise.lab.arms import Arms
from lanewise.lab.evidence import BlockEvidence
from lanewise.lab.gates import backends, control, identity, machine, numerics, timing
from lanewise.lab.gates.backends import observed_backends as observed_backends
from lanewise.lab.gates.gate import Fault as Fault
from lanewise.lab.gates.gate import Gate as Gate

STEADY = "steady_state"


def block_gates(
    block: BlockEvidence,
    arms: Arms,
    *,
    reference: BlockEvidence | None = None,
    cache: Literal["warm", "cold"] | None = None,
) -> tuple[Gate, ...]:
    """Every gate applied to one block; only the first where evidence is missing, since the others need it.

    Args:
        block: the block.
        arms: what was asked for.
        reference: the feature's first whole block, whose environment holds for all.
        cache: state of the compile caches that the campaign prepared; None where it did not say.
    """
    readable = identity.readable(block)
    if not readable.ok:
        return (readable,)
    placement, proof = identity.placement(block), backends.backend_proof(block, arms)
    said = {identity.BACKEND_CHECK} if not (placement.ok and proof.ok) else set()
    return (
        readable,
        placement,
        proof,
        identity.receipt_checks(block, covered=frozenset({identity.STEADY_CHECK, *said})),
        numerics.finite_losses(block),
        identity.comparability(block, arms),
        identity.constancy(block, reference),
        control.planted_delay(block, arms),
        numerics.paired_losses(block, arms),
        timing.goodput_closure(block),
        timing.event_wall_closure(block),
        machine.compile_cache(block, cache),
        machine.memory_pressure(block),
        machine.clock_events(block),
        machine.host_quiet(block),
        timing.steady_state(block),
    )


def faults_of(gates: tuple[Gate, ...]) -> tuple[Fault, ...]:
    """Every reason why a block does not count; a missing steady state only where nothing else is wrong."""
    found = tuple(fault for gate in gates if gate.name != STEADY for fault in gate.faults)
    return found or tuple(fault for gate in gates for fault in gate.faults)


def worth_another_attempt(block: BlockEvidence) -> Fault | None:
    """Why a block that has just run should be run again: others used the machine, or no difference held; None if neither.

    Both refuse the block whichever arm was faster, so a second attempt selects nothing that the gates would not. Faults of
    several others become one, with the words of each.
    """
    if block.unreadable:
        return None
    faults = machine.host_quiet(block).faults or timing.steady_state(block).faults
    if not faults:
        return None
    return replace(faults[0], text="; ".join(fault.text for fault in faults))
