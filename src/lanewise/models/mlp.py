"""Block `D`: dense MLP.

    out = W_out act(W_in x)        swiglu: W_in = [W_gate | W_up], act = silu(gate) · up (Shazeer, arXiv 2002.05202)

Legend: B batch, T sequence, d hidden, F hidden size of the MLP.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lanewise.lane.schema import MlpSpec
from lanewise.models.layers import (
    NO_CONTEXT,
    Block,
    BlockOutput,
    BlockState,
    Context,
    Linear,
    activate,
    init_normal,
)


class Mlp(Block):
    """Dense MLP sub-layer.

    Args:
        spec: sizes of the block.
        hidden_size: d.
    """

    def __init__(self, spec: MlpSpec, *, hidden_size: int) -> None:
        super().__init__()
        self.spec = spec
        num_in_maps = 2 if spec.activation == "swiglu" else 1
        self.w_in = Linear(hidden_size, num_in_maps * spec.mlp_hidden_size)
        self.w_out = Linear(spec.mlp_hidden_size, hidden_size)

    def reset_parameters(
        self, *, std: float, output_std: float, generator: torch.Generator
    ) -> None:
        """Draw the first map from N(0, std²), the second from N(0, output_std²)."""
        init_normal(self.w_in.weight, std, generator)
        init_normal(self.w_out.weight, output_std, generator)

    def forward(self, x: Tensor, context: Context = NO_CONTEXT) -> BlockOutput:  # noqa: ARG002
        """Transform [B, T, d] token by token."""
        return BlockOutput(self.w_out(activate(self.w_in(x), self.spec.activation)))

    def extend(
        self,
        x: Tensor,
        state: BlockState | None,  # noqa: ARG002
        context: Context = NO_CONTEXT,
    ) -> tuple[BlockOutput, BlockState]:
        """Transform the next tokens; nothing is carried."""
        return self.forward(x, context), ()
