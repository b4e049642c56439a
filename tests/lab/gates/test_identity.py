"""Comparability names the fields that differ, not only the digest."""

import dataclasses

import pytest

from lanewise.lab.arms import ArmBuilder
from lanewise.lab.gates.identity import (
    comparability,
    constancy,
    placement,
    readable,
    receipt_checks,
)
from lanewise.lab.gates.numerics import finite_losses, paired_losses
from lanewise.lab.validity import block_gates, faults_of
from lanewise.lane.load import load_lane
from tests.lab.gates.blocks import block
from tests.receipts.factory import make_steps, sha

NEWER = {"environment_digest": sha("newer"), "environment.packages.torch": "2.12.0"}
NO_CHECKS = frozenset()


@pytest.fixture(scope="module")
def arms():
    builder = ArmBuilder(
        lane=load_lane("nam56r-tiny"),
        machine_class="cpu-x86_64-2c",
        device_type="cpu",
        design="leave-one-out",
    )
    return builder.build("fused_moe")


def test_matching_arms_are_comparable(arms):
    assert comparability(block(), arms).ok


def test_another_package_is_named(arms):
    gate = comparability(block(NEWER), arms)
    (fault,) = gate.faults
    assert fault.structural
    assert "environment_digest" in fault.text
    assert "(environment.packages.torch 2.13.0 → 2.12.0)" in fault.text


def test_other_protocol_parameters_are_named(arms):
    said = {"protocol_digest": sha("p"), "extensions": {"io.lanewise.protocol": {"pinned": True}}}
    text = comparability(block(said), arms).faults[0].text
    assert "(extensions.io.lanewise.protocol.pinned None → True)" in text


def test_a_digest_behind_which_no_recorded_field_differs_still_blocks(arms):
    assert not comparability(block({"environment_digest": sha("x")}), arms).ok


def test_a_campaign_keeps_its_environment():
    first, second = block(), block(both=NEWER, number=2)
    assert constancy(first, first).ok
    assert constancy(block(number=2), first).ok
    assert constancy(second, first).faults[0].text == (
        "environment changed since block 1 (environment.packages.torch 2.13.0 → 2.12.0)"
    )
    moved = block(both={"machine.class_digest": sha("other")}, number=2)
    assert constancy(moved, first).faults[0].text == "machine class changed since block 1"
    assert constancy(block(both={"machine.instance_digest": sha("other")}, number=2), first).ok


def test_a_block_on_two_machines(arms):
    crossed = comparability(block({"machine.instance_digest": sha("other")}), arms)
    assert [fault.text for fault in crossed.faults] == [
        "the block was run on two machines; a block never crosses one"
    ]


def test_receipts_of_another_visit():
    assert placement(block()).ok
    assert not placement(block({"experiment.arm": "A"})).ok
    assert not placement(block({"experiment.block": 2})).ok
    assert not placement(block({"experiment": None})).ok
    assert not placement(block({"experiment.order_seed": 8})).ok, "another attempt"
    assert not placement(block({"experiment.design": "sequential"})).ok
    assert not placement(block({"experiment.position": 0})).ok, "one place, two receipts"
    (fault,) = placement(block({"experiment.campaign_id": "2026-11-23-other"})).faults
    assert fault.text == "the receipts are of several campaigns"
    assert fault.structural


def test_what_runs_say_about_themselves():
    assert receipt_checks(block(), covered=NO_CHECKS).ok
    failed = {"outcome.checks.0.ok": False, "outcome.validity": "invalid"}
    assert not receipt_checks(block(failed), covered=NO_CHECKS).ok
    assert receipt_checks(block(failed), covered=frozenset({"observed_backends"})).ok
    assert not receipt_checks(block({"outcome.status": "aborted"}), covered=NO_CHECKS).ok
    assert not receipt_checks(block({"outcome.validity": "invalid"}), covered=NO_CHECKS).ok


def test_losses(arms):
    assert finite_losses(block()).ok
    assert not finite_losses(block({"numerics.losses_finite": False})).ok
    evidence = block()
    assert paired_losses(evidence, arms).ok
    off = make_steps(18).model_copy(
        update={"loss": tuple(loss + 0.1 for loss in make_steps(18).loss)}
    )
    evidence.steps["B"] = (off,)
    (fault,) = paired_losses(evidence, arms).faults
    assert fault.structural
    assert "losses differ by 1.00e-01 nats at step 0" in fault.text


def test_missing_evidence_is_the_only_gate_applied(arms):
    lost = dataclasses.replace(block(), unreadable=("arm A: gone",))
    (gate,) = block_gates(lost, arms)
    assert gate == readable(lost)
    assert faults_of((gate,))[0].structural


def test_a_missing_steady_state_is_silent_where_something_is_broken(arms):
    gates = block_gates(block(NEWER, steady=False, warmup_reason="drifts"), arms)
    assert not any(fault.text == "drifts" for fault in faults_of(gates))
    (steady,) = (gate for gate in gates if gate.name == "steady_state")
    assert not steady.ok, "the gate itself says it"
    assert "drifts" in steady.check().detail
