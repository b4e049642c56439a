"""Block `M`: Mamba-3, single input single output (SISO), exponential-trapezoidal, rotated state, no convolution.

    [z, x, B, C, dd_dt, dd_A, trap, angles] = W_in u
    k = RMSNorm(B), q = RMSNorm(C)                       over N, one weight each for all groups
    A = −φ(dd_A), at most −a_floor                       DT = softplus(dd_dt + dt_bias)
    y = ssm_scan(q, k, x, DT, A·DT, trap, angles, …)     biases, rotation, trapezoid, skip and silu(z) gate inside
    out = W_out y

Source: Mamba-3 (arXiv 2603.15569) and state-spaces/mamba. φ is `1 + u` for u ≥ 0 and `1/(1 − u)` below
("reciprocal"), or softplus. Legend: B batch, T sequence, d hidden, H heads, P head dim, N state, G groups,
n angles = ⌊N · rope_fraction⌋ / 2.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from lanewise.lane.schema import MambaSpec
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


class Mamba(Block):
    """Mamba-3 SISO sub-layer.

    Args:
        spec: sizes of the block; `mimo_rank` must be 1.
        hidden_size: d.
        eps: of the RMSNorms over B and C.
        ops: the op set of the model.
    """

    def __init__(self, spec: MambaSpec, *, hidden_size: int, eps: float, ops: OpSet) -> None:
        super().__init__()
        self.spec = spec
        self.ops = ops
        inner = spec.num_heads * spec.head_dim
        grouped = spec.num_groups * spec.state_size
        self.widths = [inner, inner, grouped, grouped, *[spec.num_heads] * 3, num_angles(spec)]
        self.in_proj = Linear(hidden_size, sum(self.widths))
        self.k_norm = RMSNorm(spec.state_size, eps)
        self.q_norm = RMSNorm(spec.state_size, eps)
        self.dt_bias = special_parameter(torch.zeros(spec.num_heads))
        self.q_bias = special_parameter(torch.ones(spec.num_heads, spec.state_size))
        self.k_bias = special_parameter(torch.ones(spec.num_heads, spec.state_size))
        self.skip = special_parameter(torch.ones(spec.num_heads))
        self.out = Linear(inner, hidden_size)

    def reset_parameters(
        self, *, std: float, output_std: float, generator: torch.Generator
    ) -> None:
        """Draw the projections; `softplus(dt_bias)` log-uniform in [dt_min, dt_max]."""
        init_normal(self.in_proj.weight, std, generator)
        init_normal(self.out.weight, output_std, generator)
        init_dt_bias(
            self.dt_bias,
            dt_min=self.spec.dt_min,
            dt_max=self.spec.dt_max,
            dt_floor=self.spec.dt_floor,
            generator=generator,
        )

    def forward(self, x: Tensor, context: Context = NO_CONTEXT) -> BlockOutput:  # noqa: ARG002
        """Scan [B, T, d] causally."""
        spec = self.spec
        batch, length, _ = x.shape
        z, v, b, c, dd_dt, dd_a, trap, angles = self.in_proj(x).split(self.widths, dim=-1)
        in_heads = (batch, length, spec.num_heads, spec.head_dim)
        in_groups = (batch, length, spec.num_groups, spec.state_size)
        dt = F.softplus(dd_dt.to(self.dt_bias.dtype) + self.dt_bias)
        a = decay_rate(dd_a.to(dt.dtype), decay_map=spec.decay_map, a_floor=spec.a_floor)
        y = self.ops.ssm_scan(
            self.q_norm(c.reshape(in_groups)),
            self.k_norm(b.reshape(in_groups)),
            v.reshape(in_heads),
            dt,
            a * dt,
            trap,
            angles,
            self.q_bias,
            self.k_bias,
            self.skip,
            z.reshape(in_heads),
            spec.chunk_size,
        )
        return BlockOutput(self.out(y.reshape(batch, length, -1)))


def num_angles(spec: MambaSpec) -> int:
    """Rotation angles per position: pairs of state coordinates that rotate."""
    return int(spec.state_size * spec.rope_fraction) // 2


def decay_rate(dd_a: Tensor, *, decay_map: str, a_floor: float) -> Tensor:
    """`A = −φ(dd_A)`, at most −a_floor, same shape as `dd_a`."""
    phi = F.softplus(dd_a) if decay_map == "softplus" else _reciprocal_map(dd_a)
    return (-phi).clamp(max=-a_floor)


def _reciprocal_map(u: Tensor) -> Tensor:
    # Equal to both branches, with a finite gradient everywhere; selecting between 1 + u and 1/(1 − u) would divide by
    # zero at u = 1.
    return F.relu(u) + 1 / (1 + F.relu(-u))
