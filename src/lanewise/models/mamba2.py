"""Block `M`, version `mamba2`: Mamba-2 (state space duality, arXiv 2405.21060).

    [z | x, B, C | dt] = W_in u
    [x, B, C] = silu(causal depthwise conv([x, B, C]))
    dt = softplus(dt + dt_bias)      A = −exp(A_log)              one each per head
    y = ssd_scan(x, dt, A, B, C, D)                               S_t = exp(A dt_t) S_{t−1} + dt_t x_t B_tᵀ, y_t = S_t C_t + D x_t
    out = W_out RMSNorm(y ∘ silu(z))                              the norm runs over the heads of a group

Source: state-spaces/mamba, `mamba_ssm/modules/mamba2.py`; the norm's groups are those of B and C, as there and in
transformers' Mamba-2. The convolution and the state start anew in every document. Of the table [model.mamba], `rope_fraction`,
`decay_map`, `a_floor` and `output_norm` are Mamba-3's and mean nothing here. Legend: B batch, T sequence, d hidden, H heads, P
head dim, N state, G groups, J taps, C channels of the convolution.
"""

from __future__ import annotations

from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lanewise.lane.params import mamba2_conv_channels
from lanewise.lane.schema import MambaSpec
from lanewise.models.causal_conv import causal_depthwise_conv, extend_causal_conv
from lanewise.models.layers import (
    NO_CONTEXT,
    Block,
    BlockOutput,
    BlockState,
    Context,
    Linear,
    init_dt_bias,
    init_normal,
    special_parameter,
)
from lanewise.ops.opset import OpSet
from lanewise.ops.ssd_scan import read_from_state, state_after

A_INIT_MIN, A_INIT_MAX = 1.0, 16.0
"""`exp(A_log)` starts uniform in [1, 16]."""


class Mamba2State(NamedTuple):
    """What a Mamba-2 layer carries from token to token.

    Attributes:
        conv: the last J − 1 inputs of the convolution [B, J − 1, C].
        ssm: S [B, H, P, N], fp32 or wider.
    """

    conv: Tensor
    ssm: Tensor


class Mamba2(Block):
    """Mamba-2 sub-layer.

    Args:
        spec: sizes of the block; `version` is `mamba2`.
        hidden_size: d.
        eps: of the gated RMSNorm.
        ops: the op set of the model.
    """

    def __init__(self, spec: MambaSpec, *, hidden_size: int, eps: float, ops: OpSet) -> None:
        super().__init__()
        self.spec = spec
        self.ops = ops
        self.eps = eps
        inner = spec.num_heads * spec.head_dim
        channels = mamba2_conv_channels(spec)
        self.widths = [inner, channels, spec.num_heads]
        self.in_proj = Linear(hidden_size, sum(self.widths))
        self.conv_weight = nn.Parameter(torch.empty(channels, spec.conv_kernel_size))
        self.conv_bias = special_parameter(torch.zeros(channels))
        self.dt_bias = special_parameter(torch.zeros(spec.num_heads))
        self.a_log = special_parameter(torch.zeros(spec.num_heads))
        self.skip = special_parameter(torch.ones(spec.num_heads))
        self.norm_weight = special_parameter(torch.ones(inner))
        self.out = Linear(inner, hidden_size)

    def reset_parameters(
        self, *, std: float, output_std: float, generator: torch.Generator
    ) -> None:
        """Draw the projections; filter and its bias uniform in ± J^−½ (torch's conv default), A uniform in [1, 16], and
        `softplus(dt_bias)` log-uniform in [dt_min, dt_max], as the public module does.
        """
        spec = self.spec
        init_normal(self.in_proj.weight, std, generator)
        init_normal(self.out.weight, output_std, generator)
        bound = spec.conv_kernel_size**-0.5
        with torch.no_grad():
            self.conv_weight.uniform_(-bound, bound, generator=generator)
            self.conv_bias.uniform_(-bound, bound, generator=generator)
            self.a_log.uniform_(A_INIT_MIN, A_INIT_MAX, generator=generator).log_()
        init_dt_bias(
            self.dt_bias,
            dt_min=spec.dt_min,
            dt_max=spec.dt_max,
            dt_floor=spec.dt_floor,
            generator=generator,
        )

    def forward(self, x: Tensor, context: Context = NO_CONTEXT) -> BlockOutput:
        """Scan [B, T, d] causally, anew in every document."""
        ids = context.document_ids
        z, convolved, dd_dt = self.in_proj(x).split(self.widths, dim=-1)
        convolved = causal_depthwise_conv(convolved, self.conv_weight, self.conv_bias, ids)
        v, b, c = self._heads(convolved)
        y = self.ops.ssd_scan(
            v, self._dt(dd_dt), self._a(), b, c, self.skip, self.spec.chunk_size, ids
        )
        return BlockOutput(self.out(self._gated_norm(y.flatten(-2), z)))

    def extend(
        self,
        x: Tensor,
        state: BlockState | None,
        context: Context = NO_CONTEXT,  # noqa: ARG002  a text is one document
    ) -> tuple[BlockOutput, Mamba2State]:
        """The next tokens [B, T, d]: the scan over them alone, plus what is left of the state before them."""
        before = None if state is None else cast("Mamba2State", state)
        z, convolved, dd_dt = self.in_proj(x).split(self.widths, dim=-1)
        convolved, conv = extend_causal_conv(
            convolved, self.conv_weight, self.conv_bias, None if before is None else before.conv
        )
        v, b, c = self._heads(convolved)
        dt, a = self._dt(dd_dt), self._a()
        y = self.ops.ssd_scan(v, dt, a, b, c, self.skip, self.spec.chunk_size)
        if before is not None:
            y = (y + read_from_state(dt, a, c, before.ssm)).to(y.dtype)
        ssm = state_after(v, dt, a, b, None if before is None else before.ssm)
        return BlockOutput(self.out(self._gated_norm(y.flatten(-2), z))), Mamba2State(conv, ssm)

    def _heads(self, convolved: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x [B, T, H, P], B and C [B, T, G, N] from the filtered projections."""
        spec = self.spec
        grouped = spec.num_groups * spec.state_size
        widths = [self.widths[0], grouped, grouped]
        x, b, c = torch.split(F.silu(convolved), widths, dim=-1)
        return (
            torch.unflatten(x, -1, (spec.num_heads, spec.head_dim)),
            torch.unflatten(b, -1, (spec.num_groups, spec.state_size)),
            torch.unflatten(c, -1, (spec.num_groups, spec.state_size)),
        )

    def _dt(self, dd_dt: Tensor) -> Tensor:
        """Step sizes [B, T, H], fp32 or wider."""
        return F.softplus(dd_dt.to(self.dt_bias.dtype) + self.dt_bias)

    def _a(self) -> Tensor:
        return -torch.exp(self.a_log)

    def _gated_norm(self, y: Tensor, z: Tensor) -> Tensor:
        """`RMSNorm(y ∘ silu(z))` over the heads of each group [B, T, H·P], in fp32 or wider."""
        dtype = self.norm_weight.dtype
        gated = y.to(dtype) * F.silu(z.to(dtype))
        in_groups = torch.unflatten(gated, -1, (self.spec.num_groups, -1))
        normed = F.rms_norm(in_groups, in_groups.shape[-1:], eps=self.eps).flatten(-2)
        return (normed * self.norm_weight).to(z.dtype)
