"""P0: may this block count? Checked before any statistics, and kept apart from whether the feature is fast."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from lanewise.lab import protocol
from lanewise.lab.arms import Arms
from lanewise.lab.evidence import BlockEvidence
from lanewise.lab.schedule import ArmName
from lanewise.receipts.compare import comparable
from lanewise.receipts.schema import BackendRecord, RunReceipt

ARM_NAMES: tuple[ArmName, ...] = ("A", "B")

STEADY_CHECK = "steady_state"
"""A receipt's own check that the block's warm-up gate covers."""

BACKEND_CHECK = "observed_backends"
"""A receipt's own check that the arms' observations cover."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Fault:
    """Why a block does not count.

    Attributes:
        text: what was asked, what was observed.
        structural: whether it makes the feature's verdict INVALID; noise (no steady state) only costs the block.
        about_backend: whether something else ran than was asked for.
    """

    text: str
    structural: bool
    about_backend: bool = False


def block_faults(block: BlockEvidence, arms: Arms) -> tuple[Fault, ...]:
    """Every reason why a block does not count; empty when it does."""
    if block.unreadable:
        return tuple(Fault(text=reason, structural=True) for reason in block.unreadable)
    faults = [*_placement(block), *_observations(block, arms)]
    faults += _receipt_checks(block, already_said=bool(faults))
    faults += _comparability(block, arms)
    faults += _losses(block, arms)
    if not faults:
        faults += _steadiness(block)
    return tuple(faults)


def environment_fault(block: BlockEvidence, reference: BlockEvidence) -> Fault | None:
    """Whether a block was run on other software, data or hardware than the campaign's first one."""
    ours, theirs = block.receipts["A"][0], reference.receipts["A"][0]
    differing = [
        name
        for name, a, b in (
            ("environment", ours.environment_digest, theirs.environment_digest),
            ("data", ours.data_digest, theirs.data_digest),
            ("machine", ours.machine.instance_digest, theirs.machine.instance_digest),
        )
        if a != b
    ]
    if not differing:
        return None
    return Fault(
        text=f"{' and '.join(differing)} changed since block {reference.entry.block}",
        structural=True,
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


def _placement(block: BlockEvidence) -> Iterator[Fault]:
    entry = block.entry
    for arm in ARM_NAMES:
        for receipt in block.receipts[arm]:
            place = receipt.experiment
            if place is None or (place.ablation_id, place.arm, place.block) != (
                entry.feature,
                arm,
                entry.block,
            ):
                yield Fault(
                    text=f"arm {arm}: receipt {receipt.receipt_id[:19]} belongs to another visit",
                    structural=True,
                )


def _receipt_checks(block: BlockEvidence, *, already_said: bool) -> Iterator[Fault]:
    covered = {STEADY_CHECK, BACKEND_CHECK} if already_said else {STEADY_CHECK}
    for arm in ARM_NAMES:
        for receipt in block.receipts[arm]:
            outcome = receipt.outcome
            failed = [check for check in outcome.checks if not check.ok]
            for check in failed:
                if check.name not in covered:
                    yield Fault(text=f"arm {arm}: {check.name}: {check.detail}", structural=True)
            if outcome.status != "success":
                yield Fault(text=f"arm {arm}: the run was {outcome.status}", structural=True)
            elif outcome.validity != "valid" and not failed:
                yield Fault(
                    text=f"arm {arm}: the receipt is invalid ({outcome.error or 'no reason given'})",
                    structural=True,
                )
            if not receipt.numerics.losses_finite:
                yield Fault(text=f"arm {arm}: a loss is not finite", structural=True)


def _comparability(block: BlockEvidence, arms: Arms) -> Iterator[Fault]:
    control, *others = [receipt for arm in ARM_NAMES for receipt in block.receipts[arm]]
    for other in others:
        differences = comparable(control, other, declared=arms.declared)
        if differences:
            listed = "; ".join(f"{d.field}: {d.a} ≠ {d.b}" for d in differences)
            yield Fault(text=f"the arms are not comparable: {listed}", structural=True)


def _observations(block: BlockEvidence, arms: Arms) -> Iterator[Fault]:
    for arm in ARM_NAMES:
        asked = arms.arm(arm)
        for receipt in block.receipts[arm]:
            records = {record.op: record for record in receipt.backends}
            for op in sorted({*records, *arms.ops}):
                text = _backend_fault(
                    op, asked.op_preferences.get(op, ()), records.get(op), op in arms.ops
                )
                if text:
                    yield Fault(text=f"arm {arm} {text}", structural=True, about_backend=True)
            states = {decision.key: decision.state for decision in asked.features}
            for feature in receipt.features:
                if feature.effective != states.get(feature.key, feature.effective):
                    yield Fault(
                        text=f"arm {arm} asked for {feature.key}={states[feature.key]}, "
                        f"observed {feature.effective}",
                        structural=True,
                        about_backend=True,
                    )
            compiled = asked.runtime_switches.get("regional_compile", False)
            if receipt.compile.enabled != compiled:
                yield Fault(
                    text=f"arm {arm} asked for regional_compile={'on' if compiled else 'off'}, "
                    f"observed {'compiled' if receipt.compile.enabled else 'eager'} blocks",
                    structural=True,
                    about_backend=True,
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
    if record.observed == (wanted,):
        return None
    why = record.fallback_reason or "; ".join(record.rejected.values())
    return f"asked for {op}={_order(asked)}, observed {' + '.join(record.observed)}" + (
        f" ({why})" if why else ""
    )


def _losses(block: BlockEvidence, arms: Arms) -> Iterator[Fault]:
    if not arms.equal_mathematics:
        return
    compute = arms.control.lane.precision.compute
    for step, control, treated in block.paired_losses():
        if control is None or treated is None:
            return
        allowed = protocol.loss_tolerance(step, control, compute)
        if abs(treated - control) > allowed:
            yield Fault(
                text=f"losses differ by {abs(treated - control):.2e} nats at step {step}, allowed {allowed:.2e}: "
                "the arms do not compute the same thing",
                structural=True,
            )
            return


def _steadiness(block: BlockEvidence) -> Iterator[Fault]:
    entry = block.entry
    if not entry.steady:
        yield Fault(text=entry.warmup_reason, structural=False)
    elif entry.design != "sequential" and block.num_quads < protocol.MIN_STEADY_QUADS:
        yield Fault(
            text=f"{block.num_quads} quads left after {entry.warmup_steps} warm-up steps, "
            f"{protocol.MIN_STEADY_QUADS} are needed",
            structural=False,
        )


def _order(names: Sequence[str]) -> str:
    return " or ".join(names) or "its own order"
