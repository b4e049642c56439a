"""`ssm_scan`: the Mamba-3 mixer's core (single input, single output), from normed q and k to the gated output.

Per batch row and head, with S_0 = 0 and k_0 = v_0 = 0:

    α_t = exp(a_dt_t)      λ_t = σ(trap_t)      β_t = (1 − λ_t)·dt_t·α_t      γ_t = λ_t·dt_t
    θ_t = θ_{t−1} + π·tanh(angles_t)·dt_t                     (θ_0 = 0; per head, since dt is per head)
    q̂_t = Rot(θ_t)(q_t + q_bias)      k̂_t = Rot(θ_t)(k_t + k_bias)
    S_t = α_t S_{t−1} + β_t v_{t−1} k̂_{t−1}ᵀ + γ_t v_t k̂_tᵀ
    y_t = (S_t q̂_t + skip·v_t) · silu(z_t)                   (without the gate where z is None)

Rot turns the coordinate pairs (2i, 2i+1), i < n, of its argument by θ_{t,i}; the other N − 2n coordinates stay. Head h
takes q and k of group h // (H/G). The recurrence is the exponential-trapezoidal rule of Mamba-3 (arXiv 2603.15569;
state-spaces/mamba, `mamba_ssm/modules/mamba3.py`); projections, RMSNorm of q and k, and the maps to dt, A are the
block's business. Where a document begins (`document_ids` changes), S_{t−1}, k_{t−1}, v_{t−1} and θ_{t−1} are zero again.

Shape legend: B batch, T sequence, G groups, H heads (a multiple of G), N state (even), P head dim, n rotated pairs
(2n ≤ N).
Dtypes: fp64, fp32, bf16; bf16 is computed in fp32. The result has the dtype of `v`.
Limits: a_dt ≤ 0 (0 is no decay, −50 forgets all); only differences of cumulated decays are exponentiated, so nothing
overflows. The step-by-step backends cumulate θ without reduction mod 2π, so its rounding error grows with |θ_T|; the
chunked ones take whole turns off at every chunk.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from lanewise.ops.observe import Launch
from lanewise.ops.spec import Backend, OpSpec


def reference(
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
    chunk_size: int,  # noqa: ARG001  the recurrence knows no chunks; all backends share the signature
    document_ids: Tensor | None = None,
) -> Tensor:
    """The recurrence as written above, one step after the other; the oracle. Arguments as `ssm_scan`."""
    heads_per_group = v.shape[2] // q.shape[2]
    q_BTHN = q.repeat_interleave(heads_per_group, dim=2) + q_bias
    k_BTHN = k.repeat_interleave(heads_per_group, dim=2) + k_bias
    lam = torch.sigmoid(trap)
    theta_BHn = v.new_zeros(v.shape[0], v.shape[2], angles.shape[-1])
    state_BHPN = v.new_zeros(v.shape[0], v.shape[2], v.shape[3], q.shape[3])
    input_before_BHPN = torch.zeros_like(state_BHPN)
    outputs = []
    for t in range(v.shape[1]):
        if document_ids is not None and t > 0:
            stays = (document_ids[:, t] == document_ids[:, t - 1]).to(v.dtype)
            theta_BHn = theta_BHn * stays[:, None, None]
            state_BHPN = state_BHPN * stays[:, None, None, None]
            input_before_BHPN = input_before_BHPN * stays[:, None, None, None]
        turn_BHn = math.pi * torch.tanh(angles[:, t, None, :]) * dt[:, t, :, None]
        theta_BHn = theta_BHn + turn_BHn
        q_BHN = _rotate(q_BTHN[:, t], theta_BHn)
        k_BHN = _rotate(k_BTHN[:, t], theta_BHn)
        input_BHPN = v[:, t, :, :, None] * k_BHN[:, :, None, :]
        alpha, beta, gamma = (
            w[:, :, None, None]
            for w in (
                torch.exp(a_dt[:, t]),
                (1 - lam[:, t]) * dt[:, t] * torch.exp(a_dt[:, t]),
                lam[:, t] * dt[:, t],
            )
        )
        state_BHPN = alpha * state_BHPN + beta * input_before_BHPN + gamma * input_BHPN
        input_before_BHPN = input_BHPN
        y_BHP = (state_BHPN * q_BHN[:, :, None, :]).sum(-1) + skip[:, None] * v[:, t]
        outputs.append(y_BHP if z is None else y_BHP * F.silu(z[:, t]))
    return torch.stack(outputs, dim=1).to(v.dtype)


def _rotate(x_BHN: Tensor, theta_BHn: Tensor) -> Tensor:
    num_turned = 2 * theta_BHn.shape[-1]
    turned, rest = x_BHN[..., :num_turned], x_BHN[..., num_turned:]
    even, odd = turned[..., 0::2], turned[..., 1::2]
    cos, sin = torch.cos(theta_BHn), torch.sin(theta_BHn)
    pairs = torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1)
    return torch.cat([pairs.flatten(-2), rest], dim=-1)


SPEC = OpSpec(
    name="ssm_scan",
    reference="reference",
    backends=(
        Backend(
            name="chunked.torch",
            target="lanewise.kernels.ssm_scan_torch:chunked",
            note="chunks as batched matmuls, the state passed once a chunk; explicit backward",
        ),
        Backend(
            name="recurrence.torch",
            target="lanewise.kernels.ssm_scan_recurrence_torch:recurrence",
            note="one step after the other under autograd, vectorised over batch and heads",
        ),
        Backend(
            name="reference",
            target="lanewise.ops.ssm_scan:reference",
            note="the oracle: the formula, step by step",
        ),
    ),
)


def ssm_scan(
    run: Launch,
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
    """Scan a sequence with the Mamba-3 recurrence, with the chosen backend.

    Args:
        run: the chosen backend.
        q: RMS-normed queries ("C") [B, T, G, N].
        k: RMS-normed keys ("B") [B, T, G, N].
        v: values ("x") [B, T, H, P].
        dt: step sizes ≥ 0 [B, T, H].
        a_dt: log decay A·dt ≤ 0 [B, T, H].
        trap: λ before its sigmoid [B, T, H].
        angles: rotation speed before its tanh [B, T, n], shared by all heads.
        q_bias: added to q of each head [H, N].
        k_bias: added to k of each head [H, N].
        skip: weight of v in the output ("D") [H].
        z: output gate before its silu [B, T, H, P]; None leaves the gate out.
        chunk_size: steps a chunk ≥ 1, for backends that have chunks; T need not be a multiple.
        document_ids: int64 [B, T], rising by one where a document begins inside a row; None for one document a row.

    Returns:
        [B, T, H, P] in the dtype of `v`.

    Raises:
        ValueError: a shape does not fit.
    """
    batch, length, groups, state = q.shape
    heads, head_dim = v.shape[2:]
    expected = {
        "k": (k, (batch, length, groups, state)),
        "v": (v, (batch, length, heads, head_dim)),
        "dt": (dt, (batch, length, heads)),
        "a_dt": (a_dt, (batch, length, heads)),
        "trap": (trap, (batch, length, heads)),
        "angles": (angles, (batch, length, angles.shape[-1])),
        "q_bias": (q_bias, (heads, state)),
        "k_bias": (k_bias, (heads, state)),
        "skip": (skip, (heads,)),
        "z": (z, (batch, length, heads, head_dim)),
        "document_ids": (document_ids, (batch, length)),
    }
    for name, (tensor, shape) in expected.items():
        if tensor is not None and tensor.shape != shape:
            raise ValueError(
                f"ssm_scan: {name} is {list(tensor.shape)} and must be {list(shape)} "
                f"beside q {list(q.shape)} and v {list(v.shape)}"
            )
    if heads % groups:
        raise ValueError(f"ssm_scan: {groups} groups do not divide {heads} heads; choose a divisor")
    if state % 2 or 2 * angles.shape[-1] > state:
        raise ValueError(
            f"ssm_scan: state size {state} and {angles.shape[-1]} rotated pairs do not fit; "
            "the state size must be even and at least twice the pairs"
        )
    if chunk_size < 1:
        raise ValueError(f"ssm_scan: chunk_size is {chunk_size} and must be at least 1")
    y: Tensor = run(
        q, k, v, dt, a_dt, trap, angles, q_bias, k_bias, skip, z, chunk_size, document_ids
    )
    return y
