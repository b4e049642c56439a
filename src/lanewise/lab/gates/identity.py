"""Gates on what was compared: the right visits, the same lane, protocol, software, data and machine."""

from __future__ import annotations

from collections.abc import Sequence

from lanewise.lab.arms import Arms
from lanewise.lab.evidence import BlockEvidence
from lanewise.lab.gates.gate import Fault, Gate, visits
from lanewise.receipts.compare import Difference, comparable, named_differences
from lanewise.receipts.failures import ComparabilityFailure, FailureFamily, first_family
from lanewise.receipts.schema import Outcome, RunReceipt

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
        faults=tuple(
            Fault(text=reason, family=FailureFamily.DISK, structural=True)
            for reason in block.unreadable
        ),
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
            faults.append(_not_comparable(text, ("experiment",)))
            continue
        if (at.campaign_id, at.position) in seen:
            text = f"arm {arm}: two receipts claim place {at.position} of the block"
            faults.append(_not_comparable(text, ("experiment.position",)))
        seen.add((at.campaign_id, at.position))
    if len({campaign for campaign, _position in seen}) > 1:
        text = "the receipts are of several campaigns"
        faults.append(_not_comparable(text, ("experiment.campaign_id",)))
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
            Fault(
                text=f"arm {arm}: {check.name}: {check.detail}",
                family=first_family([check.name]),
                structural=True,
            )
            for check in failed
            if check.name not in covered
        ]
        if outcome.status != "success":
            text = f"arm {arm}: the run was {outcome.status}"
            faults.append(_as_the_run_said(text, outcome))
        elif outcome.validity != "valid" and not failed:
            why = outcome.error or "no reason given"
            text = f"arm {arm}: the receipt is invalid ({why})"
            faults.append(_as_the_run_said(text, outcome))
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
        _not_comparable(
            f"the arms are not comparable: {_listed(control, other, differences)}",
            tuple(difference.field for difference in differences),
        )
        for other in others
        if (differences := comparable(control, other, declared=arms.declared))
    ]
    if any(r.machine.instance_digest != control.machine.instance_digest for r in others):
        crossed = "the block was run on two machines; a block never crosses one"
        faults.append(_not_comparable(crossed, ("machine.instance_digest",)))
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
    changed: dict[str, str] = {}
    fields: list[str] = []
    for name, field in (("environment", "environment_digest"), ("data", "data_digest")):
        if getattr(ours, field) != getattr(theirs, field):
            changed[name] = field
            fields += named_differences(theirs, ours, field)
    if ours.machine.class_digest != theirs.machine.class_digest:
        changed["machine class"] = "machine.class_digest"
    since = reference.entry.block
    if not changed:
        return Gate(name="constant", rule=rule, received=f"the same as in block {since}")
    text = f"{' and '.join(changed)} changed since block {since}" + _in_brackets(fields)
    faults = (_not_comparable(text, tuple(changed.values())),)
    return Gate(name="constant", rule=rule, received=text, faults=faults)


def _not_comparable(text: str, fields: tuple[str, ...]) -> Fault:
    """What may not meet in one block.

    Args:
        text: in words.
        fields: dotted paths of receipts that differ, or that are not what the journal says.
    """
    failure = ComparabilityFailure(fields=fields)
    return Fault(text=text, family=failure.family, failure=failure, structural=True)


def _as_the_run_said(text: str, outcome: Outcome) -> Fault:
    return Fault(text=text, family=outcome.failure_family, failure=outcome.failure, structural=True)


def _listed(control: RunReceipt, other: RunReceipt, differences: Sequence[Difference]) -> str:
    return "; ".join(
        f"{d.field}: {d.a} ≠ {d.b}" + _in_brackets(named_differences(control, other, d.field))
        for d in differences
    )


def _in_brackets(fields: list[str]) -> str:
    if not fields:
        return ""
    more = f" and {len(fields) - MAX_NAMED} more" if len(fields) > MAX_NAMED else ""
    return f" ({', '.join(fields[:MAX_NAMED])}{more})"
