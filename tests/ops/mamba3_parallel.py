"""The closed form of the Mamba-3 scan over whole rows, a second oracle beside the step recurrence; nothing is shared.

With s_t = γ_t + (1 − λ_{t+1})·dt_{t+1} (the second term 0 at the end of a document) and all ranks of a step as its rows,

    Y = [tril(Q̂K̂ᵀ · s) ∘ exp(segsum(a_dt))] V − (1 − λ_{t+1})·dt_{t+1} · (Q̂_t K̂_tᵀ) V_t + D V

(the parallel form of the Mamba-3 tests of state-spaces/mamba). Q̂·K̂ is never rotated here: the products of pairs are
complex numbers, turned by the difference of two angles. Everything is [T, T] and fp64.
"""

import math

import torch
from torch import Tensor


def parallel_form(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    dt: Tensor,
    a_dt: Tensor,
    trap: Tensor,
    angles: Tensor,
    skip: Tensor,
    *,
    pairs: Tensor,
    document_ids: Tensor | None = None,
) -> Tensor:
    """Ungated output of every rank.

    Args:
        q: queries of every head with their biases [B, T, R, H, N].
        k: keys of every head with their biases [B, T, R, H, N].
        v: values of every rank [B, T, R, H, P].
        dt: [B, T, H].
        a_dt: [B, T, H].
        trap: [B, T, H].
        angles: [B, T, n].
        skip: [H].
        pairs: coordinates that turn together, int64 [n, 2].
        document_ids: int64 [B, T] or None.

    Returns:
        [B, T, R, H, P].
    """
    batch, length = v.shape[:2]
    if document_ids is None:
        document_ids = torch.zeros(batch, length, dtype=torch.int64)
    same_BTS = document_ids[:, :, None] == document_ids[:, None, :]
    causal_TS = torch.ones(length, length, dtype=torch.bool).tril()
    lam = torch.sigmoid(trap)
    ahead = torch.zeros_like(dt)
    ahead[:, :-1] = (1 - lam[:, 1:]) * dt[:, 1:] * same_BTS.diagonal(1, 1, 2).unsqueeze(-1)
    scale = lam * dt + ahead

    # Sums over s < u ≤ t, one masked sum for every pair of steps.
    between_TSU = (torch.arange(length)[None, None] <= torch.arange(length)[:, None, None]) & (
        torch.arange(length)[None, None] > torch.arange(length)[None, :, None]
    )
    segsum = torch.einsum("tsu,buh->btsh", between_TSU.double(), a_dt)
    turn = math.pi * torch.tanh(angles)[:, :, None] * dt[..., None]
    theta_difference = torch.einsum("tsu,buhn->btshn", between_TSU.double(), turn)

    rest = [i for i in range(q.shape[-1]) if i not in pairs.flatten().tolist()]
    q_pairs = torch.complex(q[..., pairs[:, 0]], q[..., pairs[:, 1]])
    k_pairs = torch.complex(k[..., pairs[:, 0]], k[..., pairs[:, 1]])
    turned = torch.einsum(
        "btrhn,bsqhn,btshn->btsrqh",
        q_pairs,
        k_pairs.conj(),
        torch.polar(torch.ones_like(theta_difference), theta_difference),
    ).real
    products = turned + torch.einsum("btrhn,bsqhn->btsrqh", q[..., rest], k[..., rest])
    visible = (causal_TS & same_BTS)[..., None]
    weights = torch.where(visible, segsum, -math.inf).exp() * scale[:, None]
    y = torch.einsum("btsrqh,btsh,bsqhp->btrhp", products, weights, v)
    on_diagonal = products.diagonal(0, 1, 2)  # [B, R, R, H, T]
    y = y - torch.einsum("brqht,bth,btqhp->btrhp", on_diagonal, ahead, v)
    return y + skip[:, None] * v
