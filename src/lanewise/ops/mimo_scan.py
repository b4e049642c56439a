"""`mimo_scan`: the Mamba-3 mixer's core with several inputs and outputs (MIMO, rank R), from normed q and k to y.

Per batch row and head, with S_0 = 0 and k_0 = v_0 = 0; α, β, γ and θ of a step are those of `ops.ssm_scan`:

    v_{t,r} = v_t ∘ ψx_r      q̂_{t,r} = Rot(θ_t)(q_{t,r} + q_bias_r)      k̂_{t,r} = Rot(θ_t)(k_{t,r} + k_bias_r)
    S_t = α_t S_{t−1} + Σ_r (β_t v_{t−1,r} k̂_{t−1,r}ᵀ + γ_t v_{t,r} k̂_{t,r}ᵀ)           one state for all ranks
    y_{t,r} = S_t q̂_{t,r} + skip·v_{t,r}
    y_t = Σ_r y_{t,r} ∘ silu(z_t ∘ ψz_r) ∘ ψo_r                  (where z, ψz, ψo are None: all y_{t,r})

Rot turns the coordinate pairs (i, i + N/2), i < n, by θ_{t,i}: the public MIMO kernels pair halves where the SISO ones
pair neighbours, so with R = 1 and ψ = 1 this is `ssm_scan` with the coordinates of q and k in another order. Head h takes
q and k of group h // (H/G). Where a document begins (`document_ids` changes), S_{t−1}, k_{t−1}, v_{t−1} and θ_{t−1} are
zero again. Source: Mamba-3 (arXiv 2603.15569), state-spaces/mamba (`mamba_ssm/modules/mamba3.py`).

Shape legend: B batch, T sequence, R rank, G groups, H heads (a multiple of G), N state (even), P head dim, n rotated
pairs (2n ≤ N).
Dtypes: fp64, fp32, bf16; bf16 is computed in fp32, with an fp32 state. The result has the dtype of `v`.
Limits: as `ops.ssm_scan`.
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
    psi_x: Tensor,
    psi_z: Tensor | None,
    psi_o: Tensor | None,
    chunk_size: int,  # noqa: ARG001  the recurrence knows no chunks; all backends share the signature
    document_ids: Tensor | None = None,
) -> Tensor:
    """The recurrence as written above, one step after the other; the oracle. Arguments as `mimo_scan`."""
    batch, length, heads, head_dim = v.shape
    heads_per_group = heads // q.shape[3]
    q_BTHRN = q.transpose(2, 3).repeat_interleave(heads_per_group, dim=2) + q_bias
    k_BTHRN = k.transpose(2, 3).repeat_interleave(heads_per_group, dim=2) + k_bias
    lam = torch.sigmoid(trap)
    theta_BHn = v.new_zeros(batch, heads, angles.shape[-1])
    state_BHPN = v.new_zeros(batch, heads, head_dim, q.shape[-1])
    input_before_BHPN = torch.zeros_like(state_BHPN)
    outputs = []
    for t in range(length):
        if document_ids is not None and t > 0:
            stays = (document_ids[:, t] == document_ids[:, t - 1]).to(v.dtype)
            theta_BHn = theta_BHn * stays[:, None, None]
            state_BHPN = state_BHPN * stays[:, None, None, None]
            input_before_BHPN = input_before_BHPN * stays[:, None, None, None]
        theta_BHn = theta_BHn + math.pi * torch.tanh(angles[:, t, None, :]) * dt[:, t, :, None]
        q_BHRN = _rotate_halves(q_BTHRN[:, t], theta_BHn[:, :, None])
        k_BHRN = _rotate_halves(k_BTHRN[:, t], theta_BHn[:, :, None])
        v_BHRP = v[:, t, :, None, :] * psi_x
        input_BHPN = (v_BHRP[..., :, None] * k_BHRN[..., None, :]).sum(2)
        alpha = torch.exp(a_dt[:, t])[:, :, None, None]
        beta = ((1 - lam[:, t]) * dt[:, t])[:, :, None, None] * alpha
        gamma = (lam[:, t] * dt[:, t])[:, :, None, None]
        state_BHPN = alpha * state_BHPN + beta * input_before_BHPN + gamma * input_BHPN
        input_before_BHPN = input_BHPN
        y_BHRP = (state_BHPN[:, :, None] * q_BHRN[..., None, :]).sum(-1)
        outputs.append(y_BHRP + skip[:, None, None] * v_BHRP)
    y_BTRHP = torch.stack(outputs, dim=1).transpose(2, 3)
    if z is None or psi_z is None or psi_o is None:
        return y_BTRHP.to(v.dtype)
    gate_BTRHP = F.silu(z[:, :, None] * psi_z.transpose(0, 1))
    return (y_BTRHP * gate_BTRHP * psi_o.transpose(0, 1)).sum(2).to(v.dtype)


def _rotate_halves(x: Tensor, theta: Tensor) -> Tensor:
    half, num_pairs = x.shape[-1] // 2, theta.shape[-1]
    first, second = x[..., :half], x[..., half:]
    cos, sin = torch.cos(theta), torch.sin(theta)
    a, b = first[..., :num_pairs], second[..., :num_pairs]
    turned_first, turned_second = a * cos - b * sin, a * sin + b * cos
    return torch.cat(
        [turned_first, first[..., num_pairs:], turned_second, second[..., num_pairs:]], dim=-1
    )


SPEC = OpSpec(
    name="mimo_scan",
    reference="reference",
    backends=(
        Backend(
            name="chunked.torch",
            target="lanewise.kernels.mimo_scan_torch:chunked",
            note="chunks of steps × ranks as batched matmuls, the state passed once a chunk; explicit backward",
        ),
        Backend(
            name="recurrence.torch",
            target="lanewise.kernels.mimo_scan_recurrence_torch:recurrence",
            note="one step after the other under autograd, vectorised over batch and heads",
        ),
        Backend(
            name="reference",
            target="lanewise.ops.mimo_scan:reference",
            note="the oracle: the formula, step by step",
        ),
    ),
)


def mimo_scan(
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
    psi_x: Tensor,
    psi_z: Tensor | None,
    psi_o: Tensor | None,
    chunk_size: int,
    document_ids: Tensor | None = None,
) -> Tensor:
    """Scan a sequence with the Mamba-3 MIMO recurrence, with the chosen backend.

    Args:
        run: the chosen backend.
        q: RMS-normed queries ("C") [B, T, R, G, N].
        k: RMS-normed keys ("B") [B, T, R, G, N].
        v: values ("x") [B, T, H, P].
        dt: step sizes ≥ 0 [B, T, H].
        a_dt: log decay A·dt ≤ 0 [B, T, H].
        trap: λ before its sigmoid [B, T, H].
        angles: rotation speed before its tanh [B, T, n], shared by all heads.
        q_bias: added to q of each head [H, R, N].
        k_bias: added to k of each head [H, R, N].
        skip: weight of v in the output ("D") [H].
        z: output gate before its silu [B, T, H, P]; None, together with `psi_z` and `psi_o`, asks for every rank's
            output without gate.
        psi_x: what each rank sees of v [H, R, P].
        psi_z: what each rank sees of z [H, R, P].
        psi_o: weight of each rank in the output [H, R, P].
        chunk_size: steps a chunk ≥ 1, for backends that have chunks; T need not be a multiple.
        document_ids: int64 [B, T], rising by one where a document begins inside a row; None for one document a row.

    Returns:
        [B, T, H, P], or [B, T, R, H, P] without z, in the dtype of `v`.

    Raises:
        ValueError: a shape does not fit, or z, psi_z and psi_o are not all given or all None.
    """
    batch, length, rank, groups, state = q.shape
    heads, head_dim = v.shape[2:]
    if not (z is None) == (psi_z is None) == (psi_o is None):
        missing = [n for n, x in (("z", z), ("psi_z", psi_z), ("psi_o", psi_o)) if x is None]
        raise ValueError(
            f"mimo_scan: {' and '.join(missing)} is None beside given ones; give z, psi_z and psi_o, or none of them"
        )
    expected = {
        "k": (k, (batch, length, rank, groups, state)),
        "v": (v, (batch, length, heads, head_dim)),
        "dt": (dt, (batch, length, heads)),
        "a_dt": (a_dt, (batch, length, heads)),
        "trap": (trap, (batch, length, heads)),
        "angles": (angles, (batch, length, angles.shape[-1])),
        "q_bias": (q_bias, (heads, rank, state)),
        "k_bias": (k_bias, (heads, rank, state)),
        "skip": (skip, (heads,)),
        "z": (z, (batch, length, heads, head_dim)),
        "psi_x": (psi_x, (heads, rank, head_dim)),
        "psi_z": (psi_z, (heads, rank, head_dim)),
        "psi_o": (psi_o, (heads, rank, head_dim)),
        "document_ids": (document_ids, (batch, length)),
    }
    for name, (tensor, shape) in expected.items():
        if tensor is not None and tensor.shape != shape:
            raise ValueError(
                f"mimo_scan: {name} is {list(tensor.shape)} and must be {list(shape)} "
                f"beside q {list(q.shape)} and v {list(v.shape)}"
            )
    if heads % groups:
        raise ValueError(
            f"mimo_scan: {groups} groups do not divide {heads} heads; choose a divisor"
        )
    if state % 2 or 2 * angles.shape[-1] > state:
        raise ValueError(
            f"mimo_scan: state size {state} and {angles.shape[-1]} rotated pairs do not fit; "
            "the state size must be even and at least twice the pairs"
        )
    if chunk_size < 1:
        raise ValueError(f"mimo_scan: chunk_size is {chunk_size} and must be at least 1")
    y: Tensor = run(
        q, k, v, dt, a_dt, trap, angles, q_bias, k_bias, skip,
        z, psi_x, psi_z, psi_o, chunk_size, document_ids,
    )  # fmt: skip
    return y
