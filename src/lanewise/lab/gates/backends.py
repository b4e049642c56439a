"""The gate on what ran: every backend, feature state and compilation is the one that was asked for, with proof."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from lanewise.lab.arms import Arms
from lanewise.lab.evidence import BlockEvidence
from lanewise.lab.gates.gate import Fault, Gate, visits
from lanewise.lab.schedule import ArmName
from lanewise.receipts.failures import FailureFamily
from lanewise.receipts.schema import BackendRecord, RunReceipt


def backend_proof(block: BlockEvidence, arms: Arms) -> Gate:
    """Observed = asked for: backends by their proof, features by what was chosen, blocks by what was compiled."""
    faults = tuple(
        Fault(text=text, family=FailureFamily.BACKEND, structural=True, about_backend=True)
        for arm, receipt in visits(block)
        for text in _deviations(arm, arms, receipt)
    )
    proofs = sorted({r.proof for _arm, receipt in visits(block) for r in receipt.backends})
    return Gate(
        name="backend_proof",
        rule="the backend asked for first is the only one observed, proven by counters, trace or kernel names",
        received=f"as asked for, proven by {' and '.join(proofs) or 'nothing: no ops'}",
        faults=faults,
    )


def observed_backends(receipt: RunReceipt, arms: Arms) -> tuple[str, ...]:
    """Backends observed for the ops the feature sets; the state where it sets none, or where many features differ."""
    if len(arms.declared) > 1:
        return (arms.states["B"],)
    if arms.ops:
        return tuple(
            dict.fromkeys(
                name
                for record in receipt.backends
                if record.op in arms.ops
                for name in record.observed
            )
        )
    return tuple(f.effective for f in receipt.features if f.key in arms.declared)


def _deviations(arm: ArmName, arms: Arms, receipt: RunReceipt) -> Iterator[str]:
    asked, required_ops = arms.arm(arm), arms.ops
    records = {record.op: record for record in receipt.backends}
    for op in sorted({*records, *required_ops}):
        text = _backend_fault(
            op, asked.op_preferences.get(op, ()), records.get(op), op in required_ops
        )
        if text:
            yield f"arm {arm} {text}"
    states = {decision.key: decision.state for decision in asked.features}
    for key in sorted(arms.declared - {feature.key for feature in receipt.features}):
        yield f"arm {arm} asked for {key}={states.get(key)}, its receipt does not name the feature"
    for feature in receipt.features:
        if feature.effective != states.get(feature.key, feature.effective):
            yield (
                f"arm {arm} asked for {feature.key}={states[feature.key]}, observed {feature.effective}"
            )
    compiled = asked.runtime_switches.get("regional_compile", False)
    if receipt.compile.enabled != compiled:
        yield (
            f"arm {arm} asked for regional_compile={'on' if compiled else 'off'}, "
            f"observed {'compiled' if receipt.compile.enabled else 'eager'} blocks"
        )


def _backend_fault(
    op: str, asked: Sequence[str], record: BackendRecord | None, required: bool
) -> str | None:
    if record is None or not record.observed:
        return (
            f"asked for {op}={_order(asked)}, observed nothing: the op never ran"
            if required
            else None
        )
    # A fallback makes the arm another arm, so the first name asked for must run; an op's own order may choose any.
    wanted = asked[0] if asked else record.chosen
    if record.observed != (wanted,):
        why = record.fallback_reason or "; ".join(record.rejected.values())
        return f"asked for {op}={_order(asked)}, observed {' + '.join(record.observed)}" + (
            f" ({why})" if why else ""
        )
    if record.proof == "none":
        return f"claims {op}={wanted} without proof"
    return None


def _order(names: Sequence[str]) -> str:
    return " or ".join(names) or "its own order"
