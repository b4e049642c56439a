"""The lightning indexer of DeepSeek sparse attention (DeepSeek-V3.2-Exp, 2025, eq. 1): what keys and queries score each other
with.

    q_j = R(W_qb c_q)_j         k = R(LayerNorm(W_k x))         w = W_w x · H_I^−½ · D_I^−½

R rotates the first D_r dims (split-half), as the RoPE part of the attention it serves. Its inputs are detached: the KL
loss trains the indexer and nothing else, and nothing else trains the indexer.
Legend: B batch, T sequence, d hidden, H_I index heads, D_I index head dim, D_r rope head dim.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lanewise.lane.schema import AttentionSpec, SparseAttentionSpec
from lanewise.models.layers import Linear, init_normal, special_parameter
from lanewise.models.rope import rotate


class IndexVectors(NamedTuple):
    """What the ops of sparse attention score with.

    Attributes:
        q: [B, T, H_I, D_I].
        k: [B, T, D_I], one head.
        weights: [B, T, H_I], scaled.
    """

    q: Tensor
    k: Tensor
    weights: Tensor


class Indexer(nn.Module):
    """Weights of one layer's indexer.

    Args:
        spec: sizes of the indexer.
        attention: sizes of the attention it serves.
        hidden_size: d.
        eps: of the LayerNorm.
    """

    def __init__(
        self, spec: SparseAttentionSpec, attention: AttentionSpec, *, hidden_size: int, eps: float
    ) -> None:
        super().__init__()
        self.num_heads = spec.index_num_heads
        self.rope_head_dim = attention.qk_rope_head_dim
        self.eps = eps
        self.scale = (spec.index_num_heads * spec.index_head_dim) ** -0.5
        self.q_up = Linear(attention.q_lora_rank, spec.index_num_heads * spec.index_head_dim)
        self.key = Linear(hidden_size, spec.index_head_dim)
        self.key_norm_weight = special_parameter(torch.ones(spec.index_head_dim))
        self.key_norm_bias = special_parameter(torch.zeros(spec.index_head_dim))
        self.head_weights = Linear(hidden_size, spec.index_num_heads)

    def reset_parameters(self, *, std: float, generator: torch.Generator) -> None:
        """Draw every matrix from N(0, std²)."""
        for linear in (self.q_up, self.key, self.head_weights):
            init_normal(linear.weight, std, generator)

    def forward(self, x: Tensor, query_latents: Tensor, cos: Tensor, sin: Tensor) -> IndexVectors:
        """Index vectors of [B, T, d] and [B, T, q_lora_rank]; cos and sin [T, D_r/2] are those of the positions."""
        x, query_latents = x.detach(), query_latents.detach()
        q = self.q_up(query_latents).unflatten(-1, (self.num_heads, -1))
        key = self.key(x)
        weight, bias = self.key_norm_weight.to(x.dtype), self.key_norm_bias.to(x.dtype)
        k = F.layer_norm(key, key.shape[-1:], weight, bias, self.eps)
        return IndexVectors(
            self._rotate_first(q, cos.unsqueeze(1), sin.unsqueeze(1)),
            self._rotate_first(k, cos, sin),
            self.head_weights(x) * self.scale,
        )

    def _rotate_first(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        rope, rest = x[..., : self.rope_head_dim], x[..., self.rope_head_dim :]
        return torch.cat([rotate(rope, cos, sin), rest], dim=-1)


def freeze_all_but_indexers(model: nn.Module) -> None:
    """Leave the indexers alone to be trained (the dense warm-up)."""
    model.requires_grad_(requires_grad=False)
    for module in model.modules():
        if isinstance(module, Indexer):
            module.requires_grad_(requires_grad=True)
