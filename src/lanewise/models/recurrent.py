"""Block `R`: M2RNN, a recurrence over a matrix state (arXiv 2603.14360).

    [q, k, v | x | g] = W_in u                  q and k are one head shared by all, v, x and g per head
    [q, k, v] = silu(causal depthwise conv([q, k, v]))
    f = exp(−exp(A_log) · softplus(x + dt_bias))
    o = m2rnn_scan(q, k, v, W, f)               h_t = f_t h_{t−1} + (1 − f_t) tanh(h_{t−1} W + k_t v_tᵀ), o_t = h_tᵀ q_t
    out = W_out RMSNorm((o + D ∘ v) ∘ silu(g))  the norm runs over all heads

Legend: B batch, T sequence, d hidden, H heads, K and V key and value dims.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lanewise.lane.schema import RecurrentSpec
from lanewise.models.layers import (
    NO_CONTEXT,
    Block,
    BlockOutput,
    Context,
    Linear,
    RMSNorm,
    init_dt_bias,
    init_normal,
    special_parameter,
)
from lanewise.ops.opset import OpSet

A_INIT_MAX = 16.0
"""`exp(A_log)` starts uniform in (0, 16]."""
DT_MIN, DT_MAX, DT_FLOOR = 1e-3, 1e-1, 1e-4
"""`softplus(dt_bias)` starts log-uniform in [DT_MIN, DT_MAX]."""


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

    def forward(self, x: Tensor, context: Context = NO_CONTEXT) -> BlockOutput:  # noqa: ARG002
        """Recur over [B, T, d] causally."""
        spec = self.spec
        batch, length, _ = x.shape
        convolved, dd_forget, gate = self.in_proj(x).split(self.widths, dim=-1)
        convolved = F.silu(causal_depthwise_conv(convolved, self.conv_weight, self.conv_bias))
        q, k, v = torch.split(convolved, [spec.key_dim, spec.key_dim, self.widths[2]], dim=-1)
        v = v.reshape(batch, length, spec.num_heads, spec.value_dim)
        dt = F.softplus(dd_forget.to(self.dt_bias.dtype) + self.dt_bias)
        forget = torch.exp(-torch.exp(self.a_log) * dt).to(x.dtype)
        output = self.ops.m2rnn_scan(
            q, k, v, self.state_weight.to(x.dtype), forget, spec.state_gradient_clip
        )
        output = (output + self.skip.to(x.dtype) * v).reshape(batch, length, -1)
        return BlockOutput(self.out(self.norm(output * F.silu(gate))))


def causal_depthwise_conv(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """`y[t, c] = bias[c] + Σ_j weight[c, j] · x[t − (J − 1) + j, c]` with zeros before the start.

    Args:
        x: [B, T, C].
        weight: [C, J], the last tap multiplies the present.
        bias: [C].

    Returns:
        [B, T, C] in the dtype of `x`.
    """
    num_taps = weight.shape[1]
    padded = F.pad(x.transpose(1, 2), (num_taps - 1, 0))
    filtered = F.conv1d(
        padded, weight.to(x.dtype).unsqueeze(1), bias.to(x.dtype), groups=weight.shape[0]
    )
    return filtered.transpose(1, 2)
