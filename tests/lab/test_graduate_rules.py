"""Every rule and every check of R5, failing alone."""

import dataclasses
import math
from typing import Any

import pytest

from lanewise.lab.graduate_evidence import Evidence
from lanewise.lab.graduate_rules import RuleResult, apply_rules
from lanewise.lane.features import BY_KEY, FEATURES, Role
from lanewise.lane.resolve import OP_NAMES
from lanewise.receipts.decision import MetricDelta, Verdict
from lanewise.receipts.profile import StepProfile, StepShare
from lanewise.receipts.schema import RunReceipt
from tests.lab.graduating import altered, measured

PASSES = {"R1": True, "R2": None, "R3": True, "R4": True, "R5": True}


def results(evidence: Evidence) -> dict[str, RuleResult]:
    return {rule.rule: rule for rule in apply_rules(evidence)}


def marks(evidence: Evidence) -> dict[str, bool | None]:
    return {rule.rule: rule.ok for rule in apply_rules(evidence)}


def failing_checks(evidence: Evidence) -> list[str]:
    return [check.name for check in results(evidence)["R5"].checks if check.ok is False]


def with_receipts(evidence: Evidence, arm: str, **changes: Any) -> Evidence:
    """The receipts of one arm with other fields."""
    changed = tuple(r.model_copy(update=changes) for r in evidence.receipts[arm])
    return dataclasses.replace(evidence, receipts={**evidence.receipts, arm: changed})


def profile(share: float, launches: int = 5) -> StepProfile:
    shares = {"moe_experts": StepShare(share_ratio=share, launches=launches)}
    return StepProfile(method="by hand", step_seconds=0.1, ops=shares, blocks=shares)


def first(evidence: Evidence, arm: str = "A") -> RunReceipt:
    return evidence.receipts[arm][0]


def test_sound_evidence_keeps_every_rule_and_says_where_to_look() -> None:
    evidence = measured(0.8)
    assert marks(evidence) == PASSES
    known = {receipt.receipt_id for receipt in evidence.all_receipts} | {evidence.cited}
    assert all(rule.shown_by and set(rule.shown_by) <= known for rule in apply_rules(evidence))
    assert failing_checks(evidence) == []


@pytest.mark.parametrize(("share", "ok"), [(0.0099, False), (0.01, True)])
def test_r1_takes_one_percent_of_the_controls_step(share: float, ok: bool) -> None:
    evidence = with_receipts(measured(0.8), "A", profile=profile(share))
    assert marks(evidence) == {**PASSES, "R1": ok}
    # What the fused arm still takes says nothing about what there was to win.
    assert marks(with_receipts(measured(0.8), "B", profile=profile(0.0))) == PASSES


def test_r1_needs_a_profile_a_launch_in_it_and_a_launch_in_every_step() -> None:
    evidence = measured(0.8)
    assert marks(with_receipts(evidence, "A", profile=None)) == {**PASSES, "R1": False}
    assert marks(with_receipts(evidence, "A", profile=profile(0.2, launches=0))) == {
        **PASSES,
        "R1": False,
    }
    rare = tuple(b.model_copy(update={"launches": 3}) for b in first(evidence).backends)
    found = results(with_receipts(evidence, "A", backends=rare))
    assert found["R1"].ok is False
    assert "3 launches in" in found["R1"].text
    assert {name: rule.ok for name, rule in found.items()} == {**PASSES, "R1": False}


def test_r1_says_that_compiled_blocks_hide_ops() -> None:
    without = StepProfile(method="by hand", step_seconds=0.1, ops={}, blocks={})
    found = results(with_receipts(measured(0.8), "A", profile=without))["R1"]
    assert found.ok is False
    assert "in compiled blocks" in found.text


def compiled_control() -> Evidence:
    """A sound decision whose control ran its ops inside compiled blocks."""
    evidence = measured(0.8)
    hidden = StepProfile(method="by hand", step_seconds=0.1, ops={}, blocks={})
    compiled = first(evidence).compile.model_copy(update={"enabled": True})
    return with_receipts(evidence, "A", profile=hidden, compile=compiled)


def test_r1_of_a_compiled_control_takes_the_share_of_the_same_backend_uncompiled() -> None:
    evidence, eager = compiled_control(), first(measured(0.8))
    hot, *_others = apply_rules(evidence, [eager])
    assert hot.ok is True
    assert "of the step of an eager run of this lane (the control is compiled)" in hot.text
    assert hot.shown_by == (eager.receipt_id, first(evidence).receipt_id)
    small = eager.model_copy(update={"profile": profile(0.009)})
    assert apply_rules(evidence, [eager, small])[0].ok is False


def test_r1_of_a_compiled_control_is_shown_by_no_other_backend_and_no_compiled_run() -> None:
    evidence = compiled_control()
    treated, control = first(measured(0.8), "B"), first(measured(0.8))
    compiled = control.model_copy(update={"compile": first(evidence).compile})
    unprofiled = control.model_copy(update={"profile": None})
    found = apply_rules(evidence, [treated, compiled, unprofiled])[0]
    assert found.ok is False
    assert (
        "lanewise ablate nam56r-tiny --feature fused_moe --set features.regional_compile=off"
        in found.text
    )


def test_a_control_that_shows_its_ops_is_judged_by_itself() -> None:
    evidence = with_receipts(measured(0.8), "A", profile=profile(0.005))
    assert apply_rules(evidence, [first(measured(0.8))])[0].ok is False


def test_r1_of_a_feature_without_ops_is_about_the_blocks_it_touches() -> None:
    evidence = measured(0.8, feature="regional_compile")
    found = results(evidence)["R1"]
    assert found.ok is True
    assert found.text.startswith("block E + block M takes 70.0%")


def test_r2_a_broad_fusion_must_have_been_measured_against_the_narrow_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    evidence = measured(0.8)
    narrow = "fused_mamba"
    broad = dataclasses.replace(BY_KEY["fused_moe"], role=Role.SELECTIVE, narrow=narrow)
    monkeypatch.setattr("lanewise.lab.graduate_rules.BY_KEY", {**BY_KEY, "fused_moe": broad})
    assert marks(evidence) == {**PASSES, "R2": True}
    off = tuple(
        f.model_copy(update={"requested": "off", "effective": "off"}) if f.key == narrow else f
        for f in first(evidence).features
    )
    found = results(with_receipts(evidence, "A", features=off))
    assert found["R2"].ok is False
    assert "--set features.fused_mamba=on" in found["R2"].text
    nameless = dataclasses.replace(broad, narrow=None)
    monkeypatch.setattr("lanewise.lab.graduate_rules.BY_KEY", {**BY_KEY, "fused_moe": nameless})
    assert marks(evidence) == {**PASSES, "R2": False}


def test_every_broad_fusion_names_a_narrow_hot_path() -> None:
    broad = [feature for feature in FEATURES if feature.role is Role.SELECTIVE]
    assert broad
    for feature in broad:
        assert feature.narrow is not None
        assert BY_KEY[feature.narrow].role is Role.HOT_PATH


def test_r3_what_was_not_seen_through_the_table_did_not_run() -> None:
    evidence = measured(0.8)

    def backends(**changes: Any) -> Evidence:
        return with_receipts(
            evidence,
            "B",
            backends=tuple(
                b.model_copy(update=changes) if b.op == "moe_experts" else b
                for b in first(evidence, "B").backends
            ),
        )

    assert marks(backends(proof="none")) == {**PASSES, "R3": False}
    assert marks(backends(observed=())) == {**PASSES, "R3": False}
    assert marks(backends(observed=("padded.torch",))) == {**PASSES, "R3": False}
    assert marks(backends(op="moe_private")) == {**PASSES, "R3": False}
    assert marks(backends(proof="trace")) == PASSES


def test_r3_a_feature_that_sets_nothing_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    bare = dataclasses.replace(
        BY_KEY["fused_moe"], settings=dict(BY_KEY["fused_mla_projection"].settings)
    )
    monkeypatch.setattr("lanewise.lab.graduate_rules.BY_KEY", {**BY_KEY, "fused_moe": bare})
    found = results(measured(0.8))["R3"]
    assert found.ok is False
    assert "no declared switch" in found.text


def test_r3_a_switch_must_have_taken_effect() -> None:
    evidence = measured(0.8, feature="regional_compile")
    compiled = first(evidence, "B").compile
    assert compiled.enabled
    eager = with_receipts(evidence, "B", compile=compiled.model_copy(update={"enabled": False}))
    assert results(evidence)["R3"].ok is True
    assert results(eager)["R3"].ok is False


def test_every_op_that_a_feature_sets_is_in_the_registry() -> None:
    from lanewise.ops.registry import SPECS

    assert set(OP_NAMES) <= SPECS.keys()


def test_r4_a_tax_fails_whatever_it_measures() -> None:
    taxed = altered(measured(0.8), tax_budget_ratio=1.01)
    assert marks(taxed) == {**PASSES, "R4": False}
    assert results(measured(0.8, feature="extra_aux_losses"))["R4"].ok is False


@pytest.mark.parametrize(
    ("changes", "check"),
    [
        ({"status": "INCOMPLETE", "incomplete_reason": "3 of 4 blocks were run"}, "complete"),
        ({"mode": "screen"}, "mode"),
        ({"design": "add-one"}, "design"),
        ({"observed_ok": False}, "valid"),
        ({"backend_versions": {}}, "versions"),
        ({"verdict": Verdict.EQUIVALENT}, "verdict"),
        ({"adjusted_p": 0.051}, "multiplicity"),
        ({"adjusted_p": None}, "multiplicity"),
        ({"adjustment": "benjamini_hochberg"}, "multiplicity"),
        ({"loss_max_abs_diff": None}, "numerics"),
        (
            {"peak_memory_bytes": MetricDelta(control=100.0, treated=103.0, delta=3.0)},
            "memory",
        ),
        (
            {"peak_memory_bytes": MetricDelta(control=None, treated=None, delta=None, reason="?")},
            "memory",
        ),
        (
            # 0.0001 s saved a step and 2 s to pay back: 20,000 steps
            {
                "compile_seconds": MetricDelta(control=0.0, treated=2.0, delta=2.0),
                "control_step_seconds": 0.1,
                "treated_step_seconds": 0.0999,
            },
            "pay_back",
        ),
    ],
    ids=lambda value: str(value)[:30],
)
def test_r5_each_check_of_a_decision_fails_alone(changes: dict[str, Any], check: str) -> None:
    evidence = altered(measured(0.8), **changes)
    assert failing_checks(evidence) == [check]
    assert marks(evidence) == {**PASSES, "R5": False}


def test_r5_a_stored_decision_that_its_receipts_contradict() -> None:
    evidence = measured(0.8)
    stored = evidence.decision.model_copy(update={"verdict": Verdict.SLOWER})
    assert failing_checks(dataclasses.replace(evidence, stored=stored)) == ["unaltered"]
    assert failing_checks(dataclasses.replace(evidence, stored=None)) == ["unaltered"]


def test_r5_incomplete_campaigns_are_refused_by_the_name_of_what_is_missing() -> None:
    evidence = dataclasses.replace(
        measured(0.8), missing=("fused_moe block 3", "fused_residual block 2 arm B")
    )
    found = results(evidence)["R5"]
    assert found.ok is False
    assert "fused_moe block 3, fused_residual block 2 arm B" in found.text
    assert "--resume" in found.text


def receipt_faults() -> list[tuple[str, dict[str, Any]]]:
    receipt = first(measured(0.8), "B")
    outcome, lane, machine = receipt.outcome, receipt.lane, receipt.machine
    assert receipt.experiment is not None
    no_topology = {key: value for key, value in lane.spec.items() if key != "topology"}
    return [
        ("receipts", {"outcome": outcome.model_copy(update={"status": "aborted"})}),
        ("receipts", {"outcome": outcome.model_copy(update={"validity": "invalid"})}),
        ("receipts", {"numerics": receipt.numerics.model_copy(update={"losses_finite": False})}),
        ("receipts", {"numerics": receipt.numerics.model_copy(update={"grad_norm_finite": False})}),
        ("names", {"lane": lane.model_copy(update={"canonical_name": "nam56r-h200"})}),
        ("names", {"lane": lane.model_copy(update={"spec": {**lane.spec, "seed": 5}})}),
        ("names", {"machine": machine.model_copy(update={"class_name": "cpu-x86_64-8c"})}),
        ("names topology", {"lane": lane.model_copy(update={"spec": no_topology})}),
        ("comparable", {"environment_digest": "sha256:" + "1" * 64}),
        ("comparable", {"protocol_digest": "sha256:" + "1" * 64}),
        ("comparable", {"data_digest": "sha256:" + "1" * 64}),
        ("goodput", {"goodput": None}),
        ("campaign", {"experiment": None}),
        ("campaign", {"experiment": receipt.experiment.model_copy(update={"design": "toggle"})}),
        ("clock", {"created_at": "2026-11-01T10:00:00Z"}),
        ("clock", {"created_at": "2027-06-01T10:00:00Z"}),
    ]


@pytest.mark.parametrize("case", range(16))
def test_r5_each_check_of_a_receipt_fails_alone(case: int) -> None:
    names, changes = receipt_faults()[case]
    evidence = with_receipts(measured(0.8), "B", **changes)
    assert failing_checks(evidence) == names.split()
    assert marks(evidence)["R5"] is False


@pytest.mark.parametrize(
    ("category", "seconds", "falls"),
    [("data_wait", 0.3, True), ("data_wait", 0.26, False), ("compile", 60.0, False)],
)
def test_r5_goodput_counts_what_every_step_pays(category: str, seconds: float, falls: bool) -> None:
    evidence = measured(0.8)
    goodput = first(evidence).goodput
    assert goodput is not None
    # Control: 2.5 s of steps, 0.25 s of waiting for data: 90.9 %; 0.3 s makes it 89.3 %, 0.26 s 90.6 %.
    assert goodput.step_seconds == 2.5
    assert goodput.badput_seconds["data_wait"] == 0.25
    changed = goodput.model_copy(
        update={"badput_seconds": {**goodput.badput_seconds, category: seconds}}
    )
    assert failing_checks(with_receipts(evidence, "B", goodput=changed)) == ["goodput"] * falls


def test_slower_is_not_asked_what_switching_on_would_cost() -> None:
    evidence = altered(
        measured(1.3), peak_memory_bytes=MetricDelta(control=1.0, treated=9.0, delta=8.0)
    )
    assert failing_checks(evidence) == []


def test_the_factor_of_memory_is_two_percent() -> None:
    memory = MetricDelta(control=100.0, treated=102.0, delta=2.0)
    assert math.isclose(102.0, 1.02 * 100.0)
    assert failing_checks(altered(measured(0.8), peak_memory_bytes=memory)) == []
