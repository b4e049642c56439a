"""Which backends a lane's ablations run on a GPU, decided as they are there, without one."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from lanewise.errors import UsageError
from lanewise.lab.arms import ArmBuilder, Arms, questions
from lanewise.lane.features import FEATURES, Role
from lanewise.lane.load import load_lane
from lanewise.lane.resolved import ResolvedLane
from lanewise.models.problems import lane_problems
from lanewise.ops.dispatch import choose
from lanewise.ops.registry import SPECS
from lanewise.ops.spec import Capabilities

H100 = Capabilities(
    device_type="cuda", compute_capability=(9, 0), packages={}, has_cxx_compiler=False
)
SPEED_FEATURES = [f.key for f in FEATURES if f.built and f.role is not Role.TAX]


def builder(lane: str, *overrides: str) -> ArmBuilder:
    return ArmBuilder(
        lane=load_lane(lane, overrides),
        machine_class="h100-sxm-80gb",
        device_type="cuda",
        design="leave-one-out",
    )


def chosen(found: ResolvedLane) -> Mapping[str, str]:
    problems = lane_problems(found.lane, "cuda", found.model_switches)
    return {
        op: choose(SPECS[op], found.op_preferences.get(op, ()), problem, H100).chosen
        for op, problem in problems.items()
    }


def differing(arms: Arms) -> set[str]:
    off, on = chosen(arms.control), chosen(arms.treated)
    return {op for op in off if off[op] != on[op]}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("rank", [1, 2])
def test_every_speed_feature_of_a_hybrid_lane_runs_two_backends(rank: int, precision: str) -> None:
    build = builder(
        "nam56r-tiny", f"model.mamba.mimo_rank={rank}", f"precision.compute={precision}"
    )
    for key in SPEED_FEATURES:
        arms = build.build(key)
        assert differing(arms) == set(arms.ops), key
        switched = arms.control.runtime_switches != arms.treated.runtime_switches
        assert differing(arms) or switched, key


def test_a_dense_lane_refuses_only_what_has_nothing_to_choose() -> None:
    asked = {q.arms.feature: q for q in questions(builder("dense-tiny"), ())}
    refused = {key: q.refused for key, q in asked.items() if q.refused}
    assert set(refused) == {"backend_dispatch"}
    assert "on cuda both states run sdpa.torch" in str(refused["backend_dispatch"])
    measured = {"fused_residual", "fused_linear_ce", "fused_optimizer", "regional_compile"}
    assert measured <= set(asked)


@pytest.mark.parametrize(
    ("lane", "overrides"),
    [
        ("dense-tiny", []),
        ("nam56r-tiny", []),
        ("nam56r-tiny", ["model.attention.form=absorbed"]),
        ("nam56r-tiny", ["model.attention.v_head_dim=32"]),
        ("nam56r-tiny-full", []),
    ],
)
def test_the_dispatcher_is_refused_exactly_where_the_op_table_leaves_no_choice(
    lane: str, overrides: list[str]
) -> None:
    build = builder(lane, *overrides)
    arms = build.placeholder("backend_dispatch")
    problem = lane_problems(arms.control.lane, "cuda", arms.control.model_switches)[
        "attention_core"
    ]
    runs = {
        choose(SPECS["attention_core"], asked, problem, H100).chosen
        for asked in ((), ("sdpa.torch",))
    }
    if len(runs) == 1:
        with pytest.raises(UsageError, match=r"cannot be measured .* both states run sdpa\.torch"):
            build.build("backend_dispatch")
    else:
        assert differing(build.build("backend_dispatch")) == {"attention_core"}
