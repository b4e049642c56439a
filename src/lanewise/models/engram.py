"""Engram branch: averages over the last few positions of a low-rank map, beside every attention layer (a tax).

    z = W_in x                                                d → w = d ÷ bottleneck_ratio
    y = 1/|orders| · Σ_o M_o · (1/o · Σ_{j<o} z_{t−j})        positions of other documents count as zero, the divisor
                                                              stays o, also at a start
    y = silu(causal depthwise conv(y))                        with conv_kernel_size > 0
    out = W_out y                                             or, gated:
    out = σ(⟨RMS(x), RMS(W_k y)⟩ / √d) · W_v y                the gate of Engram, arXiv 2601.07372, §2.3
    delta = attention(x) + out

Form: DatasunriseOU/site_samples, engram branch; the RMS norms have no weight. W_out and W_v start at zero, so the start
is that of the model without the branch. The published sample convolves RMSNorm(out) instead of y; at its zero start the
derivative of that norm is 1/√eps, a thousandfold gradient into the one matrix that learns, so the convolution stands
before the zero matrix here. Legend: B batch, T sequence, d hidden, w branch width.
"""

from __future__ import annotations

from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lanewise.lane.taxes import EngramSpec
from lanewise.models.causal_conv import causal_depthwise_conv, extend_causal_conv
from lanewise.models.layers import (
    NO_CONTEXT,
    Block,
    BlockOutput,
    BlockState,
    Context,
    Linear,
    forked,
    hidden_matrix,
    init_normal,
)


class EngramState(NamedTuple):
    """What the branch carries in decoding.

    Attributes:
        block: state of the attention block.
        z: the last max(orders) − 1 values of z [B, ·, w], zeros before the start.
        y: state of the convolution; None without one.
    """

    block: BlockState
    z: Tensor
    y: Tensor | None


class EngramBlock(Block):
    """An attention block with the branch beside it; both read the same input.

    Args:
        block: the attention block (`A` or `G`).
        spec: sizes of the branch.
        hidden_size: d, a multiple of `spec.bottleneck_ratio`.
        eps: of the norms of the gate.
    """

    def __init__(self, block: Block, spec: EngramSpec, *, hidden_size: int, eps: float) -> None:
        super().__init__()
        self.spec = spec
        self.eps = eps
        self.width = hidden_size // spec.bottleneck_ratio
        self._num_kept = max(spec.orders) - 1
        self.block = block
        self.in_proj = Linear(hidden_size, self.width)
        self.mix = hidden_matrix(
            nn.Parameter(torch.empty(len(spec.orders), self.width, self.width))
        )
        self.key = Linear(self.width, hidden_size) if spec.gated else None
        self.out = Linear(self.width, hidden_size)  # W_out, or W_v when gated
        taps = spec.conv_kernel_size
        self.conv_weight = nn.Parameter(torch.empty(self.width, taps)) if taps else None

    def reset_parameters(
        self, *, std: float, output_std: float, generator: torch.Generator
    ) -> None:
        """The block as without the branch; branch matrices from N(0, std²), filter uniform, the output matrix zero."""
        own = forked(generator)
        self.block.reset_parameters(std=std, output_std=output_std, generator=generator)
        init_normal(self.in_proj.weight, std, own)
        init_normal(self.mix, std, own)
        if self.key is not None:
            init_normal(self.key.weight, std, own)
        if self.conv_weight is not None:
            bound = self.spec.conv_kernel_size**-0.5
            with torch.no_grad():
                self.conv_weight.uniform_(-bound, bound, generator=own)
        nn.init.zeros_(self.out.weight)

    def forward(self, x: Tensor, context: Context = NO_CONTEXT) -> BlockOutput:
        """Attend and add the branch [B, T, d]."""
        output = self.block(x, context)
        z = F.pad(self.in_proj(x), (0, 0, self._num_kept, 0))
        y = self._average(z, x.shape[1], context.document_ids)
        if self.conv_weight is not None:
            no_bias = y.new_zeros(self.width)
            y = F.silu(causal_depthwise_conv(y, self.conv_weight, no_bias, context.document_ids))
        branch = self._project(x, y)
        return cast(BlockOutput, output._replace(delta=output.delta + branch))

    def extend(
        self, x: Tensor, state: BlockState | None, context: Context = NO_CONTEXT
    ) -> tuple[BlockOutput, BlockState]:
        """As `Block.extend`."""
        before = None if state is None else EngramState(*state)
        output, block_state = self.block.extend(x, before and before.block, context)
        z = self.in_proj(x)
        z = (
            F.pad(z, (0, 0, self._num_kept, 0))
            if before is None
            else torch.cat([before.z, z], dim=1)
        )
        y, y_after = self._average(z, x.shape[1], None), None
        if self.conv_weight is not None:
            no_bias = y.new_zeros(self.width)
            y, y_after = extend_causal_conv(y, self.conv_weight, no_bias, before and before.y)
            y = F.silu(y)
        # A copy, so that the state does not keep the whole piece alive.
        z_after = z[:, x.shape[1] :].clone()
        output = output._replace(delta=output.delta + self._project(x, y))
        return output, EngramState(block_state, z_after, y_after)

    def observe(self, output: BlockOutput) -> None:
        """The attention block's affair."""
        self.block.observe(output)

    def _average(self, z: Tensor, length: int, document_ids: Tensor | None) -> Tensor:
        """y [B, T, w]: every order's average through its own matrix, meaned over orders."""
        orders = self.spec.orders
        mix = self.mix.to(z.dtype)
        shifts = _last_shifts(z, max(orders), length, document_ids)
        total, y = torch.zeros_like(shifts[0]), torch.zeros_like(shifts[0])
        for order, shifted in enumerate(shifts, start=1):
            total = total + shifted
            if order in orders:
                y = y + F.linear(total / order, mix[orders.index(order)])
        return y / len(orders)

    def _project(self, x: Tensor, y: Tensor) -> Tensor:
        value: Tensor = self.out(y)
        if self.key is None:
            return value
        width = (x.shape[-1],)
        agreement = F.rms_norm(x, width, None, self.eps) * F.rms_norm(
            self.key(y), width, None, self.eps
        )
        return torch.sigmoid(agreement.sum(-1, keepdim=True) / x.shape[-1] ** 0.5) * value


def _last_shifts(
    values: Tensor, num_shifts: int, length: int, document_ids: Tensor | None
) -> list[Tensor]:
    """`values` as seen 0, 1, …, num_shifts − 1 positions ago, [B, T, w] each; zero where that is another document.

    Args:
        values: [B, num_shifts − 1 + T, w], what came before first.
        num_shifts: how many.
        length: T.
        document_ids: int64 [B, T], changing where a document begins; None when all is one document.
    """
    shifts = []
    for back in range(num_shifts):
        start = values.shape[1] - length - back
        shifted = values[:, start : start + length]
        if document_ids is not None and 0 < back < length:
            same = F.pad(document_ids[:, back:] == document_ids[:, :-back], (back, 0))
            # Selected, not multiplied by zero: what stands in another document may be anything.
            shifted = torch.where(same.unsqueeze(-1), shifted, 0)
        shifts.append(shifted)
    return shifts
