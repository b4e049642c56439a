"""Every gate that refuses a block names the kind of failure, and the facts where the receipts hold them."""

import dataclasses

import pytest

from lanewise.lab.arms import ArmBuilder
from lanewise.lab.gates.machine import contention_ratio
from lanewise.lab.judge import JudgedBlock, refused_family
from lanewise.lab.validity import block_gates
from lanewise.lane.load import load_lane
from lanewise.receipts.failures import FailureFamily
from tests.lab.gates.blocks import block
from tests.receipts.factory import make_steps, sha

COMPILED = {"compile.enabled": True, "compile.cache_state": "mixed"}
FOREIGN = {"host.foreign_load_ratio": 0.9, "host.steal_ratio": 0.25}


@pytest.fixture(name="arms", scope="module")
def arms_fixture():
    builder = ArmBuilder(
        lane=load_lane("nam56r-tiny"),
        machine_class="cpu-x86_64-2c",
        device_type="cpu",
        design="leave-one-out",
    )
    return builder.build("fused_moe")


def families(evidence, arms, reference=None):
    """Gate → kinds that its faults name."""
    gates = block_gates(evidence, arms, reference=reference, cache=None)
    return {gate.name: {fault.family for fault in gate.faults} for gate in gates if not gate.ok}


def refused(evidence, arms, gate):
    """The block as this gate alone judges it."""
    (found,) = (g for g in block_gates(evidence, arms) if g.name == gate)
    return JudgedBlock(evidence=evidence, faults=found.faults, gates=(found,))


@pytest.mark.parametrize(
    ("gate", "evidence", "family"),
    [
        ("readable", dataclasses.replace(block(), unreadable=("arm A: gone",)), "disk"),
        ("placement", block({"experiment.arm": "A"}), "comparability"),
        ("placement", block({"experiment.position": 0}), "comparability"),
        ("placement", block({"experiment.campaign_id": "another"}), "comparability"),
        ("backend_proof", block({"features": []}), "backend"),
        ("finite_losses", block({"numerics.losses_finite": False}), "numerics"),
        ("comparable", block({"environment_digest": sha("newer")}), "comparability"),
        ("comparable", block({"machine.instance_digest": sha("other")}), "comparability"),
        ("goodput_closure", block({"goodput.step_seconds": 1e6}), "accounting"),
        ("event_wall_closure", block({"timing.event_wall_gap_ratio": 0.5}), "accounting"),
        ("compile_cache", block(both=COMPILED), "comparability"),
        ("memory_pressure", block({"memory.alloc_retries": 2}), "allocator"),
        (
            "clock_events",
            block({"telemetry.clock_event_reasons": ["hw_thermal_slowdown"]}),
            "thermal",
        ),
        ("host_quiet", block(both=FOREIGN), "disturbed"),
        ("steady_state", block(steady=False), "unsteady"),
        ("steady_state", block(warmup_steps=18), "unsteady"),
    ],
)
def test_a_refusing_gate_names_its_family(arms, gate, evidence, family):
    assert families(evidence, arms)[gate] == {family}


def test_a_changed_environment_and_unequal_losses(arms):
    first, newer = block(), block(both={"environment_digest": sha("newer")}, number=2)
    assert families(newer, arms, reference=first)["constant"] == {"comparability"}
    off = block()
    losses = tuple(loss + 0.1 for loss in make_steps(18).loss)
    off.steps["B"] = (make_steps(18).model_copy(update={"loss": losses}),)
    assert families(off, arms)["paired_losses"] == {"numerics"}


def test_what_a_run_says_of_itself_is_taken_over(arms):
    facts = {"family": "timeout", "waited_seconds": 60.0}
    said = {"outcome.status": "aborted", "outcome.failure_family": "timeout"}
    evidence = block({**said, "outcome.failure": facts})
    assert families(evidence, arms)["receipt_checks"] == {"timeout"}
    before_1_2 = block({"outcome.status": "aborted", "schema_version": "1.1.0"})
    assert families(before_1_2, arms)["receipt_checks"] == {None}
    failed = {"outcome.checks.0.ok": False, "outcome.validity": "invalid"}
    odd = {**failed, "outcome.checks.0.name": "goodput_closes"}
    assert families(block(odd), arms)["receipt_checks"] == {"accounting"}


@pytest.mark.parametrize(
    ("gate", "changes", "facts"),
    [
        (
            "memory_pressure",
            {"memory.ooms": 1, "memory.alloc_retries": 3, "memory.peak_reserved_bytes": 7},
            {"family": "allocator", "alloc_retries": 3, "peak_reserved_bytes": 7},
        ),
        (
            "clock_events",
            {
                "telemetry.clock_event_reasons": ["hw_slowdown", "sw_power_cap"],
                "telemetry.sm_clock_hertz": 9e8,
                "telemetry.temperature_celsius": 91.0,
            },
            {
                "family": "thermal",
                "clock_event_reasons": ("hw_slowdown", "sw_power_cap"),
                "sm_clock_hertz": 9e8,
                "temperature_celsius": 91.0,
            },
        ),
        (
            "comparable",
            {"environment_digest": sha("newer"), "data_digest": sha("other")},
            {"family": "comparability", "fields": ("environment_digest", "data_digest")},
        ),
    ],
)
def test_the_block_keeps_the_facts(arms, gate, changes, facts):
    sound = refused(block(), arms, gate).record()
    assert (sound.failure_family, sound.failure) == (None, None)
    record = refused(block(changes), arms, gate).record()
    assert record.failure_family == facts["family"]
    assert record.failure.model_dump() == facts


def test_the_largest_disturbance_is_kept(arms):
    evidence = block(FOREIGN, control={"host.foreign_load_ratio": 0.0, "host.steal_ratio": 0.01})
    (receipt,) = evidence.receipts["B"]
    assert refused(evidence, arms, "host_quiet").record().failure.model_dump() == {
        "family": "disturbed",
        "foreign_load_ratio": contention_ratio(receipt.host, receipt),
        "steal_ratio": 0.25,
    }


def test_what_makes_a_feature_invalid_outranks_what_only_costs_a_block(arms):
    noisy = refused(block(steady=False), arms, "steady_state")
    slowed = block({"telemetry.clock_event_reasons": ["hw_slowdown"]}, number=2)
    hot = refused(slowed, arms, "clock_events")
    assert refused_family([noisy]) is FailureFamily.UNSTEADY
    assert refused_family([noisy, hot]) is FailureFamily.THERMAL
    assert refused_family([refused(block(), arms, "steady_state")]) is None
