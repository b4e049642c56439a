import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lanewise.lane.schema import OptimizerSpec
from lanewise.models.layers import Linear
from lanewise.train.optim import (
    clip_gradients,
    learning_rate,
    parameter_groups,
    set_learning_rate,
)
from tests.models.micro import micro_model

SPEC = OptimizerSpec(
    learning_rate=1.0, min_learning_rate=0.1, warmup_steps=10, decay_steps=110, weight_decay=0.2
)


def test_schedule_at_its_named_points() -> None:
    assert learning_rate(0, SPEC) == pytest.approx(0.1)
    assert learning_rate(9, SPEC) == pytest.approx(1.0)
    assert learning_rate(10, SPEC) == pytest.approx(1.0)
    assert learning_rate(60, SPEC) == pytest.approx(0.55)  # half way down the cosine
    assert learning_rate(110, SPEC) == pytest.approx(0.1)
    assert learning_rate(10_000, SPEC) == pytest.approx(0.1)


def test_schedule_without_warmup_starts_at_the_peak() -> None:
    assert learning_rate(0, OptimizerSpec(learning_rate=0.5, decay_steps=5)) == 0.5


@given(step=st.integers(0, 500), warmup=st.integers(0, 50), decay=st.integers(1, 300))
def test_schedule_rises_then_falls_and_stays_positive(step: int, warmup: int, decay: int) -> None:
    spec = OptimizerSpec(
        learning_rate=1.0, min_learning_rate=0.1, warmup_steps=warmup, decay_steps=decay
    )
    now, later = learning_rate(step, spec), learning_rate(step + 1, spec)
    assert 0 < now <= 1.0
    assert now <= later if step + 1 < warmup else later <= now or step < warmup


def test_groups_hold_every_parameter_once_and_decay_only_matrices() -> None:
    model = micro_model()
    decayed, plain = parameter_groups(model, SPEC)
    ids = [id(p) for group in (decayed, plain) for p in group["params"]]
    assert sorted(ids) == sorted(id(p) for p in model.parameters())
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.2, 0.0)
    named = {id(p): name for name, p in model.named_parameters()}
    assert {"embedding", "head"} <= {named[id(p)] for p in decayed["params"]}
    assert all("norm" in n or "bias" in n or "skip" in n or "a_log" in n
               for n in (named[id(p)] for p in plain["params"]))  # fmt: skip


def test_muon_takes_hidden_matrices_and_adamw_the_rest() -> None:
    model = micro_model()
    spec = OptimizerSpec(name="muon", weight_decay=0.2, muon_momentum=0.9, muon_num_iterations=3)
    muon, decayed, plain = parameter_groups(model, spec)
    named = {id(p): name for name, p in model.named_parameters()}
    names = [{named[id(p)] for p in group["params"]} for group in (muon, decayed, plain)]
    assert names[0] == {
        "blocks.0.mla.q_down.weight",
        "blocks.0.mla.q_up.weight",
        "blocks.0.mla.kv_down.weight",
        "blocks.0.mla.kv_up.weight",
        "blocks.0.mla.out.weight",
        "blocks.1.w_in",
        "blocks.1.w_out",
        "blocks.1.shared_in.weight",
        "blocks.1.shared_out.weight",
        "blocks.2.in_proj.weight",
        "blocks.2.out.weight",
        "blocks.3.in_proj.weight",
        "blocks.3.out.weight",
    }
    assert names[1] == {
        "embedding",
        "head",
        "blocks.1.router.weight",
        "blocks.3.conv_weight",
        "blocks.3.state_weight",
    }
    assert names[0] | names[1] | names[2] == set(named.values())
    assert sum(len(group["params"]) for group in (muon, decayed, plain)) == len(named)
    assert (muon["algorithm"], muon["momentum"], muon["num_iterations"]) == ("muon", 0.9, 3)
    assert (muon["weight_decay"], decayed["weight_decay"], plain["weight_decay"]) == (0.2, 0.2, 0.0)


def test_a_map_to_one_number_is_a_vector() -> None:
    gate = torch.nn.ModuleList([Linear(8, 1), Linear(8, 2)])
    groups = parameter_groups(gate, OptimizerSpec(name="muon"))
    assert [[list(p.shape) for p in group["params"]] for group in groups] == [[[2, 8]], [[1, 8]]]


def gradients(*values: float) -> list[torch.nn.Parameter]:
    parameters = [torch.nn.Parameter(torch.zeros(1)) for _ in values]
    for parameter, value in zip(parameters, values, strict=True):
        parameter.grad = torch.tensor([value])
    return parameters


def test_clipping_scales_to_the_norm_and_reports_the_norm_before() -> None:
    parameters = gradients(3.0, 4.0)
    assert clip_gradients(parameters, 1.0).item() == pytest.approx(5.0)
    after = math.hypot(*(p.grad.item() for p in parameters if p.grad is not None))
    assert after == pytest.approx(1.0, rel=1e-5)


@pytest.mark.parametrize("max_norm", [0.0, 6.0])
def test_zero_and_a_loose_norm_leave_gradients_alone(max_norm: float) -> None:
    parameters = gradients(3.0, 4.0)
    assert clip_gradients(parameters, max_norm).item() == pytest.approx(5.0)
    assert [p.grad.item() for p in parameters if p.grad is not None] == [3.0, 4.0]


def test_learning_rate_reaches_every_group() -> None:
    optimizer = torch.optim.SGD([{"params": gradients(1.0)}, {"params": gradients(2.0)}], lr=1.0)
    set_learning_rate(optimizer, 0.25)
    assert [group["lr"] for group in optimizer.param_groups] == [0.25, 0.25]
