"""MLA, grouped-query attention and the gated MLP against transformers, with copied weights.

transformers rotates with fp32 angles and norms in fp32 whatever the dtype, so results agree to fp32 rounding only.
"""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from transformers import DeepseekV3Config, LlamaConfig
from transformers.models.deepseek_v3.modeling_deepseek_v3 import (
    DeepseekV3Attention,
    DeepseekV3RotaryEmbedding,
)
from transformers.models.llama.modeling_llama import (
    LlamaAttention,
    LlamaMLP,
    LlamaRotaryEmbedding,
)

from lanewise.models.attention import Attention
from lanewise.models.grouped_query import GroupedQueryAttention
from lanewise.models.mlp import Mlp
from tests.models.micro import block_of, inputs

LENGTH = 9
TOLERANCE = 2e-6
"""fp32 rounding of angles and norms, on results of size one."""


def causal_mask() -> Tensor:
    return torch.full((1, 1, LENGTH, LENGTH), float("-inf"), dtype=torch.float64).triu(1)


def copy(pairs: dict[nn.Module, nn.Module]) -> None:
    """Give the transformers module (left) our weight (right)."""
    with torch.no_grad():
        for theirs, ours in pairs.items():
            theirs.weight.copy_(ours.weight)


def assert_same(ours: nn.Module, x: Tensor, theirs: Tensor, leaf: Tensor) -> None:
    """Compare outputs, and the gradients of the input for one upstream gradient."""
    own_leaf = x.clone().requires_grad_()
    own = ours(own_leaf).delta
    upstream = inputs(LENGTH, seed=5)
    own.backward(upstream)
    theirs.backward(upstream)
    torch.testing.assert_close(own, theirs, rtol=TOLERANCE, atol=TOLERANCE)
    torch.testing.assert_close(own_leaf.grad, leaf.grad, rtol=TOLERANCE, atol=TOLERANCE)


def rope_rows(num_heads: int, nope: int, rope: int, offset: int = 0) -> Iterator[int]:
    """Row of our weight for every row of an interleaved one: pair (2i, 2i+1) there is (i, D_r/2 + i) here."""
    for head in range(num_heads):
        start = offset + head * (nope + rope)
        yield from range(start, start + nope)
        for i in range(rope // 2):
            yield start + nope + i
            yield start + nope + rope // 2 + i


@pytest.mark.parametrize("interleave", [False, True])
@pytest.mark.parametrize("form", ["expanded", "absorbed"])
def test_mla_is_deepseek_v3s(form: str, interleave: bool) -> None:
    ours = block_of("A", model__attention__form=form)
    assert isinstance(ours, Attention)
    spec, mla = ours.spec, ours.mla
    with torch.no_grad():  # all ones would hide a weight that is not applied
        mla.q_norm.weight.copy_(torch.linspace(0.5, 1.5, spec.q_lora_rank))
        mla.kv_norm.weight.copy_(torch.linspace(1.5, 0.5, spec.kv_lora_rank))
    config = DeepseekV3Config(
        hidden_size=12,
        num_attention_heads=spec.num_heads,
        num_key_value_heads=spec.num_heads,
        q_lora_rank=spec.q_lora_rank,
        kv_lora_rank=spec.kv_lora_rank,
        qk_nope_head_dim=spec.qk_nope_head_dim,
        qk_rope_head_dim=spec.qk_rope_head_dim,
        v_head_dim=spec.v_head_dim,
        rope_parameters={"rope_type": "default", "rope_theta": spec.rope_theta},
        rope_interleave=interleave,
        attn_implementation="eager",
    )
    module = DeepseekV3Attention(config, layer_idx=0).double()
    copy(
        {
            module.q_a_proj: mla.q_down,
            module.q_a_layernorm: mla.q_norm,
            module.q_b_proj: mla.q_up,
            module.kv_a_proj_with_mqa: mla.kv_down,
            module.kv_a_layernorm: mla.kv_norm,
            module.kv_b_proj: mla.kv_up,
            module.o_proj: mla.out,
        }
    )
    if interleave:
        nope, rope = spec.qk_nope_head_dim, spec.qk_rope_head_dim
        of_q = list(rope_rows(spec.num_heads, nope, rope))
        of_kv = list(range(spec.kv_lora_rank)) + list(rope_rows(1, 0, rope, spec.kv_lora_rank))
        with torch.no_grad():
            module.q_b_proj.weight.copy_(mla.q_up.weight[of_q])
            module.kv_a_proj_with_mqa.weight.copy_(mla.kv_down.weight[of_kv])
    x = inputs(LENGTH)
    leaf = x.clone().requires_grad_()
    positions = DeepseekV3RotaryEmbedding(config)(x, torch.arange(LENGTH)[None])
    theirs, _ = module(leaf, positions, causal_mask())
    assert_same(ours, x, theirs, leaf)


@pytest.mark.parametrize("num_kv_heads", [1, 2, 4])
def test_grouped_query_attention_is_llamas(num_kv_heads: int) -> None:
    ours = block_of("G", model__grouped_query__num_kv_heads=num_kv_heads)
    assert isinstance(ours, GroupedQueryAttention)
    spec = ours.spec
    config = LlamaConfig(
        hidden_size=12,
        num_attention_heads=spec.num_heads,
        num_key_value_heads=spec.num_kv_heads,
        head_dim=spec.head_dim,
        rope_parameters={"rope_type": "default", "rope_theta": spec.rope_theta},
        attn_implementation="eager",
    )
    module = LlamaAttention(config, layer_idx=0).double()
    copy(
        {
            module.q_proj: ours.q,
            module.k_proj: ours.k,
            module.v_proj: ours.v,
            module.o_proj: ours.out,
        }
    )
    x = inputs(LENGTH)
    leaf = x.clone().requires_grad_()
    positions = LlamaRotaryEmbedding(config)(x, torch.arange(LENGTH)[None])
    theirs, _ = module(leaf, positions, causal_mask())
    assert_same(ours, x, theirs, leaf)


def test_the_gated_mlp_is_llamas() -> None:
    ours = block_of("D", model__mlp__activation="swiglu")
    assert isinstance(ours, Mlp)
    size = ours.spec.mlp_hidden_size
    module = LlamaMLP(
        LlamaConfig(hidden_size=12, num_attention_heads=4, intermediate_size=size)
    ).double()
    with torch.no_grad():
        module.gate_proj.weight.copy_(ours.w_in.weight[:size])
        module.up_proj.weight.copy_(ours.w_in.weight[size:])
        module.down_proj.weight.copy_(ours.w_out.weight)
    x = inputs(LENGTH)
    leaf = x.clone().requires_grad_()
    assert_same(ours, x, module(leaf), leaf)
