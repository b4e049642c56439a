"""Decoding state of Mamba-3: what a text leaves behind, what it adds to the tokens that follow, and the single step.

The recurrence of `ops.ssm_scan` and `ops.mimo_scan` is linear in its state, so the next T tokens see the scan of
themselves, which starts from nothing, plus the decayed state before them. With L_t the cumulated a_dt of these tokens,
λ, dt of the first one and w_s as in the chunked kernels (w_T = γ_T, since the token after the last is not known yet),

    S' = S + (1 − λ_1)·dt_1 · Σ_r v_{0,r} k̂_{0,r}ᵀ                   the look-back of the first token, still undecayed
    y_{t,r} += e^{L_t} S' q̂_{t,r}
    S ← e^{L_T} S' + Σ_{s,r} e^{L_T−L_s} w_s v_{s,r} k̂_{s,r}ᵀ

Legend: B batch, T new tokens, R rank (1 for SISO), H heads, P head dim, N state, n rotated pairs.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class MambaState(NamedTuple):
    """State of one Mamba-3 layer, fp32 (fp64 in an fp64 model).

    Attributes:
        angle: θ of the last token, mod 2π [B, H, n].
        state: S [B, H, P, N].
        k: rotated key of the last token [B, R, H, N].
        v: value of the last token [B, R, H, P].
    """

    angle: Tensor
    state: Tensor
    k: Tensor
    v: Tensor


class ScanInputs(NamedTuple):
    """The next tokens as the recurrence takes them.

    Attributes:
        q: queries of every head with their biases, not rotated [B, T, R, H, N].
        k: keys likewise.
        v: values of every rank [B, T, R, H, P].
        dt: [B, T, H].
        a_dt: [B, T, H].
        lam: λ [B, T, H].
        turn: π·tanh(angles)·dt [B, T, H, n].
        pairs: coordinates that turn together, as two slices of N.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    dt: Tensor
    a_dt: Tensor
    lam: Tensor
    turn: Tensor
    pairs: tuple[slice, slice]


def pair_slices(num_pairs: int, state_size: int, *, is_mimo: bool) -> tuple[slice, slice]:
    """First and second coordinates of the rotated pairs: neighbours in SISO, halves in MIMO."""
    if is_mimo:
        half = state_size // 2
        return slice(0, num_pairs), slice(half, half + num_pairs)
    return slice(0, 2 * num_pairs, 2), slice(1, 2 * num_pairs, 2)


def step(inputs: ScanInputs, state: MambaState, skip: Tensor) -> tuple[Tensor, MambaState]:
    """One token (T = 1): the ungated output of every rank [B, 1, R, H, P] and the state after it."""
    q_BTRHN, after = _advance(inputs, state)[1:]
    y = torch.einsum("bhpn,btrhn->btrhp", after.state, q_BTRHN)
    return y + skip[:, None] * inputs.v, after


def carry(inputs: ScanInputs, state: MambaState | None) -> tuple[Tensor | None, MambaState]:
    """What the state before adds to the ungated output of every rank, and the state after the last token.

    Args:
        inputs: T ≥ 1 tokens.
        state: before them, or None at the start of the texts.

    Returns:
        [B, T, R, H, P], or None without a state, and the state.
    """
    entering, q_BTRHN, after = _advance(inputs, state)
    if entering is None:
        return None, after
    decay_BTH = torch.exp(inputs.a_dt.cumsum(1))
    y = torch.einsum("bhpn,btrhn,bth->btrhp", entering, q_BTRHN, decay_BTH)
    return y, after


def _advance(
    inputs: ScanInputs, state: MambaState | None
) -> tuple[Tensor | None, Tensor, MambaState]:
    """S' or None, the rotated queries [B, T, R, H, N], and the state after the last token."""
    # In fp64 until whole turns are off: neither a long text nor the remainder costs precision.
    theta_BTHn = inputs.turn.cumsum(1, dtype=torch.float64)
    if state is not None:
        theta_BTHn = theta_BTHn + state.angle.unsqueeze(1)
    theta_BTHn = theta_BTHn.remainder(2 * math.pi).to(inputs.turn.dtype)
    q_BTRHN = _rotate(inputs.q, theta_BTHn, inputs.pairs)
    k_BTRHN = _rotate(inputs.k, theta_BTHn, inputs.pairs)

    gamma = inputs.lam * inputs.dt
    ahead = F.pad((inputs.dt - gamma)[:, 1:], (0, 0, 0, 1))
    # Sums of just the steps that follow, not differences of sums from the start: those of a long text are large, and the
    # latest tokens, which weigh most, would get their whole rounding error.
    until_end = F.pad(inputs.a_dt[:, 1:], (0, 0, 0, 1)).flip(1).cumsum(1).flip(1).exp()
    after_BHPN = torch.einsum(
        "bth,btrhp,btrhn->bhpn", (gamma + ahead) * until_end, inputs.v, k_BTRHN
    )
    entering = None
    if state is not None:
        look_back = (inputs.dt - gamma)[:, 0]
        entering = state.state + torch.einsum("bh,brhp,brhn->bhpn", look_back, state.v, state.k)
        after_BHPN = after_BHPN + torch.exp(inputs.a_dt.sum(1))[..., None, None] * entering
    after = MambaState(theta_BTHn[:, -1], after_BHPN, k_BTRHN[:, -1], inputs.v[:, -1])
    return entering, q_BTRHN, after


def _rotate(x_BTRHN: Tensor, theta_BTHn: Tensor, pairs: tuple[slice, slice]) -> Tensor:
    cos, sin = theta_BTHn.cos().unsqueeze(2), theta_BTHn.sin().unsqueeze(2)
    first, second = (x_BTRHN[..., coordinates] for coordinates in pairs)
    turned = x_BTRHN.clone()
    turned[..., pairs[0]] = first * cos - second * sin
    turned[..., pairs[1]] = first * sin + second * cos
    return turned
