"""`ssd_scan` on torch: `chunked.torch` (SSD block form) and `recurrence.torch` (one step after the other).

With L_t the sum of a·dt from the start of the chunk to step t, u_t = dt_t x_t and S_c the state before chunk c, the recurrence of
`ops.ssd_scan` is, exactly and without a growing exponential (arXiv 2405.21060, §6),

    y_t = Σ_{s≤t} e^{L_t−L_s} (c_t·b_s) u_s + skip x_t + e^{L_t} S_c c_t           s and t in the same document
    S_{c+1} = e^{L_end} S_c + Σ_s e^{L_end−L_s} u_s b_sᵀ                           S_0 = 0

Documents select terms: s counts for t if both are of one document; the state before a chunk belongs to the document of
the last step before it, so it reaches only the steps of that document.

Shapes: B batch, T sequence (padded to C·L), H heads, G groups, J = H/G heads of a group, N state, P head dim, C chunks,
L steps a chunk, X = B·H.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


def chunked(
    x: Tensor,
    dt: Tensor,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    skip: Tensor,
    chunk_size: int,
    document_ids: Tensor | None = None,
) -> Tensor:
    """All chunks at once, the state passed from chunk to chunk. Arguments and result as `ops.ssd_scan.ssd_scan`."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    length, groups = x.shape[1], b.shape[2]
    chunk = min(chunk_size, length)

    def to_chunks(steps: Tensor) -> Tensor:
        """[B, T, …] → [B, C, L, …]; the padding has dt = 0, so it neither decays nor adds, and is cut off."""
        missing = -length % chunk
        padded = F.pad(steps, (0, 0) * (steps.dim() - 2) + (0, missing)) if missing else steps
        return padded.unflatten(1, (-1, chunk))

    x_BCLGJP = to_chunks(x.to(dtype)).unflatten(3, (groups, -1))
    dt_BCLGJ = to_chunks(dt.to(dtype)).unflatten(3, (groups, -1))
    b_BCGLN, c_BCGLN = (to_chunks(group.to(dtype)).transpose(2, 3) for group in (b, c))
    decays = _decays(
        (dt_BCLGJ * a.to(dtype).view(groups, -1)).permute(0, 1, 3, 4, 2),
        None if document_ids is None else _pad_documents(document_ids, chunk),
    )
    input_BCGJLP = (dt_BCLGJ.unsqueeze(-1) * x_BCLGJP).permute(0, 1, 3, 4, 2, 5)

    scores_BCG1LL = (c_BCGLN @ b_BCGLN.mT).unsqueeze(3)
    y_BCGJLP = (scores_BCG1LL * decays.between) @ input_BCGJLP
    if y_BCGJLP.shape[1] > 1:
        into_state = input_BCGJLP[:, :-1] * decays.to_end[:, :-1].unsqueeze(-1)
        added_BCGJPN = into_state.mT @ b_BCGLN[:, :-1].unsqueeze(3)
        states_BCGJPN = _pass_on(added_BCGJPN, decays.whole[:, 1:-1])
        read_BCGJLP = c_BCGLN[:, 1:].unsqueeze(3) @ states_BCGJPN.mT
        from_before = decays.from_start[:, 1:].unsqueeze(-1) * read_BCGJLP
        y_BCGJLP = torch.cat([y_BCGJLP[:, :1], y_BCGJLP[:, 1:] + from_before], dim=1)
    y_BTHP = y_BCGJLP.permute(0, 1, 4, 2, 3, 5).flatten(3, 4).flatten(1, 2)[:, :length]
    return (y_BTHP + skip.to(dtype).unsqueeze(-1) * x).to(x.dtype)


class _Decays(NamedTuple):
    """What is left of an input after some steps; 0 where a document begins in between."""

    between: Tensor  # [B, C, G, J, L, L], from step s to step t ≥ s of a chunk
    from_start: Tensor  # [B, C, G, J, L], of the state before the chunk at step t
    to_end: Tensor  # [B, C, G, J, L], of step s after the chunk
    whole: Tensor  # [B, C, G, J], of the state before the chunk after it


def _decays(a_dt_BCGJL: Tensor, document_ids_BCL: Tensor | None) -> _Decays:
    # Every log decay is the sum of just the steps between (the stable segment sum of arXiv 2405.21060, listing 1), not a
    # difference of cumulated decays: nothing cancels, neither here nor in the gradient of the decays.
    chunk, device = a_dt_BCGJL.shape[-1], a_dt_BCGJL.device
    upper = torch.ones(chunk, chunk, dtype=torch.bool, device=device).triu()
    of_step_BCGJLL = a_dt_BCGJL.unsqueeze(-1).expand(*a_dt_BCGJL.shape, chunk)
    between = of_step_BCGJLL.masked_fill(upper, 0).cumsum(-2)
    future = upper.triu(1)
    from_start = a_dt_BCGJL.cumsum(-1)
    to_end = F.pad(a_dt_BCGJL[..., 1:], (0, 1)).flip(-1).cumsum(-1).flip(-1)
    whole = from_start[..., -1]
    if document_ids_BCL is None:
        between = between.masked_fill(future, -math.inf)
    else:
        # Chunk 0 has no step before it and its state is zero, so what stands in its place does not matter.
        before_BC1 = document_ids_BCL.roll(1, dims=1)[..., -1:]
        last_BC1 = document_ids_BCL[..., -1:]
        other_BCLL = document_ids_BCL.unsqueeze(-1) != document_ids_BCL.unsqueeze(-2)
        between = between.masked_fill(future | other_BCLL[:, :, None, None], -math.inf)
        from_start = _hide(from_start, document_ids_BCL != before_BC1)
        to_end = _hide(to_end, document_ids_BCL != last_BC1)
        whole = whole.masked_fill((last_BC1 != before_BC1).unsqueeze(-1), -math.inf)
    return _Decays(between.exp(), from_start.exp(), to_end.exp(), whole.exp())


def _hide(log_decay_BCGJL: Tensor, hidden_BCL: Tensor) -> Tensor:
    return log_decay_BCGJL.masked_fill(hidden_BCL[:, :, None, None], -math.inf)


def _pad_documents(document_ids: Tensor, chunk: int) -> Tensor:
    """[B, T] → [B, C, L], the padding of the last step's document."""
    missing = -document_ids.shape[1] % chunk
    padding = document_ids[:, -1:].expand(-1, missing)
    return torch.cat([document_ids, padding], dim=1).unflatten(1, (-1, chunk))


def _pass_on(added_BCGJPN: Tensor, whole_BCGJ: Tensor) -> Tensor:
    """States after every chunk from what each adds and, from the second on, what each leaves of the state before."""
    state_BGJPN, *rest = added_BCGJPN.unbind(1)
    states = [state_BGJPN]
    for added_BGJPN, whole_BGJ in zip(rest, whole_BCGJ.unbind(1), strict=True):
        state_BGJPN = torch.addcmul(added_BGJPN, whole_BGJ[..., None, None], state_BGJPN)
        states.append(state_BGJPN)
    return torch.stack(states, dim=1)


def recurrence(
    x: Tensor,
    dt: Tensor,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    skip: Tensor,
    chunk_size: int,
    document_ids: Tensor | None = None,
) -> Tensor:
    """One step after the other, vectorised over batch and heads. Arguments and result as `ops.ssd_scan.ssd_scan`.

    Everything that does not depend on the state is hoisted out of the loop over time.
    """
    dtype = torch.promote_types(x.dtype, torch.float32)
    x_BTHP, dt_BTH = x.to(dtype), dt.to(dtype)
    heads_per_group = x.shape[2] // b.shape[2]
    decay_BTH = torch.exp(a.to(dtype) * dt_BTH)
    if document_ids is not None:
        begins_BT = document_ids != document_ids.roll(1, dims=1)  # step 0 decays a zero state
        decay_BTH = decay_BTH.masked_fill(begins_BT.unsqueeze(-1), 0)

    def steps(tensor: Tensor) -> tuple[Tensor, ...]:
        return tensor.transpose(0, 1).flatten(1, 2).unbind(0)  # T tensors, batch and heads one dim

    state_XPN = x_BTHP.new_zeros(x.shape[0] * x.shape[2], x.shape[3], b.shape[3])
    outputs = []
    for decay_X11, input_XP1, b_X1N, c_XN1 in zip(
        steps(decay_BTH[..., None, None]),
        steps((dt_BTH.unsqueeze(-1) * x_BTHP).unsqueeze(-1)),
        steps(b.to(dtype).repeat_interleave(heads_per_group, dim=2).unsqueeze(-2)),
        steps(c.to(dtype).repeat_interleave(heads_per_group, dim=2).unsqueeze(-1)),
        strict=True,
    ):
        state_XPN = torch.addcmul(input_XP1 * b_X1N, decay_X11, state_XPN)
        outputs.append(torch.bmm(state_XPN, c_XN1).squeeze(-1))
    y_BTHP = torch.stack(outputs).unflatten(1, (x.shape[0], -1)).transpose(0, 1)
    return (y_BTHP + skip.to(dtype).unsqueeze(-1) * x_BTHP).to(x.dtype)
