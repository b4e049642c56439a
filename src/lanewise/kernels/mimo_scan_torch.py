"""`mimo_scan`, `chunked.torch`: the MIMO scan as batched matmuls over chunks of ranks × steps, the core with an explicit
backward.

Every (rank, step) of a chunk is a row. With L_t the cumulated a_dt inside a chunk and w_s = γ_s + (1 − λ_{s+1})·dt_{s+1},
the recurrence of `ops.mimo_scan` is, exactly and without a growing exponential,

    y_{t,r} = Σ_{s,r'} W_ts (q̂_{t,r}·k̂_{s,r'}) v_{s,r'} + skip·v_{t,r} + e^{L_t} q̂_{t,r} R_c             inside chunk c
    W_ts = e^{L_t−L_s} w_s for s < t, γ_t for s = t, 0 for s > t
    R_{c+1} = e^{L_end} R_c + Σ_{s,r} e^{L_end−L_s} w_s k̂_{s,r} v_{s,r}ᵀ                                  R_0 = 0

so ranks of one step all meet each other with weight γ (the diagonal is a block of R × R). In the backward pass the decays
need no matrix: dL_t = Σ_r ⟨dq̂_{t,r}, q̂_{t,r}⟩ − ⟨dk̂_{t,r}, k̂_{t,r}⟩ (the diagonal blocks cancel in the sum over ranks),
and the chunk's last L adds ⟨dR_{c+1}, R_{c+1}⟩. Bias, rotation, ψ, skip and gate are left to autograd.

Where a document begins inside a row, the decays that would reach over the boundary (e^{L_t−L_s}, e^{L_t}) are zero, and L
and θ are cumulated anew; the look-ahead of a document's last step needs no mask, since only later steps would see it.

Shapes: B batch, T sequence (padded to C·L), R rank, H heads, G groups, N state, P head dim, n rotated pairs, C chunks,
L steps a chunk, X = B·H, M = R·L rows a chunk, ranks outermost so that a [L, L] matrix repeats in contiguous blocks.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from lanewise.kernels.documents import ChunkDocuments, cumulated_angle


def chunked(
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
    """All chunks at once, the state passed from chunk to chunk. Arguments and result as `ops.mimo_scan.mimo_scan`."""
    dtype = torch.promote_types(v.dtype, torch.float32)
    batch, length, rank, _, _ = q.shape
    chunk = min(chunk_size, length)
    num_chunks = -(-length // chunk)
    documents = None if document_ids is None else ChunkDocuments.of(document_ids, num_chunks, chunk)

    def pad(x: Tensor) -> Tensor:
        # With dt = 0 the steps after T neither decay nor add, and their outputs are cut off.
        missing = num_chunks * chunk - length
        return F.pad(x, (0, 0) * (x.dim() - 2) + (0, missing)) if missing else x

    def rows(x_BTRHD: Tensor) -> Tensor:
        x_BCLRHD = x_BTRHD.unflatten(1, (num_chunks, chunk))
        return x_BCLRHD.permute(1, 0, 4, 3, 2, 5).flatten(3, 4).flatten(1, 2).contiguous()

    def per_chunk(x_BHT: Tensor) -> Tensor:
        x_BHCL = x_BHT.unflatten(2, (num_chunks, chunk))
        return x_BHCL.permute(2, 0, 1, 3).flatten(1, 2).contiguous()

    dt_BHT, a_BHT, trap_BHT = (pad(x).to(dtype).transpose(1, 2) for x in (dt, a_dt, trap))
    gamma_BHT = torch.sigmoid(trap_BHT) * dt_BHT
    ahead_BHT = F.pad((dt_BHT - gamma_BHT)[..., 1:], (0, 1))

    speed_B1Tn = math.pi * torch.tanh(pad(angles).to(dtype)).unsqueeze(1)
    turn_BHTn = speed_B1Tn * dt_BHT.unsqueeze(-1)
    theta_BHTn = cumulated_angle(turn_BHTn, num_chunks, documents)
    theta_BT1Hn = theta_BHTn.transpose(1, 2).unsqueeze(2)
    cos, sin = theta_BT1Hn.cos(), theta_BT1Hn.sin()
    q_CXMN, k_CXMN = (
        rows(_rotate_halves(_biased(pad(x).to(dtype), bias.to(dtype)), cos, sin))
        for x, bias in ((q, q_bias), (k, k_bias))
    )
    v_BTRHP = v.to(dtype).unsqueeze(2) * psi_x.to(dtype).transpose(0, 1)

    y_CXMP = torch.ops.lanewise.mimo_scan_core(
        q_CXMN,
        k_CXMN,
        rows(pad(v_BTRHP)),
        per_chunk(a_BHT),
        per_chunk(gamma_BHT + ahead_BHT),
        per_chunk(gamma_BHT),
        document_ids,
        rank,
    )[0]
    y_CBHRLP = y_CXMP.unflatten(2, (rank, chunk)).unflatten(1, (batch, -1))
    y_BTRHP = y_CBHRLP.permute(1, 0, 4, 3, 2, 5).flatten(1, 2)[:, :length]
    y_BTRHP = y_BTRHP + skip.to(dtype).unsqueeze(-1) * v_BTRHP
    if z is None or psi_z is None or psi_o is None:
        return y_BTRHP.to(v.dtype)
    gate_BTRHP = F.silu(z.to(dtype).unsqueeze(2) * psi_z.to(dtype).transpose(0, 1))
    return (y_BTRHP * gate_BTRHP * psi_o.to(dtype).transpose(0, 1)).sum(2).to(v.dtype)


def _biased(x_BTRGN: Tensor, bias_HRN: Tensor) -> Tensor:
    """q or k of every head with its bias [B, T, R, H, N]."""
    groups = x_BTRGN.shape[3]
    bias_RGJN = bias_HRN.transpose(0, 1).unflatten(1, (groups, -1))
    return (x_BTRGN.unsqueeze(4) + bias_RGJN).flatten(3, 4)


def _rotate_halves(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the pairs (i, i + N/2), i < n, of [..., N]."""
    half, num_pairs = x.shape[-1] // 2, cos.shape[-1]
    a, first_rest, b, second_rest = x.split(
        [num_pairs, half - num_pairs, num_pairs, half - num_pairs], dim=-1
    )
    return torch.cat([a * cos - b * sin, first_rest, a * sin + b * cos, second_rest], dim=-1)


class _Decays(NamedTuple):
    """Weights that follow from a_dt and the documents; cheap enough to be computed again in the backward pass."""

    same_CXLL: Tensor | None  # s ≤ t of the same document
    log_decay_CXL: Tensor  # L, fp64: differences of it are exponentiated
    decay_CXL: Tensor  # e^L, 0 where the state before the chunk is of another document
    end_decay_CXL: Tensor  # e^{L_end − L}, 0 where the chunk ends in another document


def _decays(a_CXL: Tensor, document_ids: Tensor | None) -> _Decays:
    num_chunks, rows, chunk = a_CXL.shape
    if document_ids is None:
        log_decay = a_CXL.cumsum(-1, dtype=torch.float64)
        end_decay = (log_decay[..., -1:] - log_decay).exp()
        return _Decays(None, log_decay, log_decay.exp().to(a_CXL.dtype), end_decay.to(a_CXL.dtype))
    documents = ChunkDocuments.of(document_ids, num_chunks, chunk)
    same, before, last = (
        documents.per_head(mask, rows // document_ids.shape[0])
        for mask in (documents.same_CBLL, documents.before_CBL, documents.last_CBL)
    )
    log_decay = (same.double() @ a_CXL.double().unsqueeze(-1)).squeeze(-1)
    # Filled, not multiplied: the difference of two documents' sums may overflow.
    end_decay = (log_decay[..., -1:] - log_decay).masked_fill_(~last, -math.inf).exp()
    return _Decays(
        same, log_decay, (log_decay.exp() * before).to(a_CXL.dtype), end_decay.to(a_CXL.dtype)
    )


def _decay_matrix(decays: _Decays) -> Tensor:
    """e^{L_t−L_s} for s < t of the same document, else 0 [C, X, L, L]."""
    log_decay, same = decays.log_decay_CXL, decays.same_CXLL
    length = log_decay.shape[-1]
    excluded = torch.ones(length, length, dtype=torch.bool, device=log_decay.device).triu_()
    if same is not None:
        excluded = excluded | ~same
    difference = (log_decay.unsqueeze(-1) - log_decay.unsqueeze(-2)).to(decays.decay_CXL.dtype)
    return difference.masked_fill_(excluded, -math.inf).exp_()


def _score_weights(decay_CXLL: Tensor, w_CXL: Tensor, gamma_CXL: Tensor) -> Tensor:
    """W: e^{L_t−L_s} w_s below the diagonal, γ_t on it."""
    matrix = decay_CXLL * w_CXL.unsqueeze(-2)
    matrix.diagonal(dim1=-2, dim2=-1).copy_(gamma_CXL)
    return matrix


def _blocks(x_CXMM: Tensor, rank: int) -> Tensor:
    """A view [C, X, R, L, R, L]."""
    return x_CXMM.unflatten(-1, (rank, -1)).unflatten(-3, (rank, -1))


def _per_row(x_CXL: Tensor, rank: int) -> Tensor:
    """[C, X, L] → [C, X, M, 1], the same for all ranks."""
    return x_CXL.repeat(1, 1, rank).unsqueeze(-1)


@torch.library.custom_op("lanewise::mimo_scan_core", mutates_args=())
def _forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    a: Tensor,
    w: Tensor,
    gamma: Tensor,
    document_ids: Tensor | None,
    rank: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    decays = _decays(a, document_ids)
    scores_CXMM = _bmm(q, k.mT)
    decay_CXLL = _decay_matrix(decays)
    weights = _score_weights(decay_CXLL, w, gamma)
    mixing = _blocks(scores_CXMM, rank) * weights[:, :, None, :, None, :]
    y_CXMP = _bmm(mixing.flatten(4, 5).flatten(2, 3), v)

    into_state = _per_row(w * decays.end_decay_CXL, rank)[:-1]
    states_CXNP = _bmm(k[:-1].mT, v[:-1] * into_state)  # after each chunk but the last
    for chunk in range(1, states_CXNP.shape[0]):
        states_CXNP[chunk].addcmul_(
            decays.decay_CXL[chunk, :, -1, None, None], states_CXNP[chunk - 1]
        )
    y_CXMP[1:].addcmul_(_bmm(q[1:], states_CXNP), _per_row(decays.decay_CXL, rank)[1:])
    return y_CXMP, scores_CXMM, decay_CXLL, states_CXNP


@_forward.register_fake
def _(q, k, v, a, w, gamma, document_ids, rank):
    chunks, rows, num_rows, state = q.shape
    chunk = a.shape[-1]
    return (
        torch.empty_like(v),
        v.new_empty(chunks, rows, num_rows, num_rows),
        v.new_empty(chunks, rows, chunk, chunk),
        v.new_empty(chunks - 1, rows, state, v.shape[-1]),
    )


def _bmm(left: Tensor, right: Tensor) -> Tensor:
    """Matmul with chunks and batch·heads as one batch dim."""
    return torch.bmm(left.flatten(0, 1), right.flatten(0, 1)).unflatten(0, left.shape[:2])


@torch.library.custom_op("lanewise::mimo_scan_core_backward", mutates_args=())
def _backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    a: Tensor,
    w: Tensor,
    gamma: Tensor,
    document_ids: Tensor | None,
    scores_CXMM: Tensor,
    decay_CXLL: Tensor,
    states_CXNP: Tensor,
    rank: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    decays = _decays(a, document_ids)
    dy_CXMP = grad.contiguous()
    decay_rows = _per_row(decays.decay_CXL, rank)

    # Inside the chunks.
    weights = _score_weights(decay_CXLL, w, gamma)[:, :, None, :, None, :]
    mixing = (_blocks(scores_CXMM, rank) * weights).flatten(4, 5).flatten(2, 3)
    dv_CXMP = _bmm(mixing.mT, dy_CXMP)
    dmixing = _bmm(dy_CXMP, v.mT)
    dweights_CXLL = _blocks(dmixing * scores_CXMM, rank).sum((2, 4))
    dgamma_CXL = dweights_CXLL.diagonal(dim1=-2, dim2=-1).clone()
    dw_CXL = dweights_CXLL.mul_(decay_CXLL).sum(-2)
    dscores = _blocks(dmixing, rank).mul_(weights).flatten(4, 5).flatten(2, 3)
    dq_CXMN = _bmm(dscores, k)
    dk_CXMN = _bmm(dscores.mT, q)

    # Through the states: dstates[c] is the gradient of the state after chunk c, from every later chunk.
    dy_decayed = dy_CXMP[1:] * decay_rows[1:]
    dstates_CXNP = _bmm(q[1:].mT, dy_decayed)
    for chunk in range(dstates_CXNP.shape[0] - 2, -1, -1):
        dstates_CXNP[chunk].addcmul_(
            decays.decay_CXL[chunk + 1, :, -1, None, None], dstates_CXNP[chunk + 1]
        )
    dq_CXMN[1:] += _bmm(dy_decayed, states_CXNP.mT)
    into_state = _per_row(w * decays.end_decay_CXL, rank)[:-1]
    dv_CXMP[:-1].addcmul_(_bmm(k[:-1], dstates_CXNP), into_state)
    dinto_CXMN = _bmm(v[:-1], dstates_CXNP.mT)
    dk_CXMN[:-1].addcmul_(dinto_CXMN, into_state)
    dw_CXL[:-1] += _sum_ranks(dinto_CXMN.mul_(k[:-1]), rank) * decays.end_decay_CXL[:-1]

    # Decays.
    dlog_CXL = _sum_ranks(dq_CXMN * q, rank) - _sum_ranks(dk_CXMN * k, rank)
    dlog_CXL[:-1, :, -1] += (dstates_CXNP * states_CXNP).sum((-2, -1))
    if decays.same_CXLL is None:
        da_CXL = dlog_CXL.flip(-1).cumsum(-1).flip(-1)
    else:
        da_CXL = (decays.same_CXLL.to(a.dtype).mT @ dlog_CXL.unsqueeze(-1)).squeeze(-1)
    return dq_CXMN, dk_CXMN, dv_CXMP, da_CXL, dw_CXL, dgamma_CXL


@_backward.register_fake
def _(grad, q, k, v, a, w, gamma, *_):
    return tuple(torch.empty_like(x) for x in (q, k, v, a, w, gamma))


def _sum_ranks(x_CXMN: Tensor, rank: int) -> Tensor:
    """Σ over ranks and coordinates [C, X, L]."""
    return x_CXMN.sum(-1).unflatten(-1, (rank, -1)).sum(-2)


def _save_for_backward(ctx, inputs, output):
    *tensors, ctx.rank = inputs
    ctx.save_for_backward(*tensors, *output[1:])
    ctx.mark_non_differentiable(*output[1:])


def _call_backward(ctx, grad, *_):
    return (
        *torch.ops.lanewise.mimo_scan_core_backward(grad, *ctx.saved_tensors, ctx.rank),
        None,
        None,
    )


_forward.register_autograd(_call_backward, setup_context=_save_for_backward)
