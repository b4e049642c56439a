"""Parameters of every block equal the lane's formulas, and ops are told their real shapes."""

from typing import Any

import pytest

from lanewise.lane import params
from lanewise.lane.flops import lane_flops
from lanewise.lane.load import load_lane
from lanewise.models.assemble import build_block
from lanewise.models.model import HybridModel
from lanewise.models.problems import lane_problems
from lanewise.ops.shapes import SHAPES
from tests.models.micro import micro_lane, reference_ops

CHANGES: tuple[dict[str, Any], ...] = (
    {},
    {"model__moe__activation": "swiglu", "model__moe__shared_expert_hidden_size": 0},
    {"model__moe__activation": "relu2", "model__mamba__rope_fraction": 1.0},
    {"model__moe__shared_expert_gate": True, "model__moe__real_slot_ratio": 0.5},
    {"model__mamba__rope_fraction": 0.0, "model__recurrent__conv_kernel_size": 2},
)


def count(module: Any) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("changes", CHANGES)
@pytest.mark.parametrize("letter", "AEMR")
def test_a_block_and_its_norm_have_the_parameters_of_the_formula(
    letter: str, changes: dict[str, Any]
) -> None:
    lane = micro_lane(**changes)
    model = lane.model
    assert model.attention
    assert model.moe
    assert model.mamba
    assert model.recurrent
    expected = {
        "A": params.attention_params(model.attention, model.hidden_size),
        "E": params.moe_params(model.moe, model.hidden_size),
        "M": params.mamba_params(model.mamba, model.hidden_size),
        "R": params.recurrent_params(model.recurrent, model.hidden_size),
    }[letter]
    block = build_block(letter, lane, model_switches={}, ops=reference_ops(lane))
    assert count(block) + model.hidden_size == expected.total


@pytest.mark.parametrize("name", ["micro", "nam56r-tiny"])
def test_a_model_has_the_parameters_of_its_lane(name: str) -> None:
    lane = micro_lane() if name == "micro" else load_lane(name)
    model = HybridModel(lane, model_switches={}, ops=reference_ops(lane))
    assert count(model) == lane_flops(lane).params_total


def test_problems_name_every_dim_of_their_op() -> None:
    problems = lane_problems(micro_lane(), "cpu")
    assert problems.keys() == SHAPES.keys()
    for op, problem in problems.items():
        if op != "optimizer_step":  # its backends have no shape rule
            assert problem.dims.keys() == SHAPES[op]["tiny"].keys(), op


def test_a_lane_poses_only_the_problems_of_its_letters() -> None:
    always = {"add_norm", "linear_cross_entropy", "optimizer_step"}
    assert lane_problems(micro_lane(model__pattern="E"), "cpu").keys() == always | {"moe_experts"}


def test_problems_of_the_tiny_lane_are_its_named_shapes() -> None:
    problems = lane_problems(load_lane("nam56r-tiny"), "cpu")
    for op in ("moe_experts", "ssm_scan"):
        assert dict(problems[op].dims) == dict(SHAPES[op]["nam56r-tiny"]), op
