import pytest

from lanewise.errors import UsageError
from lanewise.lab.arms import ArmBuilder, questions
from lanewise.lane.load import load_lane


def builder(design="leave-one-out", **changes):
    lane = load_lane("nam56r-tiny").model_copy(update=changes)
    return ArmBuilder(lane=lane, machine_class="cpu-x86_64-2c", device_type="cpu", design=design)


def states(resolved):
    return {decision.key: decision.state for decision in resolved.features}


def test_arms_differ_in_the_feature_alone_and_share_the_lane():
    for question in questions(builder(), ()):
        arms = question.arms
        differing = {
            key for key, on in states(arms.treated).items() if states(arms.control)[key] != on
        }
        assert differing == arms.declared
        assert arms.control.digest == arms.treated.digest
        assert arms.control.config_digest != arms.treated.config_digest


def test_leaving_out_a_default_keeps_the_full_stack_as_the_treated_arm():
    build = builder()
    assert build.build("fused_mamba").treated.config_digest == build.base().config_digest
    assert build.build("extra_aux_losses").control.config_digest == build.base().config_digest


def test_adding_one_keeps_the_bare_lane_as_the_control():
    build = builder("add-one")
    for feature in ("fused_mamba", "regional_compile", "extra_aux_losses"):
        assert build.build(feature).control.config_digest == build.base().config_digest
    assert set(states(build.base()).values()) == {"off"}
    assert "full_stack" not in build.default_features()


@pytest.mark.parametrize(
    ("feature", "versus"),
    [
        ("fused_mamba", "recurrence.torch"),
        ("backend_dispatch", "sdpa.torch"),
        ("regional_compile", "eager"),
        ("full_stack", "bare lane"),
        ("none", "itself"),
    ],
)
def test_the_control_has_a_name(feature, versus):
    assert builder().build(feature).versus == versus


@pytest.mark.parametrize(("rank", "op"), [(1, "ssm_scan"), (4, "mimo_scan")])
def test_a_feature_of_two_ops_is_judged_by_the_one_that_the_lane_runs(rank, op):
    lane = load_lane("nam56r-tiny", [f"model.mamba.mimo_rank={rank}"])
    build = builder(model=lane.model)
    arms = build.build("fused_mamba")
    assert (arms.ops, arms.versus) == ((op,), "recurrence.torch")
    assert {"ssm_scan", "mimo_scan"} & set(build.build("full_stack").ops) == {op}


def test_a_feature_without_blocks_in_the_lane_is_refused_with_what_it_touches():
    lane = load_lane("nam56r-tiny")
    model = lane.model.model_copy(update={"pattern": "AE", "mamba": None, "recurrent": None})
    with pytest.raises(
        UsageError, match="'nam56r-tiny': it touches M blocks and the pattern AE has none"
    ):
        builder(model=model).build("fused_mamba")
    assert "fused_mamba" not in builder(model=model).default_features()


def test_the_users_own_states_are_part_of_the_base():
    base = builder(features={"fused_moe": "off"}).base()
    assert states(base)["fused_moe"] == "off"


def test_an_a_a_has_the_same_arm_twice():
    arms = builder().build("none")
    assert arms.control == arms.treated


def test_a_tax_that_a_lane_has_is_on_in_every_base_and_off_in_its_control():
    lane = load_lane("nam56r-tiny", ["model.mtp={depth=1, mlp_hidden_size=64}"])
    for design in ("leave-one-out", "add-one"):
        build = builder(design, model=lane.model)
        arms = build.build("mtp")
        assert (arms.states, arms.on_by_default) == ({"A": "off", "B": "on"}, True)
        assert states(arms.control)["mtp"] == "off"
        assert "mtp" not in arms.control.model_switches
        assert arms.treated.model_switches == {"mtp": True}
        assert arms.treated.config_digest == build.base().config_digest
    stack = builder(model=lane.model).build("full_stack")
    assert "mtp" not in stack.declared


def test_a_lane_without_the_table_has_no_such_tax():
    with pytest.raises(UsageError, match=r"needs the table \[model\.mtp\]"):
        builder().build("mtp")
