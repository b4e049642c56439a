"""The five rules of graduation, each answered for one decision with the receipt or decision that shows it.

R1 hot path, R2 narrow before broad, R3 reached only through an op table, R4 a tax never becomes a speed default,
R5 comparable and complete receipts. What two decisions must have in common is in `graduate`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from lanewise.errors import ReceiptError
from lanewise.lab.graduate_checks import Checked, evidence_checks
from lanewise.lab.graduate_evidence import Evidence
from lanewise.lane.features import BY_KEY, Feature, Role
from lanewise.lane.resolve import OP_NAMES
from lanewise.receipts.decision import Verdict
from lanewise.receipts.profile import StepShare
from lanewise.receipts.schema import RunReceipt

HOT_SHARE_RATIO: Final = 0.01
"""Least part of the control's step that a hot path takes."""

RuleName = Literal["R1", "R2", "R3", "R4", "R5"]
TITLES: Final[dict[RuleName, str]] = {
    "R1": "hot path",
    "R2": "narrow before broad",
    "R3": "through an op table",
    "R4": "no tax among speed defaults",
    "R5": "comparable, complete receipts",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class RuleResult:
    """One rule and one decision.

    Attributes:
        rule: `R1` to `R5`.
        ok: whether it is kept; None where it asks nothing of this feature.
        text: what was found.
        shown_by: receipt or decision ids to look at.
        checks: the single checks of R5.
    """

    rule: RuleName
    ok: bool | None
    text: str
    shown_by: tuple[str, ...]
    checks: tuple[Checked, ...] = ()

    @property
    def title(self) -> str:
        """The rule in words."""
        return TITLES[self.rule]


def apply_rules(evidence: Evidence, eager: Sequence[RunReceipt] = ()) -> tuple[RuleResult, ...]:
    """All five rules, in order.

    Args:
        evidence: of one decision.
        eager: profiled runs of the same lane on the same machine class whose blocks were not compiled, newest last; for
            decisions whose own control hides its ops in compiled blocks.
    """
    feature = BY_KEY[evidence.decision.feature]
    return (
        _hot_path(feature, evidence, eager),
        _narrow_first(feature, evidence),
        _op_table(feature, evidence),
        _no_tax(feature, evidence),
        _receipts(evidence),
    )


def _hot_path(feature: Feature, evidence: Evidence, eager: Sequence[RunReceipt]) -> RuleResult:
    if feature.role is Role.TAX:
        text = "asks nothing of a tax, which is judged by its budget"
        return RuleResult(rule="R1", ok=None, text=text, shown_by=(evidence.cited,))
    controls = (*evidence.receipts.get("A", ()), *evidence.uncounted.get("A", ()))
    receipt = next((found for found in controls if found.profile is not None), None)
    if receipt is None:
        text = "no receipt of the control holds a profiled step; measure with this version"
        return RuleResult(rule="R1", ok=False, text=text, shown_by=(evidence.cited,))
    where = "the control's step"
    shown_by: tuple[str, ...] = (receipt.receipt_id,)
    if receipt.compile.enabled and _hidden(feature, evidence, receipt):
        # A compiled op has no time of its own, so its share is that of the same backend in the same lane, uncompiled.
        like = [run for run in eager if _same_code(feature, evidence, run, receipt)]
        if like:
            shown_by = (like[-1].receipt_id, receipt.receipt_id)
            receipt, where = (
                like[-1],
                "the step of an eager run of this lane (the control is compiled)",
            )
    try:
        shares = tuple(_touched(feature, evidence, receipt))
    except ReceiptError as error:
        return RuleResult(rule="R1", ok=False, text=str(error), shown_by=(receipt.receipt_id,))
    total = sum(share.share_ratio for _name, share in shares)
    idle = [name for name, share in shares if not share.launches] + _idle(
        feature, receipt, evidence
    )
    names = " + ".join(name for name, _share in shares)
    counts = ", ".join(str(share.launches) for _name, share in shares)
    text = f"{names} takes {total:.1%} of {where}, {counts} launches in it"
    if total < HOT_SHARE_RATIO:
        text += f"; a hot path takes {HOT_SHARE_RATIO:.0%}"
    if idle:
        text += f"; not run in every step: {', '.join(idle)}"
    ok = total >= HOT_SHARE_RATIO and not idle
    return RuleResult(rule="R1", ok=ok, text=text, shown_by=shown_by)


def _hidden(feature: Feature, evidence: Evidence, receipt: RunReceipt) -> bool:
    """Whether a profile shows nothing of an op of the feature."""
    profile = receipt.profile
    ops = feature.ops_for(evidence.plan.lane.model)
    return profile is not None and any(op not in profile.ops for op in ops)


def _same_code(feature: Feature, evidence: Evidence, run: RunReceipt, control: RunReceipt) -> bool:
    """Whether a run shows the feature's ops by the backends that the control ran."""

    def observed(receipt: RunReceipt) -> dict[str, tuple[str, ...]]:
        return {r.op: r.observed for r in receipt.backends if r.op in ops}

    ops = feature.ops_for(evidence.plan.lane.model)
    eager = run.profile is not None and not run.compile.enabled
    return eager and not _hidden(feature, evidence, run) and observed(run) == observed(control)


def _touched(
    feature: Feature, evidence: Evidence, receipt: RunReceipt
) -> Iterator[tuple[str, StepShare]]:
    """Shares of the feature's ops, or of the blocks it works on where it sets none."""
    profile = receipt.profile
    assert profile is not None, "the caller chose a receipt with a profile"
    ops = feature.ops_for(evidence.plan.lane.model)
    for op in ops:
        if op not in profile.ops:
            raise ReceiptError(
                f"the profiled step shows nothing of {op}: it never ran, or in compiled blocks, where ops cannot be "
                "told apart. Run `lanewise ablate "
                f"{evidence.plan.lane.name} --feature {feature.key} --set features.regional_compile=off` with the lane's "
                "other settings into one of these stores: its eager control shows the share"
            )
        yield op, profile.ops[op]
    if not ops:
        wanted = {letter for letter in profile.blocks if letter in feature.letters}
        for letter in sorted(wanted if feature.letters else profile.blocks):
            yield f"block {letter}", profile.blocks[letter]


def _idle(feature: Feature, receipt: RunReceipt, evidence: Evidence) -> list[str]:
    """Ops launched less often than steps were taken; traced ones are counted once, when they are compiled."""
    ops = feature.ops_for(evidence.plan.lane.model)
    summary = receipt.timing.step_duration_seconds
    num_steps = receipt.timing.warmup.steps + (summary.count if summary else 0)
    return [
        f"{record.op} ({record.launches} launches in {num_steps} steps)"
        for record in receipt.backends
        if record.op in ops and record.proof == "counter" and record.launches < num_steps
    ]


def _narrow_first(feature: Feature, evidence: Evidence) -> RuleResult:
    decision = evidence.decision
    if feature.narrow is None and feature.role is not Role.SELECTIVE:
        text = "not a broad fusion"
        return RuleResult(rule="R2", ok=None, text=text, shown_by=(evidence.cited,))
    if feature.narrow is None:
        text = "a broad fusion that names no narrow one to beat"
        return RuleResult(rule="R2", ok=False, text=text, shown_by=(evidence.cited,))
    without = [
        receipt.receipt_id
        for receipt in evidence.receipts.get("A", ())
        if not any(
            f.key == feature.narrow and f.requested == f.effective == "on" for f in receipt.features
        )
    ]
    controls = tuple(receipt.receipt_id for receipt in evidence.receipts.get("A", ()))
    if without or not controls:
        text = (
            f"the control of {decision.feature} must run {feature.narrow}=on, and it did not; "
            f"ablate with --set features.{feature.narrow}=on"
        )
        shown = tuple(without[:1]) or (evidence.cited,)
        return RuleResult(rule="R2", ok=False, text=text, shown_by=shown)
    text = f"measured against {feature.narrow}=on"
    return RuleResult(rule="R2", ok=True, text=text, shown_by=controls[:1])


def _op_table(feature: Feature, evidence: Evidence) -> RuleResult:
    ops = feature.ops_for(evidence.plan.lane.model)
    settings = feature.settings.values()
    switches = {name for setting in settings for name in (*setting.model, *setting.runtime)}
    if not ops and not switches:
        text = "sets no op and no declared switch, so nothing shows that it was on"
        return RuleResult(rule="R3", ok=False, text=text, shown_by=(evidence.cited,))
    receipts = evidence.all_receipts
    if not receipts:
        text = "no receipt shows what ran"
        return RuleResult(rule="R3", ok=False, text=text, shown_by=(evidence.cited,))
    for receipt in receipts:
        fault = next(_unproven(feature, ops, receipt), None)
        if fault is not None:
            return RuleResult(rule="R3", ok=False, text=fault, shown_by=(receipt.receipt_id,))
    ran = " + ".join(evidence.decision.observed) or "the switch"
    by = "counted or traced by the dispatcher" if ops else "switched by its declared setting"
    return RuleResult(rule="R3", ok=True, text=f"{ran}: {by}", shown_by=(receipts[-1].receipt_id,))


def _unproven(feature: Feature, ops: tuple[str, ...], receipt: RunReceipt) -> Iterator[str]:
    records = {record.op: record for record in receipt.backends}
    for op in ops:
        record = records.get(op)
        if op not in OP_NAMES or record is None:
            yield f"{op} is no op that the dispatcher chose a backend for"
        elif record.proof == "none" or not record.observed:
            yield f"{op}: nothing was observed"
        elif record.observed != (record.chosen,):
            yield f"{op}: {record.chosen} was chosen, {' + '.join(record.observed)} observed"
    state = next((f for f in receipt.features if f.key == feature.key), None)
    if state is None:
        yield f"the receipt does not name {feature.key}"
    elif state.requested != state.effective:
        yield f"{feature.key}={state.requested} was asked for, {state.effective} took effect"
    elif feature.settings.get(state.effective) is None:
        yield f"{feature.key}={state.effective} is no declared state"
    else:
        wanted = feature.settings[state.effective].runtime.get("regional_compile")
        if wanted is not None and receipt.compile.enabled != wanted:
            yield f"{feature.key}={state.effective} and nothing was compiled"


def _no_tax(feature: Feature, evidence: Evidence) -> RuleResult:
    decision = evidence.decision
    budget = decision.tax_budget_ratio is not None or feature.tax_budget_ratio is not None
    if feature.role is Role.TAX or decision.role == Role.TAX.value or budget:
        text = f"{feature.key} is a tax: it buys quality with time, and is recorded under experimental_taxes"
        return RuleResult(rule="R4", ok=False, text=text, shown_by=(evidence.cited,))
    if not feature.equal_mathematics:
        text = f"{feature.key} changes what is computed, so its speed alone earns nothing"
        return RuleResult(rule="R4", ok=False, text=text, shown_by=(evidence.cited,))
    return RuleResult(rule="R4", ok=True, text="no tax", shown_by=(evidence.cited,))


def _receipts(evidence: Evidence) -> RuleResult:
    checks = evidence_checks(evidence)
    failed = [check for check in checks if check.ok is False]
    shown = tuple(dict.fromkeys(name for check in failed for name in check.shown_by))
    if failed:
        text = "; ".join(dict.fromkeys(check.text for check in failed))
    else:
        decision = evidence.decision
        verdict = "FASTER" if decision.verdict is Verdict.FASTER else decision.verdict.value
        text = f"{verdict}, {len(evidence.all_receipts)} receipts of {evidence.plan.lane.name}, all checks hold"
    return RuleResult(
        rule="R5",
        ok=not failed,
        text=text,
        shown_by=shown or (evidence.cited,),
        checks=checks,
    )
