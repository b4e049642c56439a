"""Parameters of every block equal the lane's formulas, and ops are told their real shapes."""

from typing import Any

import pytest

from lanewise.lane import params
from lanewise.lane.features import BY_KEY
from lanewise.lane.flops import lane_flops
from lanewise.lane.load import load_lane
from lanewise.models.assemble import build_block
from lanewise.models.model import HybridModel
from lanewise.models.problems import lane_problems
from lanewise.ops.shapes import SHAPES
from tests.models.micro import micro_lane, reference_ops, sparse_lane

CHANGES: tuple[dict[str, Any], ...] = (
    {},
    {"model__moe__activation": "swiglu", "model__moe__shared_expert_hidden_size": 0},
    {"model__moe__activation": "relu2", "model__mamba__rope_fraction": 1.0},
    {"model__mamba__rope_fraction": 0.0, "model__recurrent__conv_kernel_size": 2},
    {"model__mamba__mimo_rank": 3, "model__mamba__output_norm": True},
    {"model__mamba__output_norm": True},
    {"model__attention__form": "absorbed", "model__grouped_query__qk_norm": True},
    {"model__mlp__activation": "gelu"},
    {"model__mlp__activation": "relu2", "model__grouped_query__num_kv_heads": 1},
    {"model__mamba__version": "mamba2"},
    {"model__mamba__version": "mamba2", "model__mamba__conv_kernel_size": 3},
)


def count(module: Any) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("changes", CHANGES)
@pytest.mark.parametrize("letter", "AEMRGD")
def test_a_block_and_its_norm_have_the_parameters_of_the_formula(
    letter: str, changes: dict[str, Any]
) -> None:
    lane = micro_lane(**changes)
    model = lane.model
    assert model.attention
    assert model.moe
    assert model.mamba
    assert model.recurrent
    assert model.grouped_query
    assert model.mlp
    expected = {
        "A": params.attention_params(model.attention, model.hidden_size),
        "E": params.moe_params(model.moe, model.hidden_size),
        "M": params.mamba_params(model.mamba, model.hidden_size),
        "R": params.recurrent_params(model.recurrent, model.hidden_size),
        "G": params.grouped_query_params(model.grouped_query, model.hidden_size),
        "D": params.mlp_params(model.mlp, model.hidden_size),
    }[letter]
    block = build_block(letter, lane, model_switches={}, ops=reference_ops(lane))
    assert count(block) + model.hidden_size == expected.total


@pytest.mark.parametrize("name", ["micro", "nam56r-tiny", "dense-tiny"])
def test_a_model_has_the_parameters_of_its_lane(name: str) -> None:
    lane = micro_lane() if name == "micro" else load_lane(name)
    model = HybridModel(lane, model_switches={}, ops=reference_ops(lane))
    assert count(model) == lane_flops(lane).params_total


def test_problems_name_every_dim_of_their_op() -> None:
    lanes = (
        micro_lane(),
        micro_lane(model__mamba__version="mamba2"),
        micro_lane(model__mamba__mimo_rank=2),
        sparse_lane(),
        sparse_lane(stage="dense_warmup"),
    )
    problems = [lane_problems(lane, "cpu") for lane in lanes]
    assert {op for posed in problems for op in posed} == SHAPES.keys()
    for posed in problems:
        for op, problem in posed.items():
            if op != "optimizer_step":  # its backends have no shape rule
                assert problem.dims.keys() == SHAPES[op]["tiny"].keys(), op


@pytest.mark.parametrize("stage", ["sparse", "dense_warmup"])
@pytest.mark.parametrize("full_ranks", [(0,), (1,), ()])
def test_a_sparse_model_has_the_parameters_of_its_effective_layers(
    stage: str, full_ranks: tuple[int, ...]
) -> None:
    lane = sparse_lane(stage=stage, full_ranks=full_ranks)
    model = HybridModel(lane, model_switches={}, ops=reference_ops(lane))
    assert count(model) == lane_flops(lane).params_total


def test_a_sparse_lane_poses_what_its_stage_runs() -> None:
    everywhere = {"layer_ranks": (0, 1, 2, 3)}
    posed = {
        name: lane_problems(lane, "cpu").keys()
        for name, lane in {
            "some": sparse_lane(),
            "all": sparse_lane(**everywhere),
            "untrained": sparse_lane(indexer_loss_coefficient=0.0),
            "warmup": sparse_lane(stage="dense_warmup", **everywhere),
        }.items()
    }
    always = {"add_norm", "linear_cross_entropy", "optimizer_step"}
    dense, sparse = {"mla_ingress", "attention_core"}, {"index_topk", "sparse_attention"}
    assert posed["some"] == always | dense | sparse | {"indexer_loss"}
    assert posed["all"] == always | sparse | {"indexer_loss"}
    assert posed["untrained"] == always | dense | sparse
    assert posed["warmup"] == always | dense | {"indexer_warmup_loss"}


def test_a_lane_poses_only_the_problems_of_its_letters() -> None:
    always = {"add_norm", "linear_cross_entropy", "optimizer_step"}
    assert lane_problems(micro_lane(model__pattern="E"), "cpu").keys() == always | {"moe_experts"}


@pytest.mark.parametrize(("rank", "op"), [(1, "ssm_scan"), (2, "mimo_scan")])
def test_a_mamba_block_poses_the_problem_of_the_scan_that_it_runs(rank: int, op: str) -> None:
    lane = micro_lane(model__pattern="M", model__mamba__mimo_rank=rank)
    (found,) = {"ssm_scan", "mimo_scan"} & lane_problems(lane, "cpu").keys()
    assert found == op
    assert BY_KEY["fused_mamba"].ops_for(lane.model) == (op,)


def test_every_call_site_of_an_op_is_posed() -> None:
    lane = micro_lane(model__pattern="AG", data__isolate_documents=True)
    problem = lane_problems(lane, "cpu")["attention_core"]
    rows = {"B": 2, "T": 10, "documents": 1}
    assert dict(problem.dims) == {**rows, "H": 2, "H_kv": 2, "D_qk": 8, "D_v": 3}
    assert problem.also == ({**rows, "H": 4, "H_kv": 2, "D_qk": 4, "D_v": 4},)


def test_the_absorbed_form_attends_to_one_head_of_latents_and_needs_no_ingress() -> None:
    problems = lane_problems(micro_lane(model__attention__form="absorbed"), "cpu")
    core = problems["attention_core"]
    assert "mla_ingress" not in problems
    assert (core.dims["H"], core.dims["H_kv"]) == (2, 1)
    assert (core.dims["D_qk"], core.dims["D_v"], core.dims["documents"]) == (9, 5, 0)


@pytest.mark.parametrize(("version", "op"), [("mamba3", "ssm_scan"), ("mamba2", "ssd_scan")])
def test_a_mamba_block_poses_the_problem_of_the_version_it_runs(version: str, op: str) -> None:
    lane = micro_lane(model__pattern="M", model__mamba__version=version)
    (found,) = {"ssm_scan", "ssd_scan"} & lane_problems(lane, "cpu").keys()
    assert found == op
    assert BY_KEY["fused_mamba"].ops_for(lane.model) == (op,)


def test_problems_of_the_tiny_lane_are_its_named_shapes() -> None:
    problems = lane_problems(load_lane("nam56r-tiny"), "cpu")
    problems |= lane_problems(load_lane("nam56r-tiny", ["model.mamba.version=mamba2"]), "cpu")
    problems |= lane_problems(load_lane("nam56r-tiny", ["model.mamba.mimo_rank=2"]), "cpu")
    for op in ("moe_experts", "ssm_scan", "ssd_scan", "mimo_scan", "attention_core"):
        assert dict(problems[op].dims) == dict(SHAPES[op]["nam56r-tiny"]), op
