"""Gates on what was compared: the right visits, the same lane, protocol, software, data and machine."""

from __future__ import annotations

from lanewise.lab.arms import Arms
from lanewise.lab.evidence import BlockEvidence
from lanewise.lab.gates.gate import Fault, Gate, visits
from lanewise.receipts.compare import comparable, named_differences
from lanewise.receipts.schema import RunReceipt

STEADY_CHECK = "steady_state"
"""A receipt's own check that the block's warm-up gate covers."""

BACKEND_CHECK = "observed_backends"
"""A receipt's own check that the arms' observations cover."""

MAX_NAMED = 6
"""Differing fields listed by name; the rest is counted."""


def readable(block: BlockEvidence) -> Gate:
    """Every receipt and step series of the block is in the store."""
    return Gate(
        name="readable",
        rule="all receipts and step series of the block are in the store and whole",
        received=f"{sum(len(ids) for ids in block.entry.receipts.values())} receipts",
        faults=tuple(Fault(text=reason, structural=True) for reason in block.unreadable),
    )


def placement(block: BlockEvidence) -> Gate:
    """Each receipt says itself that it is of this feature, arm, block and attempt, and stands for one visit."""
    entry = block.entry
    seen: set[tuple[str, int]] = set()
    faults = []
    for arm, receipt in visits(block):
        at = receipt.experiment
        # The seed is drawn from the campaign's, the feature, the block and the attempt.
        wanted = (entry.feature, arm, entry.block, entry.design, entry.order_seed)
        if at is None or (at.ablation_id, at.arm, at.block, at.design, at.order_seed) != wanted:
            text = f"arm {arm}: receipt {receipt.receipt_id[:19]} belongs to another visit"
            faults.append(Fault(text=text, structural=True))
            continue
        if (at.campaign_id, at.position) in seen:
            text = f"arm {arm}: two receipts claim place {at.position} of the block"
            faults.append(Fault(text=text, structural=True))
        seen.add((at.campaign_id, at.position))
    if len({campaign for campaign, _position in seen}) > 1:
        faults.append(Fault(text="the receipts are of several campaigns", structural=True))
    return Gate(
        name="placement",
        rule="each receipt names this feature, arm, block and attempt, and a place of its own in it",
        received=f"{entry.feature} block {entry.block}, attempt {entry.attempt}",
        faults=tuple(faults),
    )


def receipt_checks(block: BlockEvidence, *, covered: frozenset[str]) -> Gate:
    """What each run says about itself: success, valid, its own checks.

    Args:
        block: the block.
        covered: checks that another gate has already spoken for.
    """
    faults: list[Fault] = []
    for arm, receipt in visits(block):
        outcome = receipt.outcome
        failed = [check for check in outcome.checks if not check.ok]
        faults += [
            Fault(text=f"arm {arm}: {check.name}: {check.detail}", structural=True)
            for check in failed
            if check.name not in covered
        ]
        if outcome.status != "success":
            faults.append(Fault(text=f"arm {arm}: the run was {outcome.status}", structural=True))
        elif outcome.validity != "valid" and not failed:
            why = outcome.error or "no reason given"
            faults.append(Fault(text=f"arm {arm}: the receipt is invalid ({why})", structural=True))
    return Gate(
        name="receipt_checks",
        rule="every run ended with success and passes its own checks",
        received="all passed",
        faults=tuple(faults),
    )


def comparability(block: BlockEvidence, arms: Arms) -> Gate:
    """All visits share lane, protocol, environment, data and machine class; only the declared features differ."""
    control, *others = [receipt for _arm, receipt in visits(block)]
    faults = [
        Fault(text=f"the arms are not comparable: {listed}", structural=True)
        for other in others
        if (listed := _listed(control, other, arms))
    ]
    if any(r.machine.instance_digest != control.machine.instance_digest for r in others):
        crossed = "the block was run on two machines; a block never crosses one"
        faults.append(Fault(text=crossed, structural=True))
    return Gate(
        name="comparable",
        rule="digests of lane, protocol, environment, data and machine class match, and the arms differ in the "
        "declared features alone",
        received="only declared features differ: " + (", ".join(sorted(arms.declared)) or "none"),
        faults=tuple(faults),
    )


def constancy(block: BlockEvidence, reference: BlockEvidence | None) -> Gate:
    """Software, data and class of machine are those of the feature's first block.

    Another machine of the same class is no fault: `lab.strata` decides whether its blocks are pooled.
    """
    rule = "environment, data and machine class are those of the feature's first block"
    if reference is None or reference is block:
        return Gate(name="constant", rule=rule, received="this is the first block")
    ours, theirs = block.receipts["A"][0], reference.receipts["A"][0]
    changed: list[str] = []
    fields: list[str] = []
    for name, field in (("environment", "environment_digest"), ("data", "data_digest")):
        if getattr(ours, field) != getattr(theirs, field):
            changed.append(name)
            fields += named_differences(theirs, ours, field)
    if ours.machine.class_digest != theirs.machine.class_digest:
        changed.append("machine class")
    since = reference.entry.block
    if not changed:
        return Gate(name="constant", rule=rule, received=f"the same as in block {since}")
    text = f"{' and '.join(changed)} changed since block {since}" + _in_brackets(fields)
    return Gate(
        name="constant", rule=rule, received=text, faults=(Fault(text=text, structural=True),)
    )


def _listed(control: RunReceipt, other: RunReceipt, arms: Arms) -> str:
    return "; ".join(
        f"{d.field}: {d.a} ≠ {d.b}" + _in_brackets(named_differences(control, other, d.field))
        for d in comparable(control, other, declared=arms.declared)
    )


def _in_brackets(fields: list[str]) -> str:
    if not fields:
        return ""
    more = f" and {len(fields) - MAX_NAMED} more" if len(fields) > MAX_NAMED else ""
    return f" ({', '.join(fields[:MAX_NAMED])}{more})"
