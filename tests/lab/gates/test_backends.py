"""The gate on what ran, asked directly: every way in which a run may not be the one that was asked for."""

import pytest

from lanewise.lab.arms import ArmBuilder
from lanewise.lab.gates.backends import backend_proof
from lanewise.lab.validity import block_gates
from lanewise.lane.load import load_lane
from tests.lab.gates.blocks import block


def arms_of(feature):
    builder = ArmBuilder(
        lane=load_lane("nam56r-tiny"),
        machine_class="cpu-x86_64-2c",
        device_type="cpu",
        design="leave-one-out",
    )
    return builder.build(feature)


@pytest.fixture(scope="module")
def arms():
    return arms_of("fused_moe")


def said(resolved, **moe):
    """What an obedient run of a lane writes down; `moe` overrides the record of `moe_experts`."""
    records = [
        {
            "op": op,
            "requested": list(asked),
            "chosen": asked[0] if asked else "chosen.here",
            "observed": [asked[0] if asked else "chosen.here"],
            "launches": 7,
            "proof": "counter",
            "rejected": {},
            "fallback_reason": None,
            **(moe if op == "moe_experts" else {}),
        }
        for op, asked in resolved.op_preferences.items()
    ]
    states = [
        {
            "key": f.key,
            "role": f.role,
            "requested": f.state,
            "effective": f.state,
            "source": f.source,
        }
        for f in resolved.features
    ]
    compiled = resolved.runtime_switches.get("regional_compile", False)
    return {"backends": records, "features": states, "compile.enabled": compiled}


def gate_of(arms, changes=None, **moe):
    treated = {**said(arms.treated, **moe), **(changes or {})}
    return backend_proof(block(treated, control=said(arms.control)), arms)


def test_an_obedient_pair_passes_and_names_its_proof(arms):
    gate = gate_of(arms)
    assert gate.ok, gate.faults
    assert gate.received == "as asked for, proven by counter"


@pytest.mark.parametrize(
    ("moe", "text"),
    [
        ({"observed": ["padded.torch"], "rejected": {"x": "T=65"}}, "observed padded.torch (T=65)"),
        ({"observed": ["sorted.torch", "padded.torch"]}, "observed sorted.torch + padded.torch"),
        ({"observed": []}, "observed nothing: the op never ran"),
        ({"proof": "none"}, "claims moe_experts=sorted.torch without proof"),
    ],
)
def test_another_backend_or_none_or_no_proof(arms, moe, text):
    assert arms.treated.op_preferences["moe_experts"][0] == "sorted.torch"
    (fault,) = gate_of(arms, **moe).faults
    assert text in fault.text
    assert fault.text.startswith("arm B ")
    assert (fault.structural, fault.about_backend, fault.disturbed) == (True, True, False)


def test_an_op_that_the_feature_sets_must_be_recorded(arms):
    others = [r for r in said(arms.treated)["backends"] if r["op"] != "moe_experts"]
    (fault,) = gate_of(arms, {"backends": others}).faults
    assert "observed nothing" in fault.text


def test_a_feature_in_another_state_or_not_named(arms):
    states = said(arms.treated)["features"]
    off = [{**s, "effective": "off"} if s["key"] == "fused_moe" else s for s in states]
    (fault,) = gate_of(arms, {"features": off}).faults
    assert fault.text == "arm B asked for fused_moe=on, observed off"
    silent = [s for s in states if s["key"] != "fused_moe"]
    (fault,) = gate_of(arms, {"features": silent}).faults
    assert fault.text == "arm B asked for fused_moe=on, its receipt does not name the feature"


def test_blocks_that_were_compiled_or_left_eager_against_the_order():
    arms = arms_of("regional_compile")
    assert gate_of(arms).ok
    (fault,) = gate_of(arms, {"compile.enabled": False}).faults
    assert fault.text == "arm B asked for regional_compile=on, observed eager blocks"


def test_the_control_is_held_to_it_as_well(arms):
    control = said(arms.control, observed=["sorted.torch"])
    (fault,) = backend_proof(block(said(arms.treated), control=control), arms).faults
    assert fault.text.startswith("arm A asked for moe_experts=")


def test_it_is_among_the_gates_of_a_block(arms):
    evidence = block(said(arms.treated, proof="none"), control=said(arms.control))
    (found,) = (gate for gate in block_gates(evidence, arms) if gate.name == "backend_proof")
    assert not found.ok
