"""Block `R`: M2RNN, a recurrence over a matrix state (arXiv 2603.14360).

    [q, k, v | x | g] = W_in u                  q and k are one head shared by all, v, x and g per head
    [q, k, v] = silu(causal depthwise conv([q, k, v]))
    f = exp(−exp(A_log) · softplus(x + dt_bias))
    o = m2rnn_scan(q, k, v, W, f)               h_t = f_t h_{t−1} + (1 − f_t) tanh(h_{t−1} W + k_t v_tᵀ), o_t = h_tᵀ q_t
    out = W_out RMSNorm((o + D ∘ v) ∘ silu(g))  the norm runs over all heads

The convolution and the state start anew in every document. Legend: B batch, T sequence, d hidden, H heads, K and V key and
value dims, J taps, C channels of the convolution.
"""

from __future__ import annotations

from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lanewise.lane.schema import RecurrentSpec
from lanewise.models.causal_conv import causal_depthwise_conv, extend_causal_conv
from lanewise.models.layers import (
    NO_CONTEXT,
    Block,
    BlockOutput,
    BlockState,
    Context,
    Linear,
    RMSNorm,
    init_dt_bias,
    init_normal,
    special_parameter,
)
from lanewise.ops.m2rnn_scan import next_state, read_state
from lanewise.ops.opset import OpSet

A_INIT_MAX = 16.0
"""`exp(A_log)` starts uniform in (0, 16]."""
DT_MIN, DT_MAX, DT_FLOOR = 1e-3, 1e-1, 1e-4
"""`softplus(dt_bias)` starts log-uniform in [DT_MIN, DT_MAX]."""


class RecurrentState(NamedTuple):
    """What an `R` layer carries from token to token.

    Attributes:
        conv: the last J − 1 inputs of the convolution [B, J − 1, C].
        matrix: h [B, H, K, V], fp32 or wider.
    """

    conv: Tensor
    matrix: Tensor


class Recurrent(Block):
    """M2RNN sub-layer.

    Args:
        spec: sizes of the block.
        hidden_size: d.
        eps: of the RMSNorm before the output projection.
        ops: the op set of the model.
    """

    def __init__(self, spec: RecurrentSpec, *, hidden_size: int, eps: float, ops: OpSet) -> None:
        super().__init__()
        self.spec = spec
        self.ops = ops
        values = spec.num_heads * spec.value_dim
        convolved = 2 * spec.key_dim + values
        self.widths = [convolved, spec.num_heads, values]
        self.in_proj = Linear(hidden_size, sum(self.widths))
        self.conv_weight = nn.Parameter(torch.empty(convolved, spec.conv_kernel_size))
        self.conv_bias = special_parameter(torch.zeros(convolved))
        self.a_log = special_parameter(torch.zeros(spec.num_heads))
        self.dt_bias = special_parameter(torch.zeros(spec.num_heads))
        self.state_weight = nn.Parameter(
            torch.empty(spec.num_heads, spec.value_dim, spec.value_dim)
        )
        self.skip = special_parameter(torch.ones(spec.num_heads, spec.value_dim))
        self.norm = RMSNorm(values, eps)
        self.out = Linear(values, hidden_size)

    def reset_parameters(
        self, *, std: float, output_std: float, generator: torch.Generator
    ) -> None:
        """Draw the projections; state weight identity, filter uniform in ± kernel_size^−½ (torch's conv default)."""
        init_normal(self.in_proj.weight, std, generator)
        init_normal(self.out.weight, output_std, generator)
        bound = self.spec.conv_kernel_size**-0.5
        with torch.no_grad():
            self.conv_weight.uniform_(-bound, bound, generator=generator)
            # 1 − rand is in (0, 1], so the logarithm is finite.
            rand = torch.rand(self.spec.num_heads, generator=generator, dtype=torch.float32)
            self.a_log.copy_(torch.log(A_INIT_MAX * (1 - rand)))
            self.state_weight.copy_(torch.eye(self.spec.value_dim).expand_as(self.state_weight))
        init_dt_bias(
            self.dt_bias, dt_min=DT_MIN, dt_max=DT_MAX, dt_floor=DT_FLOOR, generator=generator
        )

    def forward(self, x: Tensor, context: Context = NO_CONTEXT) -> BlockOutput:
        """Recur over [B, T, d] causally, anew in every document."""
        ids = context.document_ids
        convolved, dd_forget, gate = self.in_proj(x).split(self.widths, dim=-1)
        convolved = causal_depthwise_conv(convolved, self.conv_weight, self.conv_bias, ids)
        q, k, v = self._heads(convolved)
        output = self.ops.m2rnn_scan(
            q,
            k,
            v,
            self.state_weight.to(x.dtype),
            self._forget(dd_forget),
            self.spec.state_gradient_clip,
            ids,
        )
        return BlockOutput(self._project_out(output, v, gate))

    def extend(
        self,
        x: Tensor,
        state: BlockState | None,
        context: Context = NO_CONTEXT,  # noqa: ARG002  a text is one document
    ) -> tuple[BlockOutput, RecurrentState]:
        """The next tokens [B, T, d], one step of the recurrence after the other; for inference, so nothing is clipped."""
        before = None if state is None else cast("RecurrentState", state)
        convolved, dd_forget, gate = self.in_proj(x).split(self.widths, dim=-1)
        convolved, conv = extend_causal_conv(
            convolved, self.conv_weight, self.conv_bias, None if before is None else before.conv
        )
        q, k, v = self._heads(convolved)
        dtype = torch.promote_types(x.dtype, torch.float32)
        q_wide, k_wide, v_wide, weight = (y.to(dtype) for y in (q, k, v, self.state_weight))
        forget = self._forget(dd_forget).to(dtype)
        matrix = (
            v_wide.new_zeros(len(x), self.spec.num_heads, self.spec.key_dim, self.spec.value_dim)
            if before is None
            else before.matrix
        )
        outputs = []
        for t in range(x.shape[1]):
            matrix = next_state(matrix, k_wide[:, t], v_wide[:, t], weight, forget[:, t])
            outputs.append(read_state(matrix, q_wide[:, t]))
        output = torch.stack(outputs, dim=1).to(x.dtype)
        return BlockOutput(self._project_out(output, v, gate)), RecurrentState(conv, matrix)

    def _heads(self, convolved: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q, k [B, T, K] and v [B, T, H, V] from the filtered projections."""
        spec = self.spec
        widths = [spec.key_dim, spec.key_dim, spec.num_heads * spec.value_dim]
        q, k, v = torch.split(F.silu(convolved), widths, dim=-1)
        return q, k, torch.unflatten(v, -1, (spec.num_heads, spec.value_dim))

    def _forget(self, dd_forget: Tensor) -> Tensor:
        """f [B, T, H], fp32 or wider: bf16 knows no f between 0.996 and 1, and 1 − f is what a step writes."""
        dt = F.softplus(dd_forget.to(self.dt_bias.dtype) + self.dt_bias)
        return torch.exp(-torch.exp(self.a_log) * dt)

    def _project_out(self, output: Tensor, v: Tensor, gate: Tensor) -> Tensor:
        skipped = (output + self.skip.to(v.dtype) * v).flatten(-2)
        projected: Tensor = self.out(self.norm(skipped * F.silu(gate)))
        return projected
