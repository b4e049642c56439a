"""Block `A`, dense: multi-head latent attention (DeepSeek-V2, arXiv 2405.04434, §2.1), causal.

    out = W_o softmax(q kᵀ / sqrt(D_n + D_r), causal, within the document) v

Expanded form: keys and values per head, assembled and rotated by the op `mla_ingress`. Absorbed form: every head attends to
one head of keys [c | R(k_rope)] with the values c, and W_uv comes after. Both are equal up to rounding; attention itself is
the op `attention_core` in both. The absorbed core multiplies (2C + D_r) / (D_n + D_r + D_v) times as much, so it pays where
keys and values are read rather than computed: decoding is always absorbed and caches [c | R(k_rope)] alone.
The projections are `models.mla`. Legend as there.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lanewise.lane.schema import AttentionSpec
from lanewise.models.decoding import attend_newest
from lanewise.models.layers import NO_CONTEXT, Block, BlockOutput, BlockState, Context
from lanewise.models.mla import MlaProjections
from lanewise.ops.opset import OpSet


class LatentCache(NamedTuple):
    """State of an MLA layer in decoding.

    Attributes:
        keys: [B, S, C+D_r], normed latents and rotated k_rope of all positions so far.
    """

    keys: Tensor


class Attention(Block):
    """Dense MLA sub-layer.

    Args:
        spec: sizes of the block.
        hidden_size: d.
        sequence_length: longest T of training.
        eps: of the two latent RMSNorms.
        ops: the op set of the model.
    """

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
        self.mla = MlaProjections(
            spec, hidden_size=hidden_size, sequence_length=sequence_length, eps=eps
        )

    def reset_parameters(
        self, *, std: float, output_std: float, generator: torch.Generator
    ) -> None:
        """Draw every weight from N(0, std²), the output projection from N(0, output_std²)."""
        self.mla.reset_parameters(std=std, output_std=output_std, generator=generator)

    def forward(self, x: Tensor, context: Context = NO_CONTEXT) -> BlockOutput:
        """Attend causally over [B, T, d]."""
        attend = self._absorbed if self.spec.form == "absorbed" else self._expanded
        return BlockOutput(self.mla.project_out(attend(x, context.document_ids)))

    def extend(
        self,
        x: Tensor,
        state: BlockState | None,
        context: Context = NO_CONTEXT,  # noqa: ARG002
    ) -> tuple[BlockOutput, LatentCache]:
        """Attend from the next T tokens to all so far, in the absorbed form whatever the form of training."""
        mla = self.mla
        start = 0 if state is None else state[0].shape[1]
        cos, sin = mla.rope(start, start + x.shape[1], x)
        keys = mla.latent_keys(x, cos, sin)
        if state is not None:
            keys = torch.cat([state[0], keys], dim=1)
        queries = mla.absorbed_queries(mla.queries(mla.query_latents(x)), cos, sin)
        latent_values = attend_newest(queries.transpose(1, 2), *self._one_head(keys), mla.scale)
        delta = mla.project_out(mla.expand_values(latent_values.transpose(1, 2)))
        return BlockOutput(delta), LatentCache(keys)

    def _expanded(self, x: Tensor, document_ids: Tensor | None) -> Tensor:
        mla = self.mla
        q = mla.queries(mla.query_latents(x))
        latents, k_rope = mla.key_latents(x)
        cos, sin = mla.rope(0, x.shape[1], x)
        q_BHTD, k_BHTD, v_BHTD = self.ops.mla_ingress(q, mla.expand(latents), k_rope, cos, sin)
        values = self.ops.attention_core(q_BHTD, k_BHTD, v_BHTD, mla.scale, document_ids)
        return values.transpose(1, 2)

    def _absorbed(self, x: Tensor, document_ids: Tensor | None) -> Tensor:
        mla = self.mla
        cos, sin = mla.rope(0, x.shape[1], x)
        queries = mla.absorbed_queries(mla.queries(mla.query_latents(x)), cos, sin)
        latent_values = self.ops.attention_core(
            queries.transpose(1, 2),
            *self._one_head(mla.latent_keys(x, cos, sin)),
            mla.scale,
            document_ids,
        )
        return mla.expand_values(latent_values.transpose(1, 2))

    def _one_head(self, keys: Tensor) -> tuple[Tensor, Tensor]:
        """Keys [B, 1, S, C+D_r] and their first C dims as values, both views."""
        return keys[:, None], keys[:, None, :, : self.spec.kv_lora_rank]
