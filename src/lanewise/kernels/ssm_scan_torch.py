"""`ssm_scan`, `chunked.torch`: the scan as batched matmuls over chunks, with an explicit backward.

With L_t the cumulated a_dt inside a chunk and the look-ahead weight w_s = γ_s + (1 − λ_{s+1})·dt_{s+1}, the recurrence of
`ops.ssm_scan` is, exactly and without a growing exponential,

    y_t = Σ_{s<t} e^{L_t−L_s} w_s (q̂_t·k̂_s) v_s + (γ_t (q̂_t·k̂_t) + skip) v_t + e^{L_t} q̂_t R_c       inside chunk c
    R_{c+1} = e^{L_end} R_c + Σ_s e^{L_end−L_s} w_s k̂_s v_sᵀ                                            R_0 = 0

(the parallel form of the Mamba-3 tests, with the look-ahead taken off the diagonal). In the backward pass the gradient of
the decays needs no matrix: dL_t = ⟨dq̂_t, q̂_t⟩ − ⟨dk̂_t, k̂_t⟩, the diagonal terms cancel, and the chunk's last L adds
⟨dR_{c+1}, R_{c+1}⟩.

Where a document begins inside a row, the decays that would reach over the boundary (e^{L_t−L_s}, e^{L_t}) are zero, and L
and θ are cumulated anew; the rest is the same. The look-ahead of a document's last step needs no mask: only later steps
would see it.

Shapes: B batch, T sequence (padded to C·L), H heads, G groups, J = H/G heads of a group, N state, P head dim, n rotated
pairs, C chunks, L steps a chunk, X = B·H. Chunks come first, so that "all chunks but one" is a contiguous slice.
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
    chunk_size: int,
    document_ids: Tensor | None = None,
) -> Tensor:
    """All chunks at once, the state passed from chunk to chunk. Arguments and result as `ops.ssm_scan.ssm_scan`."""
    return torch.ops.lanewise.ssm_scan_chunked(
        q, k, v, dt, a_dt, trap, angles, q_bias, k_bias, skip, z, chunk_size, document_ids
    )[0]


class _Sizes(NamedTuple):
    batch: int
    length: int
    groups: int
    heads: int
    state: int
    head_dim: int
    chunks: int
    chunk: int

    @classmethod
    def of(cls, q: Tensor, v: Tensor, chunk_size: int) -> _Sizes:
        batch, length, groups, state = q.shape
        chunk = min(chunk_size, length)
        return cls(
            batch, length, groups, *v.shape[2:3], state, v.shape[3], -(-length // chunk), chunk
        )


class _Weights(NamedTuple):
    """Small per-step quantities, cheap enough to be computed again in the backward pass."""

    dt_BHT: Tensor
    lam_BHT: Tensor
    gamma_CXL: Tensor
    w_CXL: Tensor
    log_decay_CXL: Tensor  # L, fp64: differences of it are exponentiated
    decay_CXL: Tensor  # e^L
    end_decay_CXL: Tensor  # e^{L_end − L}


def _documents(document_ids: Tensor | None, sizes: _Sizes) -> ChunkDocuments | None:
    if document_ids is None:
        return None
    return ChunkDocuments.of(document_ids, sizes.chunks, sizes.chunk)


def _weights(
    dt: Tensor, a_dt: Tensor, trap: Tensor, documents: ChunkDocuments | None, sizes: _Sizes
) -> _Weights:
    dtype = _compute_dtype(dt)
    dt_BHT, a_BHT, trap_BHT = (
        _pad_time(x, sizes).to(dtype).transpose(1, 2) for x in (dt, a_dt, trap)
    )
    lam_BHT = torch.sigmoid(trap_BHT)
    gamma_BHT = lam_BHT * dt_BHT
    w_BHT = gamma_BHT.clone()
    w_BHT[..., :-1] += (dt_BHT - gamma_BHT)[..., 1:]
    a_CXL = _to_chunks(a_BHT, sizes)
    log_decay = _sum_within(a_CXL, documents, sizes)
    decay, end_decay = log_decay.exp(), (log_decay[..., -1:] - log_decay).exp()
    if documents is not None:
        decay.mul_(documents.per_head(documents.before_CBL, sizes.heads))
        # A huge sum of another document must not become inf · 0.
        end_decay.masked_fill_(~documents.per_head(documents.last_CBL, sizes.heads), 0)
    return _Weights(
        dt_BHT,
        lam_BHT,
        _to_chunks(gamma_BHT, sizes),
        _to_chunks(w_BHT, sizes),
        log_decay,
        decay.to(dtype),
        end_decay.to(dtype),
    )


def _sum_within(a_CXL: Tensor, documents: ChunkDocuments | None, sizes: _Sizes) -> Tensor:
    """L: Σ of a over the steps of the chunk up to this one, of its document only; fp64."""
    if documents is None:
        return a_CXL.cumsum(-1, dtype=torch.float64)
    a_CBHL = _per_head(a_CXL.double(), sizes)
    return (a_CBHL @ documents.same_CBLL.double().mT).flatten(1, 2)


def _compute_dtype(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _pad_time(x: Tensor, sizes: _Sizes) -> Tensor:
    """Zeros after T up to whole chunks: with dt = 0 they neither decay nor add, and their outputs are cut off."""
    missing = sizes.chunks * sizes.chunk - sizes.length
    return F.pad(x, (0, 0) * (x.dim() - 2) + (0, missing)) if missing else x


def _to_chunks(x_BHT: Tensor, sizes: _Sizes) -> Tensor:
    x_BHCL = x_BHT.unflatten(2, (sizes.chunks, sizes.chunk))
    return x_BHCL.permute(2, 0, 1, 3).reshape(sizes.chunks, -1, sizes.chunk)


def _from_chunks(x_CXL: Tensor, sizes: _Sizes) -> Tensor:
    """[C, X, L] → [B, H, T padded]."""
    x_CBHL = x_CXL.unflatten(1, (sizes.batch, sizes.heads))
    return x_CBHL.permute(1, 2, 0, 3).reshape(sizes.batch, sizes.heads, -1)


def _as_steps(x_CXLD: Tensor, sizes: _Sizes) -> Tensor:
    """A view [B, C, L, H, D] of a buffer [C, X, L, D], for element-wise work against inputs in their own order."""
    return x_CXLD.unflatten(1, (sizes.batch, sizes.heads)).permute(1, 0, 3, 2, 4)


def _cut(x_BCLHD: Tensor, sizes: _Sizes) -> Tensor:
    """[B, C, L, H, D] → [B, T, H, D] without the padding."""
    return x_BCLHD.flatten(1, 2)[:, : sizes.length]


def _turns(angles: Tensor, dt_BHT: Tensor, sizes: _Sizes) -> Tensor:
    """Rotation speed π·tanh(angles) [B, 1, T, n]; times dt it is the turn of a step."""
    return torch.tanh(_pad_time(angles, sizes).to(dt_BHT.dtype)).mul_(math.pi).unsqueeze(1)


def _decay_matrix(weights: _Weights, documents: ChunkDocuments | None, sizes: _Sizes) -> Tensor:
    """e^{L_t−L_s} for s < t of the same document, else 0 [C, X, L, L]."""
    log_decay = weights.log_decay_CXL
    length = log_decay.shape[-1]
    future = torch.ones(length, length, dtype=torch.bool, device=log_decay.device).triu_()
    if documents is not None:
        future = future | ~documents.per_head(documents.same_CBLL, sizes.heads)
    difference = (log_decay.unsqueeze(-1) - log_decay.unsqueeze(-2)).to(weights.w_CXL.dtype)
    return difference.masked_fill_(future, -math.inf).exp_()


def _score_weights(decay_CXLL: Tensor, weights: _Weights) -> Tensor:
    """What multiplies q̂_t·k̂_s: e^{L_t−L_s} w_s below the diagonal, γ_t on it."""
    matrix = decay_CXLL * weights.w_CXL.unsqueeze(-2)
    matrix.diagonal(dim1=-2, dim2=-1).copy_(weights.gamma_CXL)
    return matrix


def _pairs(x: Tensor, num_pairs: int) -> Tensor:
    """The rotated coordinates as complex numbers, a view: pair (2i, 2i+1) is real and imaginary part."""
    return torch.view_as_complex(x[..., : 2 * num_pairs].unflatten(-1, (num_pairs, 2)))


@torch.library.custom_op("lanewise::ssm_scan_chunked", mutates_args=())
def _forward(
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
    document_ids: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    sizes = _Sizes.of(q, v, chunk_size)
    dtype = _compute_dtype(v)
    documents = _documents(document_ids, sizes)
    weights = _weights(dt.to(dtype), a_dt, trap, documents, sizes)
    num_pairs = angles.shape[-1]
    shape = (sizes.chunks, sizes.batch * sizes.heads, sizes.chunk)

    turn_BHTn = _turns(angles, weights.dt_BHT, sizes) * weights.dt_BHT.unsqueeze(-1)
    theta_BHTn = cumulated_angle(turn_BHTn, sizes.chunks, documents)
    phase_CXLn2 = v.new_empty(*shape, num_pairs, 2, dtype=dtype)
    theta_CBHLn = theta_BHTn.unflatten(2, (sizes.chunks, sizes.chunk)).permute(2, 0, 1, 3, 4)
    phase_CBHLn2 = phase_CXLn2.unflatten(1, (sizes.batch, sizes.heads))
    torch.cos(theta_CBHLn, out=phase_CBHLn2[..., 0])
    torch.sin(theta_CBHLn, out=phase_CBHLn2[..., 1])

    qk_2CXLN = v.new_empty(2, *shape, sizes.state, dtype=dtype)
    for rotated_CXLN, x, bias in zip(qk_2CXLN, (q, k), (q_bias, k_bias), strict=True):
        x_BCLG1N = _pad_time(x, sizes).to(dtype).unflatten(1, (sizes.chunks, -1)).unsqueeze(-2)
        torch.add(
            x_BCLG1N,
            bias.to(dtype).unflatten(0, (sizes.groups, -1)),
            out=_as_steps(rotated_CXLN, sizes).unflatten(3, (sizes.groups, -1)),
        )
    _pairs(qk_2CXLN, num_pairs).mul_(torch.view_as_complex(phase_CXLn2))
    v_CXLP = v.new_empty(*shape, sizes.head_dim, dtype=dtype)
    _as_steps(v_CXLP, sizes).copy_(_pad_time(v, sizes).unflatten(1, (sizes.chunks, -1)))

    q_CXLN, k_CXLN = qk_2CXLN
    scores_CXLL = _bmm(q_CXLN, k_CXLN.mT)
    decay_CXLL = _decay_matrix(weights, documents, sizes)
    mixing_CXLL = _score_weights(decay_CXLL, weights).mul_(scores_CXLL)
    _per_head(mixing_CXLL.diagonal(dim1=-2, dim2=-1), sizes).add_(skip.to(dtype).view(-1, 1))
    y_CXLP = _bmm(mixing_CXLL, v_CXLP)

    into_state = (weights.w_CXL * weights.end_decay_CXL).unsqueeze(-1)
    states_CXNP = _bmm(
        (k_CXLN[:-1] * into_state[:-1]).mT, v_CXLP[:-1]
    )  # states after each chunk but the last
    for chunk in range(1, sizes.chunks - 1):
        states_CXNP[chunk].addcmul_(
            weights.decay_CXL[chunk, :, -1, None, None], states_CXNP[chunk - 1]
        )
    _baddbmm(y_CXLP[1:], q_CXLN[1:] * weights.decay_CXL[1:].unsqueeze(-1), states_CXNP)

    y_BTHP = _cut(_as_steps(y_CXLP, sizes), sizes)
    if z is None:
        # What is saved must not be what is returned.
        y_BTHP = y_BTHP.clone(memory_format=torch.contiguous_format)
    else:
        y_BTHP = F.silu(z.to(dtype)).mul_(y_BTHP)
    return (
        y_BTHP.to(v.dtype).contiguous(),
        qk_2CXLN,
        phase_CXLn2,
        v_CXLP,
        y_CXLP,
        scores_CXLL,
        decay_CXLL,
        states_CXNP,
    )


@_forward.register_fake
def _(q, k, v, dt, a_dt, trap, angles, q_bias, k_bias, skip, z, chunk_size, document_ids):
    sizes = _Sizes.of(q, v, chunk_size)
    shape = (sizes.chunks, sizes.batch * sizes.heads, sizes.chunk)

    def empty(*shape: int) -> Tensor:
        return v.new_empty(shape, dtype=_compute_dtype(v))

    return (
        v.new_empty(v.shape),
        empty(2, *shape, sizes.state),
        empty(*shape, angles.shape[-1], 2),
        empty(*shape, sizes.head_dim),
        empty(*shape, sizes.head_dim),
        empty(*shape, sizes.chunk),
        empty(*shape, sizes.chunk),
        empty(sizes.chunks - 1, shape[1], sizes.state, sizes.head_dim),
    )


def _bmm(left: Tensor, right: Tensor) -> Tensor:
    """Matmul with chunks and batch·heads as one batch dim."""
    return torch.bmm(left.flatten(0, 1), right.flatten(0, 1)).unflatten(0, left.shape[:2])


def _baddbmm(out: Tensor, left: Tensor, right: Tensor) -> None:
    """out += left · right."""
    out.view(-1, *out.shape[2:]).baddbmm_(left.flatten(0, 1), right.flatten(0, 1))


def _per_head(x_CXL: Tensor, sizes: _Sizes) -> Tensor:
    return x_CXL.unflatten(1, (sizes.batch, sizes.heads))


@torch.library.custom_op("lanewise::ssm_scan_chunked_backward", mutates_args=())
def _backward(
    grad: Tensor,
    q: Tensor,
    v: Tensor,
    dt: Tensor,
    a_dt: Tensor,
    trap: Tensor,
    angles: Tensor,
    skip: Tensor,
    z: Tensor | None,
    document_ids: Tensor | None,
    qk_2CXLN: Tensor,
    phase_CXLn2: Tensor,
    v_CXLP: Tensor,
    y_CXLP: Tensor,
    scores_CXLL: Tensor,
    decay_CXLL: Tensor,
    states_CXNP: Tensor,
    chunk_size: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    sizes = _Sizes.of(q, v, chunk_size)
    dtype = v_CXLP.dtype
    documents = _documents(document_ids, sizes)
    weights = _weights(dt.to(dtype), a_dt, trap, documents, sizes)
    q_CXLN, k_CXLN = qk_2CXLN
    end_decay, w, decay = (
        x.unsqueeze(-1) for x in (weights.end_decay_CXL, weights.w_CXL, weights.decay_CXL)
    )

    # Gate.
    grad = grad.to(dtype)
    dz = grad.new_empty(0)
    if z is not None:
        z = z.to(dtype)
        dz = torch.ops.aten.silu_backward(grad * _cut(_as_steps(y_CXLP, sizes), sizes), z)
        grad = F.silu(z).mul_(grad)
    dy_CXLP = torch.empty_like(y_CXLP)
    _as_steps(dy_CXLP, sizes).copy_(_pad_time(grad, sizes).unflatten(1, (sizes.chunks, -1)))

    # Inside the chunks.
    score_weights = _score_weights(decay_CXLL, weights)
    mixing_CXLL = score_weights * scores_CXLL
    _per_head(mixing_CXLL.diagonal(dim1=-2, dim2=-1), sizes).add_(skip.to(dtype).view(-1, 1))
    dv_CXLP = _bmm(mixing_CXLL.mT, dy_CXLP)
    dmixing = _bmm(dy_CXLP, v_CXLP.mT)
    dskip = _per_head(dmixing.diagonal(dim1=-2, dim2=-1), sizes).sum((0, 1, 3))
    dweights = dmixing * scores_CXLL
    dgamma_CXL = dweights.diagonal(dim1=-2, dim2=-1).clone()
    dw_CXL = dweights.mul_(decay_CXLL).sum(-2)
    dscores = dmixing.mul_(score_weights)
    dqk_2CXLN = torch.empty_like(qk_2CXLN)
    dq_CXLN, dk_CXLN = dqk_2CXLN
    torch.bmm(dscores.flatten(0, 1), k_CXLN.flatten(0, 1), out=dq_CXLN.flatten(0, 1))
    torch.bmm(dscores.mT.flatten(0, 1), q_CXLN.flatten(0, 1), out=dk_CXLN.flatten(0, 1))

    # Through the states: dstates[c] is the gradient of the state after chunk c, from every later chunk.
    dstates_CXNP = _bmm((q_CXLN[1:] * decay[1:]).mT, dy_CXLP[1:])
    for chunk in range(sizes.chunks - 3, -1, -1):
        dstates_CXNP[chunk].addcmul_(decay[chunk + 1, :, -1:], dstates_CXNP[chunk + 1])
    dq_CXLN[1:].addcmul_(_bmm(dy_CXLP[1:], states_CXNP.mT), decay[1:])
    into_state = (w * end_decay)[:-1]
    _baddbmm(dv_CXLP[:-1], k_CXLN[:-1] * into_state, dstates_CXNP)
    dinto_XN = _bmm(v_CXLP[:-1], dstates_CXNP.mT)
    dk_CXLN[:-1].addcmul_(dinto_XN, into_state)
    dw_CXL[:-1].addcmul_(dinto_XN.mul_(k_CXLN[:-1]).sum(-1), weights.end_decay_CXL[:-1])

    # Decays.
    dots_2CXL = (dqk_2CXLN * qk_2CXLN).sum(-1)
    dlog_CXL = dots_2CXL[0] - dots_2CXL[1]
    dlog_CXL[:-1, :, -1] += (dstates_CXNP * states_CXNP).sum((-2, -1))
    if documents is None:
        da_CXL = _reverse_cumsum(dlog_CXL)
    else:
        da_CXL = (_per_head(dlog_CXL, sizes) @ documents.same_CBLL.to(dtype)).flatten(1, 2)
    da_BHT = _from_chunks(da_CXL, sizes)

    # Trapezoid weights: γ = λ·dt, and w_s takes (1 − λ)·dt of the step after.
    dgamma_BHT = _from_chunks(dgamma_CXL.add_(dw_CXL), sizes)
    dahead_BHT = F.pad(_from_chunks(dw_CXL, sizes), (1, 0))[..., :-1]
    lam, dt_BHT = weights.lam_BHT, weights.dt_BHT
    dtrap_BHT = (dgamma_BHT - dahead_BHT) * dt_BHT * lam * (1 - lam)
    ddt_BHT = torch.lerp(dahead_BHT, dgamma_BHT, lam)

    # Rotation: with q̂ = e^{iθ}q, dθ = Im(dq̂ · conj q̂) and dq = e^{−iθ} dq̂.
    num_pairs = angles.shape[-1]
    dpairs, pairs = _pairs(dqk_2CXLN, num_pairs), _pairs(qk_2CXLN, num_pairs)
    dtheta_CXLn = (dpairs * pairs.conj()).imag.sum(0)
    dpairs.mul_(torch.view_as_complex(phase_CXLn2).conj())
    dtheta_BHCLn = dtheta_CXLn.unflatten(1, (sizes.batch, sizes.heads)).permute(1, 2, 0, 3, 4)
    dtheta_BHTn = dtheta_BHCLn.flatten(2, 3)
    if documents is None:
        dturn_BHTn = _reverse_cumsum(dtheta_BHTn, dim=2)
    else:
        dturn_BHTn = documents.reverse_cumsum(dtheta_BHTn)
    speed_B1Tn = _turns(angles, dt_BHT, sizes)
    ddt_BHT += (dturn_BHTn * speed_B1Tn).sum(-1)
    dspeed_BTn = dturn_BHTn.mul_(dt_BHT.unsqueeze(-1)).sum(1)
    # π(1 − tanh²) = π − speed²/π
    dangles = dspeed_BTn.mul_(math.pi - speed_B1Tn.squeeze(1).square() / math.pi)

    # From heads back to groups and steps.
    dbias_2HN = dqk_2CXLN.unflatten(2, (sizes.batch, sizes.heads)).sum((1, 2, 4))
    dqk_2CBGLN = dqk_2CXLN.unflatten(2, (sizes.batch, sizes.groups, -1)).sum(4)
    dqk_2BTGN = dqk_2CBGLN.permute(0, 2, 1, 4, 3, 5).flatten(2, 3)[:, :, : sizes.length]

    def per_step(x_BHT: Tensor, like: Tensor) -> Tensor:
        return x_BHT[..., : sizes.length].transpose(1, 2).to(like.dtype).contiguous()

    return (
        dqk_2BTGN.to(q.dtype).contiguous(),
        _cut(_as_steps(dv_CXLP, sizes), sizes).to(v.dtype).contiguous(),
        per_step(ddt_BHT, dt),
        per_step(da_BHT, a_dt),
        per_step(dtrap_BHT, trap),
        dangles[:, : sizes.length].to(angles.dtype).contiguous(),
        dbias_2HN.to(skip.dtype),
        dskip.to(skip.dtype),
        dz.to(v.dtype).contiguous(),
    )


@_backward.register_fake
def _(grad, q, v, dt, a_dt, trap, angles, skip, z, document_ids, qk_2CXLN, *_):
    return (
        q.new_empty(2, *q.shape),
        v.new_empty(v.shape),
        *(x.new_empty(x.shape) for x in (dt, a_dt, trap, angles)),
        skip.new_empty(2, skip.shape[0], q.shape[-1]),
        skip.new_empty(skip.shape),
        v.new_empty(v.shape if z is not None else 0),
    )


def _reverse_cumsum(x: Tensor, dim: int = -1) -> Tensor:
    """Σ over this and all later positions."""
    return x.flip(dim).cumsum(dim).flip(dim)


def _save_for_backward(ctx, inputs, output):
    q, _, v, dt, a_dt, trap, angles, _, _, skip, z, chunk_size, document_ids = inputs
    ctx.save_for_backward(q, v, dt, a_dt, trap, angles, skip, z, document_ids, *output[1:])
    ctx.mark_non_differentiable(*output[1:])
    ctx.chunk_size = chunk_size


def _call_backward(ctx, grad, *_):
    saved = ctx.saved_tensors  # once: recomputed tensors can be unpacked one time only
    z = saved[7]
    dqk, dv, ddt, da, dtrap, dangles, dbias, dskip, dz = (
        torch.ops.lanewise.ssm_scan_chunked_backward(grad, *saved, ctx.chunk_size)
    )
    dz = None if z is None else dz
    return *dqk, dv, ddt, da, dtrap, dangles, *dbias, dskip, dz, None, None


_forward.register_autograd(_call_backward, setup_context=_save_for_backward)
