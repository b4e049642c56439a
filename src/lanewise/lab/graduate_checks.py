"""R5 in single checks: whether a decision's evidence is complete, comparable and exactly named, and its effect worth having.

A check is `sound` when it is about the evidence and not about the effect: only sound decisions may count against an entry.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from statistics import median
from typing import Final

from lanewise.errors import LanewiseError
from lanewise.lab.graduate_evidence import Evidence, utc
from lanewise.lab.judge import OF_THE_VISIT
from lanewise.lab.resume import resume_text
from lanewise.lab.stance import break_even_steps
from lanewise.lane import machine
from lanewise.lane.digest import digest, lane_digest, lane_identity
from lanewise.lane.features import BY_KEY, Role
from lanewise.lane.names import canonical_name
from lanewise.receipts.compare import DIGEST_FIELDS
from lanewise.receipts.decision import Decision, Verdict
from lanewise.receipts.schema import RunReceipt

MAX_ADJUSTED_P: Final = 0.05
"""Of Holm's correction over the campaign's features."""

MEMORY_GROWTH_RATIO: Final = 1.02
"""Peak tensor bytes, treated ÷ control, up to which memory holds: less than a step of any batch size."""

GOODPUT_FALL_RATIO: Final = 0.005
"""Fall of goodput that short visits show by themselves."""

PAY_BACK_STEPS: Final = 10_000
"""Steps within which compile time must be won back; shorter runs are tests."""

CLOCK_TOLERANCE: Final = timedelta(hours=1)
"""By how much clocks of machines may differ."""

ONE_TIME = frozenset({"compile", "autotune", "graph_capture"})
"""Badput paid once per run, which the pay-back judges: a visit of seconds would make it look like everything."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Checked:
    """One check.

    Attributes:
        name: short key.
        ok: None where it asks nothing.
        text: what was found.
        shown_by: receipts or decision.
        sound: whether it is about the evidence, not about the effect.
    """

    name: str
    ok: bool | None
    text: str
    shown_by: tuple[str, ...]
    sound: bool


def evidence_checks(evidence: Evidence) -> tuple[Checked, ...]:
    """Every check, in the order a person would ask."""
    checks = [*_soundness(evidence)]
    checks += _effect(evidence)
    return tuple(checks)


def _soundness(evidence: Evidence) -> Iterator[Checked]:
    decision, cited = evidence.decision, (evidence.cited,)

    def check(name: str, fault: str | None, fine: str, *shown: str) -> Checked:
        return Checked(
            name=name, ok=fault is None, text=fault or fine, shown_by=shown or cited, sound=True
        )

    yield check("complete", _incomplete(evidence), "every planned block and arm is there")
    screen = decision.mode == "screen"
    yield check("mode", "a screen ranks and never graduates" if screen else None, "a confirmation")
    bare = decision.design != "leave-one-out"
    yield check(
        "design",
        f"measured {decision.design}; a default runs in the full stack, ablate with --design leave-one-out"
        if bare
        else None,
        "measured in the full stack",
    )
    invalid = decision.verdict is Verdict.INVALID or not decision.observed_ok
    yield check("valid", f"INVALID: {decision.reason}" if invalid else None, "valid")
    yield check("unaltered", _differs(decision, evidence.stored), "drawn again, it says the same")
    for name, faults in (
        ("receipts", _bad_receipts(evidence)),
        ("campaign", _foreign(evidence)),
        ("clock", _out_of_time(evidence)),
        ("names", _misnamed(evidence)),
        ("topology", _without_topology(evidence)),
        ("comparable", _incomparable(evidence)),
        ("versions", _unversioned(evidence)),
    ):
        first = next(faults, None)
        if first is None:
            yield check(name, None, "as it should be")
        else:
            yield check(name, first[1], "", first[0])


def _effect(evidence: Evidence) -> Iterator[Checked]:
    decision, cited = evidence.decision, (evidence.cited,)

    def check(name: str, ok: bool | None, text: str) -> Checked:
        return Checked(name=name, ok=ok, text=text, shown_by=cited, sound=False)

    wanted = (Verdict.FASTER, Verdict.SLOWER)
    if BY_KEY[decision.feature].role is Role.TAX:
        wanted = (Verdict.WITHIN_BUDGET, Verdict.OVER_BUDGET)
    yield check("verdict", decision.verdict in wanted, f"{decision.verdict}: {decision.reason}")
    if BY_KEY[decision.feature].role is Role.TAX:
        return  # its price is judged by its budget, its worth by its losses
    p, method = decision.adjusted_p, decision.adjustment
    if p is None or method != "holm":
        yield check(
            "multiplicity", False, "no p-value corrected by Holm; measure with this version"
        )
    else:
        text = f"adjusted p {p:.2g} (Holm)"
        yield check(
            "multiplicity",
            p <= MAX_ADJUSTED_P,
            text
            if p <= MAX_ADJUSTED_P
            else f"{text} is above {MAX_ADJUSTED_P}; a campaign planned with `--claims family` keeps what it finds",
        )
    yield _numerics(evidence)
    if decision.verdict is Verdict.SLOWER:
        return  # switching off costs nothing of what follows
    yield _memory(decision, cited)
    yield _goodput(evidence)
    yield _pay_back(decision, cited)


def _incomplete(evidence: Evidence) -> str | None:
    decision = evidence.decision
    if evidence.missing:
        return f"INCOMPLETE, missing: {', '.join(evidence.missing)}; finish it with `{resume_text(evidence.plan)}`"
    if decision.status != "COMPLETE":
        return f"INCOMPLETE: {decision.incomplete_reason or 'no reason given'}"
    return None if evidence.all_receipts else "no block counts"


def _differs(decision: Decision, stored: Decision | None) -> str | None:
    if stored is None:
        return "the campaign wrote no decision; finish it with --resume"
    if _said(stored) == _said(decision):
        return None
    return (
        f"the stored decision says {' '.join(_said(stored))}, its plan, journal and receipts say "
        f"{' '.join(_said(decision))}"
    )


def _said(decision: Decision) -> tuple[str, ...]:
    effect = (
        "without effect" if decision.estimate is None else f"{decision.estimate.log_ratio:+.6f}"
    )
    return decision.verdict.value, decision.status, effect, f"{len(decision.blocks)} blocks"


def _bad_receipts(evidence: Evidence) -> Iterator[tuple[str, str]]:
    for receipt in evidence.all_receipts:
        outcome, numerics = receipt.outcome, receipt.numerics
        failed = [check.name for check in outcome.checks if not check.ok]
        if outcome.status != "success" or outcome.validity != "valid" or failed:
            why = ", ".join(failed) or outcome.error or outcome.validity
            yield receipt.receipt_id, f"a receipt is {outcome.status} and {outcome.validity}: {why}"
        elif not (numerics.losses_finite and numerics.grad_norm_finite):
            yield receipt.receipt_id, "a loss or gradient is not finite"


def _foreign(evidence: Evidence) -> Iterator[tuple[str, str]]:
    seen: set[str] = set()
    for receipt in evidence.all_receipts:
        place = receipt.experiment
        if place is None or place.campaign_id != evidence.decision.campaign_id:
            whose = "no campaign" if place is None else f"campaign {place.campaign_id}"
            yield receipt.receipt_id, f"a receipt is of {whose}, not of this one"
        elif receipt.receipt_id in seen:
            yield receipt.receipt_id, "a receipt is cited twice"
        elif place.design != evidence.plan.block_design:
            yield (
                receipt.receipt_id,
                f"a receipt is of a {place.design} block, planned were {evidence.plan.block_design} ones",
            )
        seen.add(receipt.receipt_id)


def _out_of_time(evidence: Evidence) -> Iterator[tuple[str, str]]:
    """Clocks of machines that one campaign visits may differ a little; days may not."""
    planned, now = utc(evidence.plan.created_at), utc(evidence.decision.created_at)
    for receipt in evidence.all_receipts:
        made = utc(receipt.created_at)
        if made < planned - CLOCK_TOLERANCE:
            yield (
                receipt.receipt_id,
                f"a receipt of {receipt.created_at} is older than its plan of {evidence.plan.created_at}: "
                "the clock was set back, so nobody can tell the day",
            )
        elif made > now + CLOCK_TOLERANCE:
            yield (
                receipt.receipt_id,
                f"a receipt of {receipt.created_at} lies in the future: a clock is wrong, so nobody can tell the day",
            )


def _misnamed(evidence: Evidence) -> Iterator[tuple[str, str]]:
    plan = evidence.plan
    fault = machine.fault(plan.machine_class)
    if fault is not None:
        yield evidence.cited, f"machine '{plan.machine_class}' {fault}"
        return
    try:
        name = canonical_name(plan.lane, machine_class=plan.machine_class, mode="ablate")
    except LanewiseError as error:
        yield evidence.cited, str(error)
        return
    for receipt in evidence.all_receipts:
        wanted = _planned_digest(evidence, receipt)
        if receipt.lane.canonical_name != name:
            yield (
                receipt.receipt_id,
                f"a receipt is named {receipt.lane.canonical_name}, the lane {name}",
            )
        elif digest(receipt.lane.spec) != receipt.lane.digest:
            yield receipt.receipt_id, "the lane in a receipt has another digest than its tables"
        elif receipt.lane.digest != wanted:
            yield (
                receipt.receipt_id,
                f"receipts are of lane {receipt.lane.digest[:19]}, which is {wanted[:19]} today: the lane has changed, "
                "measure it again",
            )
        elif receipt.machine.class_name != plan.machine_class:
            yield (
                receipt.receipt_id,
                f"a receipt comes from {receipt.machine.class_name}, planned was {plan.machine_class}",
            )


def _planned_digest(evidence: Evidence, receipt: RunReceipt) -> str:
    """Digest of the planned lane; blocks of a feature that changes the mathematics differ from it in their seeds."""
    if BY_KEY[evidence.decision.feature].equal_mathematics:
        return lane_digest(evidence.plan.lane)
    wanted, found = lane_identity(evidence.plan.lane), receipt.lane.spec
    data = found.get("data")
    if isinstance(data, dict) and "seed" in found and "seed" in data:
        wanted["seed"], wanted["data"]["seed"] = found["seed"], data["seed"]
    return digest(wanted)


def _without_topology(evidence: Evidence) -> Iterator[tuple[str, str]]:
    for receipt in evidence.all_receipts:
        if not isinstance(receipt.lane.spec.get("topology"), dict):
            yield receipt.receipt_id, "a receipt does not record the topology"


def _incomparable(evidence: Evidence) -> Iterator[tuple[str, str]]:
    receipts = evidence.all_receipts
    seeded = not BY_KEY[evidence.decision.feature].equal_mathematics
    for field in DIGEST_FIELDS:
        if field == "lane.digest" and seeded:
            continue  # seeds differ between blocks on purpose, and arms of one block were compared
        for receipt in receipts[1:]:
            if _at(receipt, field) != _at(receipts[0], field):
                yield receipt.receipt_id, f"receipts of one campaign differ in {field}"


def _unversioned(evidence: Evidence) -> Iterator[tuple[str, str]]:
    # A tax may set no op and no compiler, and then rests on no backend of its own.
    feature = BY_KEY[evidence.decision.feature]
    rests = feature.ops_for(evidence.plan.lane.model) or any(
        setting.runtime for setting in feature.settings.values()
    )
    if rests and not evidence.decision.backend_versions:
        yield evidence.cited, "receipts name no versions of the backends; measure with this version"


def _at(receipt: RunReceipt, field: str) -> object:
    value: object = receipt
    for part in field.split("."):
        value = getattr(value, part)
    return value


def _numerics(evidence: Evidence) -> Checked:
    decision = evidence.decision
    difference = decision.loss_max_abs_diff
    text = (
        "losses of the arms were not compared"
        if difference is None
        else f"losses of the arms differ by {difference:.1e} nats at most"
    )
    ok = difference is not None
    return Checked(name="numerics", ok=ok, text=text, shown_by=(evidence.cited,), sound=False)


def _memory(decision: Decision, cited: tuple[str, ...]) -> Checked:
    memory = decision.peak_memory_bytes
    if memory.control is None or memory.treated is None:
        text = f"peak memory is unknown: {memory.reason or 'not measured'}"
        return Checked(name="memory", ok=False, text=text, shown_by=cited, sound=False)
    ok = memory.treated <= MEMORY_GROWTH_RATIO * memory.control
    grown = (memory.treated - memory.control) / 2**20
    text = f"peak memory {grown:+.1f} MiB"
    if not ok:
        text += f" is more than {MEMORY_GROWTH_RATIO - 1:.0%} of the control"
    return Checked(name="memory", ok=ok, text=text, shown_by=cited, sound=False)


def _goodput(evidence: Evidence) -> Checked:
    control, treated = (_steady_goodput(evidence, arm) for arm in ("A", "B"))
    if control is None or treated is None:
        text, ok = "goodput was not measured", False
    else:
        ok = treated - control >= -GOODPUT_FALL_RATIO
        text = f"goodput {'falls' if not ok else 'changes'} by {treated - control:+.2%} without one-time costs"
    return Checked(name="goodput", ok=ok, text=text, shown_by=(evidence.cited,), sound=False)


def _steady_goodput(evidence: Evidence, arm: str) -> float | None:
    values = []
    for receipt in evidence.receipts.get(arm, ()):
        goodput = receipt.goodput
        if goodput is None:
            return None
        lost = sum(
            seconds
            for name, seconds in goodput.badput_seconds.items()
            if name not in OF_THE_VISIT | ONE_TIME
        )
        total = goodput.step_seconds + lost
        if total > 0:
            values.append(goodput.step_seconds / total)
    return median(values) if values else None


def _pay_back(decision: Decision, cited: tuple[str, ...]) -> Checked:
    compiles = any(setting.runtime for setting in BY_KEY[decision.feature].settings.values())
    if compiles and decision.compile_seconds.delta is None:
        text = "compile time is unknown, so nobody can say whether it pays back"
        return Checked(name="pay_back", ok=False, text=text, shown_by=cited, sound=False)
    steps = break_even_steps(
        decision.compile_seconds, decision.control_step_seconds, decision.treated_step_seconds
    )
    if steps is None:
        return Checked(
            name="pay_back", ok=None, text="nothing to pay back", shown_by=cited, sound=False
        )
    ok = steps <= PAY_BACK_STEPS
    text = f"compiling pays back after {steps} steps"
    if not ok:
        text += f", later than {PAY_BACK_STEPS}"
    return Checked(name="pay_back", ok=ok, text=text, shown_by=cited, sound=False)
