"""Block `E` against transformers with copied weights: DeepSeek-V3's MoE and a softmax router with a gated shared expert."""

from typing import Any

import pytest
import torch
from transformers import DeepseekV3Config, Qwen2MoeConfig
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3MoE
from transformers.models.qwen2_moe.modeling_qwen2_moe import (
    Qwen2MoeSparseMoeBlock,
    load_balancing_loss_func,
)

from lanewise.models.moe import MixtureOfExperts
from tests.models.test_moe import moe

WIDTH, EXPERTS, HIDDEN = 12, 8, 6


def copy_experts(theirs: Any, shared: Any, ours: MixtureOfExperts) -> None:
    """Their [out, in] matrices to our [in, out] expert banks; `shared` is their gated MLP."""
    assert ours.shared_in is not None
    assert ours.shared_out is not None
    with torch.no_grad():
        ours.router.weight.copy_(theirs.gate.weight)
        ours.w_in.copy_(theirs.experts.gate_up_proj.transpose(1, 2))
        ours.w_out.copy_(theirs.experts.down_proj.transpose(1, 2))
        both = torch.cat([shared.gate_proj.weight, shared.up_proj.weight])
        ours.shared_in.weight.copy_(both)
        ours.shared_out.weight.copy_(shared.down_proj.weight)


def randomised(module: torch.nn.Module) -> Any:
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(0.0, 0.5, generator=generator)
    return module.double()


def assert_agree(ours: MixtureOfExperts, theirs: Any) -> None:
    x = torch.randn(2, 21, WIDTH, generator=torch.Generator().manual_seed(4)).double()
    mine, yours = x.clone().requires_grad_(), x.clone().requires_grad_()
    found, expected = ours(mine).delta, theirs(yours)
    upstream = torch.randn(x.shape, generator=torch.Generator().manual_seed(6)).double()
    found.backward(upstream)
    expected.backward(upstream)
    # Their routers work in fp32 (softmax, scores) inside an fp64 model, which is all that separates the two.
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert mine.grad is not None
    assert yours.grad is not None
    torch.testing.assert_close(mine.grad, yours.grad, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        ours.router.weight.grad, theirs.gate.weight.grad, rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize(("groups", "top_k_groups"), [(1, 1), (2, 1), (4, 2), (4, 4)])
def test_deepseek_v3(groups: int, top_k_groups: int) -> None:
    config = DeepseekV3Config(
        hidden_size=WIDTH,
        moe_intermediate_size=HIDDEN,
        n_routed_experts=EXPERTS,
        n_shared_experts=2,
        num_experts_per_tok=2,
        n_group=groups,
        topk_group=top_k_groups,
        routed_scaling_factor=2.5,
        norm_topk_prob=True,
        hidden_act="silu",
    )
    theirs = randomised(DeepseekV3MoE(config))
    bias = 0.2 * torch.randn(EXPERTS, generator=torch.Generator().manual_seed(8)).double()
    theirs.gate.e_score_correction_bias.copy_(bias)
    ours = moe(
        num_experts=EXPERTS,
        top_k=2,
        expert_hidden_size=HIDDEN,
        shared_expert_hidden_size=2 * HIDDEN,
        activation="swiglu",
        num_expert_groups=groups,
        top_k_groups=top_k_groups,
        routed_scaling_factor=2.5,
    ).double()
    copy_experts(theirs, theirs.shared_experts, ours)
    ours.router.bias.copy_(bias)
    x = torch.randn(63, WIDTH, generator=torch.Generator().manual_seed(5)).double()
    _, weights, ids = theirs.gate(x)
    routing = ours.router(x)
    theirs_dense = torch.zeros(63, EXPERTS).double().scatter(1, ids, weights.double())
    ours_dense = torch.zeros(63, EXPERTS).double().scatter(1, routing.expert_ids, routing.gates)
    torch.testing.assert_close(ours_dense, theirs_dense, rtol=1e-5, atol=1e-6)
    assert_agree(ours, theirs)


def test_softmax_router_with_a_gated_shared_expert() -> None:
    config = Qwen2MoeConfig(
        hidden_size=WIDTH,
        moe_intermediate_size=HIDDEN,
        shared_expert_intermediate_size=7,
        num_experts=EXPERTS,
        num_experts_per_tok=3,
        norm_topk_prob=True,
        hidden_act="silu",
    )
    theirs = randomised(Qwen2MoeSparseMoeBlock(config))
    ours = moe(
        num_experts=EXPERTS,
        top_k=3,
        expert_hidden_size=HIDDEN,
        shared_expert_hidden_size=7,
        activation="swiglu",
        score_function="softmax",
        shared_expert_gate=True,
    ).double()
    copy_experts(theirs, theirs.shared_expert, ours)
    assert ours.shared_gate is not None
    with torch.no_grad():
        ours.shared_gate.weight.copy_(theirs.shared_expert_gate.weight)
    ours.router.bias.zero_()
    assert_agree(ours, theirs)
    grads = ours.shared_gate.weight.grad, theirs.shared_expert_gate.weight.grad
    torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-5)


def test_the_load_balance_loss_is_theirs_per_pick() -> None:
    """transformers counts picks per token, so its loss is k times Switch's, which counts the share of picks."""
    ours = moe(
        extra_aux_losses=True,
        num_experts=EXPERTS,
        top_k=3,
        score_function="softmax",
        aux_loss_coefficient=1.0,
    )
    ours.router.bias.zero_()
    x = torch.randn(1, 21, WIDTH, generator=torch.Generator().manual_seed(4))
    logits = ours.router(x[0]).logits
    theirs = load_balancing_loss_func((logits,), num_experts=EXPERTS, top_k=3)
    torch.testing.assert_close(3 * ours(x).aux_losses["load_balance"], theirs)
