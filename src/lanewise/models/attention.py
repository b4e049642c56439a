"""Block `A`, dense: multi-head latent attention (DeepSeek-V2, arXiv 2405.04434), causal, expanded form.

    out = W_o softmax(q kᵀ / sqrt(D_n + D_r), causal, within the document) v

The projections are `models.mla`; queries and keys are assembled and rotated by the op `mla_ingress`, attention itself is
the op `attention_core`. Legend as in `models.mla`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lanewise.lane.schema import AttentionSpec
from lanewise.models.layers import NO_CONTEXT, Block, BlockOutput, Context
from lanewise.models.mla import MlaProjections
from lanewise.ops.opset import OpSet


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

    def forward(self, x: Tensor, context: Context = NO_CONTEXT) -> BlockOutput:  # noqa: ARG002
        """Attend causally over [B, T, d]."""
        mla = self.mla
        q = mla.queries(mla.query_latents(x))
        latents, k_rope = mla.key_latents(x)
        cos, sin = mla.rope(0, x.shape[1], x)
        q_BHTD, k_BHTD, v_BHTD = self.ops.mla_ingress(q, mla.expand(latents), k_rope, cos, sin)
        attended = self.ops.attention_core(q_BHTD, k_BHTD, v_BHTD, mla.scale)
        return BlockOutput(mla.project_out(attended.transpose(1, 2)))
