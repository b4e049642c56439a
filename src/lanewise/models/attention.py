"""Block `A`: multi-head latent attention (DeepSeek-V2, arXiv 2405.04434), expanded form, dense causal.

    c_q = RMSNorm(W_qa x)             q = W_qb c_q            = [q_nope | q_rope] per head
    [c | k_rope] = W_kva x            [k_nope | v] = W_kvb RMSNorm(c)            k_rope is one head shared by all
    out = W_o softmax(q kᵀ / sqrt(D_n + D_r), causal) v

Queries and keys are assembled and rotated by the op `mla_ingress`, attention itself is the op `attention_core`.
Legend: B batch, T sequence, d hidden, H heads, D_n/D_r nope and rope head dims of q and k, D_v value head dim.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lanewise.lane.schema import AttentionSpec
from lanewise.models.layers import Block, BlockOutput, Linear, RMSNorm, init_normal
from lanewise.ops.mla_ingress import rope_tables
from lanewise.ops.opset import OpSet


class Attention(Block):
    """MLA sub-layer.

    Args:
        spec: sizes of the block.
        hidden_size: d.
        sequence_length: longest T; sizes the rotation table.
        eps: of the two latent RMSNorms.
        ops: the op set of the model.
    """

    cos: Tensor
    sin: Tensor

    def __init__(
        self,
        spec: AttentionSpec,
        *,
        hidden_size: int,
        sequence_length: int,
        eps: float,
        ops: OpSet,
    ) -> None:
        super().__init__()
        self.spec = spec
        self.ops = ops
        qk_head_dim = spec.qk_nope_head_dim + spec.qk_rope_head_dim
        self.scale = qk_head_dim**-0.5
        self.q_down = Linear(hidden_size, spec.q_lora_rank)
        self.q_norm = RMSNorm(spec.q_lora_rank, eps)
        self.q_up = Linear(spec.q_lora_rank, spec.num_heads * qk_head_dim)
        self.kv_down = Linear(hidden_size, spec.kv_lora_rank + spec.qk_rope_head_dim)
        self.kv_norm = RMSNorm(spec.kv_lora_rank, eps)
        self.kv_up = Linear(
            spec.kv_lora_rank, spec.num_heads * (spec.qk_nope_head_dim + spec.v_head_dim)
        )
        self.out = Linear(spec.num_heads * spec.v_head_dim, hidden_size)
        cos, sin = rope_tables(sequence_length, spec.qk_rope_head_dim, spec.rope_theta)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def reset_parameters(
        self, *, std: float, output_std: float, generator: torch.Generator
    ) -> None:
        """Draw every weight from N(0, std²), the output projection from N(0, output_std²)."""
        for linear in (self.q_down, self.q_up, self.kv_down, self.kv_up):
            init_normal(linear.weight, std, generator)
        init_normal(self.out.weight, output_std, generator)

    def forward(self, x: Tensor) -> BlockOutput:
        """Attend causally over [B, T, d]."""
        spec = self.spec
        batch, length, _ = x.shape
        q = self.q_up(self.q_norm(self.q_down(x))).view(batch, length, spec.num_heads, -1)
        latent, k_rope = self.kv_down(x).split([spec.kv_lora_rank, spec.qk_rope_head_dim], dim=-1)
        kv = self.kv_up(self.kv_norm(latent)).view(batch, length, spec.num_heads, -1)
        cos, sin = self.cos[:length].to(x.dtype), self.sin[:length].to(x.dtype)
        q_BHTD, k_BHTD, v_BHTD = self.ops.mla_ingress(q, kv, k_rope, cos, sin)
        attended = self.ops.attention_core(q_BHTD, k_BHTD, v_BHTD, self.scale)
        return BlockOutput(self.out(attended.transpose(1, 2).reshape(batch, length, -1)))
