"""`mimo_scan`, `recurrence.torch`: the step recurrence as a torch user writes it, with autograd.

Everything that does not depend on the state is hoisted out of the loop over time; the state is all that remains.
Shapes: B batch, T sequence, R rank, H heads, G groups, N state, P head dim, n rotated pairs, X = B·H.
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
    psi_x: Tensor,
    psi_z: Tensor | None,
    psi_o: Tensor | None,
    chunk_size: int,
    document_ids: Tensor | None = None,
) -> Tensor:
    """One step after the other, vectorised over batch and heads. Arguments and result as `ops.mimo_scan.mimo_scan`."""
    dtype = torch.promote_types(v.dtype, torch.float32)
    dt, a_dt, trap = dt.to(dtype), a_dt.to(dtype), trap.to(dtype)
    heads_per_group = v.shape[2] // q.shape[3]

    turn_BTHn = math.pi * torch.tanh(angles.to(dtype)).unsqueeze(2) * dt.unsqueeze(-1)
    theta_BTH1n = cumsum_step_by_step(turn_BTHn, document_ids).unsqueeze(3)
    q_BTHRN, k_BTHRN = (
        rotate_halves(
            x.to(dtype).transpose(2, 3).repeat_interleave(heads_per_group, dim=2) + bias,
            theta_BTH1n.cos(),
            theta_BTH1n.sin(),
        )
        for x, bias in ((q, q_bias), (k, k_bias))
    )
    v_BTHRP = v.to(dtype).unsqueeze(3) * psi_x

    lam = torch.sigmoid(trap)
    alpha = torch.exp(a_dt)
    if document_ids is not None:
        # Neither the state nor the input of the step before enters a new document.
        alpha = alpha * stays_in_document(document_ids, dtype).unsqueeze(-1)
    beta, gamma = (1 - lam) * dt * alpha, lam * dt
    # The inputs of a step are one update of rank 2R: [β v_{t−1} | γ v_t] · [k_{t−1} | k_t]ᵀ.
    v_before, k_before = (F.pad(x, (0, 0) * 3 + (1, 0))[:, :-1] for x in (v_BTHRP, k_BTHRN))
    left = torch.cat([beta[..., None, None] * v_before, gamma[..., None, None] * v_BTHRP], dim=3)
    right = torch.cat([k_before, k_BTHRN], dim=3)

    def steps(x: Tensor) -> tuple[Tensor, ...]:
        return x.transpose(0, 1).flatten(1, 2).unbind(0)  # batch and heads as one dim

    state_XPN = v_BTHRP.new_zeros(v.shape[0] * v.shape[2], v.shape[3], q.shape[-1])
    outputs = []
    for alpha_X11, left_XPr, right_XrN, q_XRN in zip(
        steps(alpha[..., None, None]), steps(left.mT), steps(right), steps(q_BTHRN), strict=True
    ):
        state_XPN = torch.addcmul(torch.bmm(left_XPr, right_XrN), alpha_X11, state_XPN)
        outputs.append(torch.bmm(q_XRN, state_XPN.mT))
    y_BTHRP = torch.stack(outputs).unflatten(1, (v.shape[0], -1)).transpose(0, 1)
    y_BTHRP = y_BTHRP + skip[:, None, None] * v_BTHRP
    if z is None or psi_z is None or psi_o is None:
        return y_BTHRP.transpose(2, 3).to(v.dtype)
    gate_BTHRP = F.silu(z.to(dtype).unsqueeze(3) * psi_z)
    return (y_BTHRP * gate_BTHRP * psi_o).sum(3).to(v.dtype)


def rotate_halves(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the pairs (i, i + N/2), i < n, of [..., N] by angles whose cos and sin are [..., n]."""
    half, num_pairs = x.shape[-1] // 2, cos.shape[-1]
    a, first_rest, b, second_rest = x.split(
        [num_pairs, half - num_pairs, num_pairs, half - num_pairs], dim=-1
    )
    return torch.cat([a * cos - b * sin, first_rest, a * sin + b * cos, second_rest], dim=-1)
