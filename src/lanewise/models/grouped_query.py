"""Block `G`: grouped-query attention (Ainslie et al., arXiv 2305.13245) with RoPE over the whole head, causal.

    q = R(norm(W_q x))    k = R(norm(W_k x))    v = W_v x        norm: RMSNorm over D with `qk_norm`, else nothing
    out = W_o softmax(q kᵀ / sqrt(D), causal, within the document) v

H / H_kv query heads share one head of keys and values; attention itself is the op `attention_core`.
Legend: B batch, T sequence, d hidden, H heads, H_kv key and value heads, D head dim.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lanewise.lane.schema import GroupedQuerySpec
from lanewise.models.decoding import attend_newest
from lanewise.models.layers import (
    NO_CONTEXT,
    Block,
    BlockOutput,
    BlockState,
    Context,
    Linear,
    RMSNorm,
    init_normal,
)
from lanewise.models.rope import RotaryTable, rotate
from lanewise.ops.opset import OpSet


class KeyValueCache(NamedTuple):
    """State of a grouped-query layer in decoding.

    Attributes:
        keys: [B, H_kv, S, D], rotated, of all positions so far.
        values: [B, H_kv, S, D].
    """

    keys: Tensor
    values: Tensor


class GroupedQueryAttention(Block):
    """Grouped-query attention sub-layer.

    Args:
        spec: sizes of the block.
        hidden_size: d.
        sequence_length: longest T of training; sizes the rotation table.
        eps: of the RMSNorms of q and k.
        ops: the op set of the model.
    """

    def __init__(
        self,
        spec: GroupedQuerySpec,
        *,
        hidden_size: int,
        sequence_length: int,
        eps: float,
        ops: OpSet,
    ) -> None:
        super().__init__()
        self.spec = spec
        self.ops = ops
        self.scale = spec.head_dim**-0.5
        self.q = Linear(hidden_size, spec.num_heads * spec.head_dim)
        self.k = Linear(hidden_size, spec.num_kv_heads * spec.head_dim)
        self.v = Linear(hidden_size, spec.num_kv_heads * spec.head_dim)
        self.q_norm = RMSNorm(spec.head_dim, eps) if spec.qk_norm else None
        self.k_norm = RMSNorm(spec.head_dim, eps) if spec.qk_norm else None
        self.out = Linear(spec.num_heads * spec.head_dim, hidden_size)
        self.rope = RotaryTable(sequence_length, spec.head_dim, spec.rope_theta)

    def reset_parameters(
        self, *, std: float, output_std: float, generator: torch.Generator
    ) -> None:
        """Draw every weight from N(0, std²), the output projection from N(0, output_std²)."""
        for linear in (self.q, self.k, self.v):
            init_normal(linear.weight, std, generator)
        init_normal(self.out.weight, output_std, generator)

    def forward(self, x: Tensor, context: Context = NO_CONTEXT) -> BlockOutput:
        """Attend causally over [B, T, d]."""
        q, k, v = self._project(x, start=0)
        values = self.ops.attention_core(q, k, v, self.scale, context.document_ids)
        return BlockOutput(self._project_out(values))

    def extend(
        self,
        x: Tensor,
        state: BlockState | None,
        context: Context = NO_CONTEXT,  # noqa: ARG002
    ) -> tuple[BlockOutput, KeyValueCache]:
        """Attend from the next T tokens to all so far."""
        q, k, v = self._project(x, start=0 if state is None else state[0].shape[2])
        if state is not None:
            k, v = torch.cat([state[0], k], dim=2), torch.cat([state[1], v], dim=2)
        values = attend_newest(q, k, v, self.scale)
        return BlockOutput(self._project_out(values)), KeyValueCache(k, v)

    def _project(self, x: Tensor, *, start: int) -> tuple[Tensor, Tensor, Tensor]:
        """q [B, H, T, D] and k [B, H_kv, T, D], rotated from position `start` on, and v [B, H_kv, T, D]."""
        q, k, v = (
            linear(x).unflatten(-1, (-1, self.spec.head_dim)).transpose(1, 2)
            for linear in (self.q, self.k, self.v)
        )
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        cos, sin = self.rope(start, start + x.shape[1], x)
        return rotate(q, cos, sin), rotate(k, cos, sin), v

    def _project_out(self, values: Tensor) -> Tensor:
        """W_o: [B, H, T, D] → [B, T, d]."""
        projected: Tensor = self.out(values.transpose(1, 2).flatten(2))
        return projected
