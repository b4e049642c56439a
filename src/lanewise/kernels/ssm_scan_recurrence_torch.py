"""`ssm_scan`, `recurrence.torch`: the step recurrence as a torch user writes it, with autograd.

Everything that does not depend on the state is hoisted out of the loop over time; the state is all that remains.
Shapes: B batch, T sequence, H heads, G groups, N state, P head dim, n rotated pairs,
X = B·H.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from lanewise.kernels.documents import cumsum_step_by_step, stays_in_document


def recurrence(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    dt: Tensor,
    a_dt: Tensor,
    trap: Tensor,
    angles: Tensor,
    q_bias: Tensor,
    k_bias: Tensor,
    skip: Tensor,
    z: Tensor | None,
    chunk_size: int,
    document_ids: Tensor | None = None,
) -> Tensor:
    """One step after the other, vectorised over batch and heads. Arguments and result as `ops.ssm_scan.ssm_scan`."""
    dtype = torch.promote_types(v.dtype, torch.float32)
    v_BTHP, dt, a_dt, trap = v.to(dtype), dt.to(dtype), a_dt.to(dtype), trap.to(dtype)
    heads_per_group = v.shape[2] // q.shape[2]

    turn_BTHn = math.pi * torch.tanh(angles.to(dtype)).unsqueeze(2) * dt.unsqueeze(-1)
    theta_BTHn = cumsum_step_by_step(turn_BTHn, document_ids)
    cos, sin = theta_BTHn.cos(), theta_BTHn.sin()
    q_BTHN = _rotate(q.to(dtype).repeat_interleave(heads_per_group, dim=2) + q_bias, cos, sin)
    k_BTHN = _rotate(k.to(dtype).repeat_interleave(heads_per_group, dim=2) + k_bias, cos, sin)

    lam = torch.sigmoid(trap)
    alpha = torch.exp(a_dt)
    if document_ids is not None:
        # Neither the state nor the input of the step before enters a new document.
        alpha = alpha * stays_in_document(document_ids, dtype).unsqueeze(-1)
    beta, gamma = (1 - lam) * dt * alpha, lam * dt
    # The two inputs of a step are one rank-2 update: [β v_{t−1} | γ v_t] · [k_{t−1} | k_t]ᵀ.
    v_before = F.pad(v_BTHP, (0, 0, 0, 0, 1, 0))[:, :-1]
    k_before = F.pad(k_BTHN, (0, 0, 0, 0, 1, 0))[:, :-1]
    left = torch.stack([beta.unsqueeze(-1) * v_before, gamma.unsqueeze(-1) * v_BTHP], dim=-1)
    right = torch.stack([k_before, k_BTHN], dim=-2)

    def steps(x: Tensor) -> tuple[Tensor, ...]:
        return (
            x.transpose(0, 1).flatten(1, 2).unbind(0)
        )  # T tensors with batch and heads as one dim

    state_XPN = v_BTHP.new_zeros(v.shape[0] * v.shape[2], v.shape[3], q.shape[3])
    outputs = []
    for alpha_X11, left_XP2, right_X2N, q_X1N in zip(
        steps(alpha[..., None, None]),
        steps(left),
        steps(right),
        steps(q_BTHN.unsqueeze(-2)),
        strict=True,
    ):
        state_XPN = torch.addcmul(torch.bmm(left_XP2, right_X2N), alpha_X11, state_XPN)
        outputs.append((state_XPN * q_X1N).sum(dim=-1))
    y_BTHP = torch.stack(outputs).unflatten(1, (v.shape[0], -1)).transpose(0, 1)
    y_BTHP = y_BTHP + skip.unsqueeze(-1) * v_BTHP
    if z is not None:
        y_BTHP = y_BTHP * F.silu(z.to(dtype))
    return y_BTHP.to(v.dtype)


def _rotate(x_BTHN: Tensor, cos_BTHn: Tensor, sin_BTHn: Tensor) -> Tensor:
    turned, rest = x_BTHN.tensor_split([2 * cos_BTHn.shape[-1]], dim=-1)
    even, odd = turned.unflatten(-1, (-1, 2)).unbind(-1)
    pairs = torch.stack(
        [even * cos_BTHn - odd * sin_BTHn, even * sin_BTHn + odd * cos_BTHn], dim=-1
    )
    return torch.cat([pairs.flatten(-2), rest], dim=-1)
