"""Block `M`: Mamba-3, single or multiple input and output (SISO, MIMO), exponential-trapezoidal, rotated state, no
convolution.

    [z, x, B, C, dd_dt, dd_A, trap, angles] = W_in u
    k = RMSNorm(B), q = RMSNorm(C)                       over N, one weight each for all groups and ranks
    A = −φ(dd_A), at most −a_floor                       DT = softplus(dd_dt + dt_bias)
    y = scan(q, k, x, DT, A·DT, trap, angles, …)         biases, rotation, trapezoid, skip, ψ and silu gate inside
    out = W_out y

The scan is `ops.ssm_scan`, or `ops.mimo_scan` where `mimo_rank` R > 1: then B and C hold R vectors per group, and each
rank sees x ∘ ψx_r and z ∘ ψz_r and writes through ψo_r. With `output_norm` the output of every rank is normed per head,
over P, with a weight of its own for every head and channel, before the gate: RMSNorm(y_r) · silu(z_r).

Source: Mamba-3 (arXiv 2603.15569) and state-spaces/mamba. φ is `1 + u` for u ≥ 0 and `1/(1 − u)` below
("reciprocal"), or softplus. Legend: B batch, T sequence, d hidden, H heads, P head dim, N state, G groups, R rank,
n angles = ⌊N · rope_fraction⌋ / 2.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lanewise.lane.schema import MambaSpec
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
from lanewise.models.mamba_decode import MambaState, ScanInputs, carry, pair_slices, step
from lanewise.ops.opset import OpSet


class _Projected(NamedTuple):
    """Input of the scan, from the sub-layer's input."""

    q: Tensor  # [B, T, R, G, N]
    k: Tensor  # [B, T, R, G, N]
    v: Tensor  # [B, T, H, P]
    dt: Tensor  # [B, T, H]
    a_dt: Tensor  # [B, T, H]
    trap: Tensor  # [B, T, H]
    angles: Tensor  # [B, T, n]
    z: Tensor  # [B, T, H, P]


class Mamba(Block):
    """Mamba-3 sub-layer.

    Args:
        spec: sizes of the block; its `version` is `mamba3`.
        hidden_size: d.
        eps: of the RMSNorms over B and C, and of the output norm.
        ops: the op set of the model.
    """

    def __init__(self, spec: MambaSpec, *, hidden_size: int, eps: float, ops: OpSet) -> None:
        super().__init__()
        self.spec = spec
        self.ops = ops
        self.eps = eps
        self.is_mimo = spec.mimo_rank > 1
        inner = spec.num_heads * spec.head_dim
        grouped = spec.num_groups * spec.state_size * spec.mimo_rank
        self.widths = [inner, inner, grouped, grouped, *[spec.num_heads] * 3, num_angles(spec)]
        self.in_proj = Linear(hidden_size, sum(self.widths))
        self.k_norm = RMSNorm(spec.state_size, eps)
        self.q_norm = RMSNorm(spec.state_size, eps)
        self.dt_bias = special_parameter(torch.zeros(spec.num_heads))
        per_rank = (spec.num_heads, spec.mimo_rank)
        biases = (*per_rank, spec.state_size) if self.is_mimo else (per_rank[0], spec.state_size)
        self.q_bias = special_parameter(torch.ones(biases))
        self.k_bias = special_parameter(torch.ones(biases))
        self.skip = special_parameter(torch.ones(spec.num_heads))
        if self.is_mimo:
            psi = torch.ones(*per_rank, spec.head_dim)
            self.psi_x = special_parameter(psi / spec.mimo_rank)
            self.psi_z = special_parameter(psi.clone())
            self.psi_o = special_parameter(psi / spec.mimo_rank)
        if spec.output_norm:
            self.output_norm = special_parameter(torch.ones(spec.num_heads, spec.head_dim))
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

    def forward(self, x: Tensor, context: Context = NO_CONTEXT) -> BlockOutput:
        """Scan [B, T, d] causally, anew where a document begins."""
        projected = self._project(x)
        y = self._scan(projected, context.document_ids, gated=not self.spec.output_norm)
        if self.spec.output_norm:
            y = self._gate(y, projected.z)
        return BlockOutput(self.out(y.flatten(2)))

    def extend(
        self,
        x: Tensor,
        state: BlockState | None,
        context: Context = NO_CONTEXT,  # noqa: ARG002  a text is one document
    ) -> tuple[BlockOutput, BlockState]:
        """Scan the next tokens [B, T, d] from the state that the text so far left."""
        assert state is None or isinstance(state, MambaState), "a state comes from this block"
        projected = self._project(x)
        inputs = self._scan_inputs(projected)
        if state is not None and x.shape[1] == 1:
            y, after = step(inputs, state, self.skip.to(inputs.v.dtype))
        else:
            from_before, after = carry(inputs, state)
            y = self._scan(projected, None, gated=False)
            if from_before is not None:
                y = y + from_before
        y = self._gate(y, projected.z)
        return BlockOutput(self.out(y.flatten(2))), after

    def _project(self, x: Tensor) -> _Projected:
        spec = self.spec
        z, v, b, c, dd_dt, dd_a, trap, angles = self.in_proj(x).split(self.widths, dim=-1)
        in_heads = (spec.num_heads, spec.head_dim)
        in_groups = (spec.mimo_rank, spec.num_groups, spec.state_size)
        dt = F.softplus(dd_dt.to(self.dt_bias.dtype) + self.dt_bias)
        a = decay_rate(dd_a.to(dt.dtype), decay_map=spec.decay_map, a_floor=spec.a_floor)
        return _Projected(
            self.q_norm(c.unflatten(-1, in_groups)),
            self.k_norm(b.unflatten(-1, in_groups)),
            v.unflatten(-1, in_heads),
            dt,
            a * dt,
            trap,
            angles,
            z.unflatten(-1, in_heads),
        )

    def _scan(self, projected: _Projected, document_ids: Tensor | None, *, gated: bool) -> Tensor:
        """Gated [B, T, H, P], or the output of every rank without gate [B, T, R, H, P]."""
        q, k, v, dt, a_dt, trap, angles, z = projected
        chunk_size = self.spec.chunk_size
        if self.is_mimo:
            return self.ops.mimo_scan(
                q, k, v, dt, a_dt, trap, angles, self.q_bias, self.k_bias, self.skip,
                z if gated else None,
                self.psi_x,
                self.psi_z if gated else None,
                self.psi_o if gated else None,
                chunk_size, document_ids,
            )  # fmt: skip
        y = self.ops.ssm_scan(
            q.squeeze(2), k.squeeze(2), v, dt, a_dt, trap, angles, self.q_bias, self.k_bias,
            self.skip, z if gated else None, chunk_size, document_ids,
        )  # fmt: skip
        return y if gated else y.unsqueeze(2)

    def _gate(self, y_BTRHP: Tensor, z_BTHP: Tensor) -> Tensor:
        """Norm where the lane has one, gate and join the ranks: [B, T, H, P] in the dtype of `z`."""
        dtype = torch.promote_types(z_BTHP.dtype, torch.float32)
        y_BTRHP, z_BTRHP = y_BTRHP.to(dtype), z_BTHP.to(dtype).unsqueeze(2)
        if self.spec.output_norm:
            normed = F.rms_norm(y_BTRHP, y_BTRHP.shape[-1:], eps=self.eps)
            y_BTRHP = normed * self.output_norm.to(dtype)
        if not self.is_mimo:
            return (y_BTRHP * F.silu(z_BTRHP)).squeeze(2).to(z_BTHP.dtype)
        psi_z, psi_o = (psi.to(dtype).transpose(0, 1) for psi in (self.psi_z, self.psi_o))
        return (y_BTRHP * F.silu(z_BTRHP * psi_z) * psi_o).sum(2).to(z_BTHP.dtype)

    def _scan_inputs(self, projected: _Projected) -> ScanInputs:
        """What the decoding state is made of; everything in fp32 or wider."""
        spec = self.spec
        wide = torch.promote_types(projected.v.dtype, torch.float32)
        q, k, v, dt, a_dt, trap, angles, _ = (part.to(wide) for part in projected)

        def of_heads(x_BTRGN: Tensor, bias: Tensor) -> Tensor:
            per_group = spec.num_heads // spec.num_groups
            bias_RHN = bias.to(wide).view(spec.num_heads, spec.mimo_rank, -1).transpose(0, 1)
            return x_BTRGN.repeat_interleave(per_group, dim=3) + bias_RHN

        v_BTRHP = v.unsqueeze(2)
        if self.is_mimo:
            v_BTRHP = v_BTRHP * self.psi_x.to(wide).transpose(0, 1)
        return ScanInputs(
            q=of_heads(q, self.q_bias),
            k=of_heads(k, self.k_bias),
            v=v_BTRHP,
            dt=dt,
            a_dt=a_dt,
            lam=torch.sigmoid(trap),
            turn=math.pi * torch.tanh(angles).unsqueeze(2) * dt.unsqueeze(-1),
            pairs=pair_slices(num_angles(spec), spec.state_size, is_mimo=self.is_mimo),
        )


def num_angles(spec: MambaSpec) -> int:
    """Rotation angles per position: pairs of state coordinates that rotate."""
    return int(spec.state_size * spec.rope_fraction) // 2


def decay_rate(dd_a: Tensor, *, decay_map: str, a_floor: float) -> Tensor:
    """`A = −φ(dd_A)`, at most −a_floor, same shape as `dd_a`."""
    phi = F.softplus(dd_a) if decay_map == "softplus" else _reciprocal_map(dd_a)
    return (-phi).clamp(max=-a_floor)


def _reciprocal_map(u: Tensor) -> Tensor:
    # The branch not taken is evaluated at 0, where it and its gradient are finite.
    return torch.where(u >= 0, 1 + u, 1 / (1 - u.clamp(max=0)))
