"""The projections of multi-head latent attention (DeepSeek-V2, arXiv 2405.04434, §2.1), shared by dense and sparse `A`.

    c_q = RMSNorm(W_qa x)             q = W_qb c_q            = [q_nope | q_rope] per head
    [c | k_rope] = W_kva x            c ← RMSNorm(c)          k_rope is one head shared by all
    [k_nope | v] = W_kvb c            expanded form: keys and values per head
    q' = q_nope W_uk                  absorbed form: score = q'·c + R(q_rope)·R(k_rope), values = (P c) W_uv

with W_kvb = [W_uk | W_uv] per head; both forms are equal in real arithmetic.
Legend: B batch, T sequence, d hidden, H heads, C kv_lora_rank, D_n/D_r nope and rope head dims, D_v value head dim.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lanewise.lane.schema import AttentionSpec
from lanewise.models.layers import Linear, RMSNorm, init_normal
from lanewise.models.rope import RotaryTable, rotate


class MlaProjections(nn.Module):
    """Weights of one MLA layer and the maps they define.

    Args:
        spec: sizes of the block.
        hidden_size: d.
        sequence_length: longest T of training; sizes the rotation table.
        eps: of the two latent RMSNorms.
    """

    def __init__(
        self, spec: AttentionSpec, *, hidden_size: int, sequence_length: int, eps: float
    ) -> None:
        super().__init__()
        self.spec = spec
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
        self.rope = RotaryTable(sequence_length, spec.qk_rope_head_dim, spec.rope_theta)

    def reset_parameters(
        self, *, std: float, output_std: float, generator: torch.Generator
    ) -> None:
        """Draw every weight from N(0, std²), the output projection from N(0, output_std²)."""
        for linear in (self.q_down, self.q_up, self.kv_down, self.kv_up):
            init_normal(linear.weight, std, generator)
        init_normal(self.out.weight, output_std, generator)

    def query_latents(self, x: Tensor) -> Tensor:
        """`c_q` [B, T, q_lora_rank]."""
        latents: Tensor = self.q_norm(self.q_down(x))
        return latents

    def queries(self, query_latents: Tensor) -> Tensor:
        """q [B, T, H, D_n+D_r], not rotated."""
        queries: Tensor = self.q_up(query_latents)
        return queries.view(*queries.shape[:-1], self.spec.num_heads, -1)

    def key_latents(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Normed `c` [B, T, C] and `k_rope` [B, T, D_r], not rotated."""
        spec = self.spec
        latents, k_rope = self.kv_down(x).split([spec.kv_lora_rank, spec.qk_rope_head_dim], dim=-1)
        return self.kv_norm(latents), k_rope

    def expand(self, latents: Tensor) -> Tensor:
        """[k_nope | v] per head [B, T, H, D_n+D_v]."""
        expanded: Tensor = self.kv_up(latents)
        return expanded.view(*expanded.shape[:-1], self.spec.num_heads, -1)

    def absorb(self, q_nope: Tensor) -> Tensor:
        """q' = q_nope W_uk: [B, T, H, D_n] → [B, T, H, C]."""
        return torch.einsum("bthn,hnc->bthc", q_nope, self._up_weights(q_nope)[0])

    def absorbed_queries(self, queries: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """[q' | R(q_rope)], which meet the keys of `latent_keys`.

        Args:
            queries: [B, T, H, D_n+D_r], not rotated.
            cos: [T, D_r/2].
            sin: [T, D_r/2].

        Returns:
            [B, T, H, C+D_r].
        """
        num_nope = self.spec.qk_nope_head_dim
        rotated = rotate(queries[..., num_nope:], cos[:, None], sin[:, None])
        return torch.cat([self.absorb(queries[..., :num_nope]), rotated], dim=-1)

    def latent_keys(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """[c | R(k_rope)], the one key head of the absorbed form; its first C dims are the values.

        Args:
            x: [B, T, d].
            cos: [T, D_r/2].
            sin: [T, D_r/2].

        Returns:
            [B, T, C+D_r].
        """
        latents, k_rope = self.key_latents(x)
        return torch.cat([latents, rotate(k_rope, cos, sin)], dim=-1)

    def expand_values(self, latent_values: Tensor) -> Tensor:
        """(P c) W_uv: [B, T, H, C] → [B, T, H, D_v]."""
        return torch.einsum("bthc,hvc->bthv", latent_values, self._up_weights(latent_values)[1])

    def project_out(self, values: Tensor) -> Tensor:
        """W_o: [B, T, H, D_v] → [B, T, d]."""
        projected: Tensor = self.out(values.flatten(-2))
        return projected

    def _up_weights(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """W_uk [H, D_n, C] and W_uv [H, D_v, C]."""
        weight = self.kv_up.weight.to(like.dtype)
        weight = weight.view(self.spec.num_heads, -1, weight.shape[-1])
        num_nope = self.spec.qk_nope_head_dim
        return weight[:, :num_nope], weight[:, num_nope:]
