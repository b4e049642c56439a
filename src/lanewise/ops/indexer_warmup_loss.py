"""KL loss of the lightning indexer on all visible keys, against dense attention (the dense warm-up).

    p_t[s] = Σ_h softmax_s(scale · q_h[t]·keys[s]) / H         the heads' probabilities summed, L1-normalised
    L = 1/(B·T) Σ_t KL(p_t ‖ softmax over visible s of I[t,s])         I and visible as in `index_topk`

Legend: B batch, T sequence, H_I index heads, D_I index head dim, H attention heads, D key dim of the absorbed form. Problem
dims: B, T, H_I, D_I, H, D.
Shapes: q_index [B, T, H_I, D_I], k_index [B, T, D_I], weights [B, T, H_I], q [B, T, H, D], keys [B, T, D] (one head: MLA in
absorbed form, whose scores are those of the expanded keys of every head), document_ids int64 [B, T] or None → [].
Dtypes: as in `indexer_loss`; q and keys alike, and not differentiated.
Limits: attention is taken again inside the op, a block of queries at a time; backends hold neither [B, H, T, T] nor
[B, T, T], forward or backward.
Source: DeepSeek-V3.2-Exp: Boosting Long-Context Efficiency with DeepSeek Sparse Attention (2025), eq. 3,
whose sum over queries is a mean here.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lanewise.ops.index_topk import (
    index_scores,
    require_document_shape,
    require_index_shapes,
    visible_keys,
)
from lanewise.ops.indexer_loss import mean_divergence
from lanewise.ops.observe import Launch
from lanewise.ops.spec import Backend, OpSpec

SPEC = OpSpec(
    name="indexer_warmup_loss",
    reference="reference",
    backends=(
        Backend(
            name="blocked.torch",
            target="lanewise.kernels.indexer_loss_torch:blocked_visible",
            note="attention, loss and gradients in one walk over query blocks",
        ),
        Backend(
            name="reference",
            target="lanewise.ops.indexer_warmup_loss:reference",
            note="the oracle: all probabilities and all scores",
        ),
    ),
)


def reference(
    q_index: Tensor,
    k_index: Tensor,
    weights: Tensor,
    q: Tensor,
    keys: Tensor,
    scale: float,
    document_ids: Tensor | None,
) -> Tensor:
    """All probabilities and all scores at once, KL by the formula."""
    scores = index_scores(q_index, k_index, weights)
    seen = visible_keys(scores, document_ids)
    attention = scale * torch.einsum("bthd,bsd->bhts", q, keys).to(scores.dtype)
    probabilities = attention.masked_fill(~seen.unsqueeze(1), float("-inf")).softmax(dim=-1)
    summed = probabilities.sum(dim=1)
    return mean_divergence(summed / summed.sum(dim=-1, keepdim=True), scores, seen)


def indexer_warmup_loss(
    run: Launch,
    q_index: Tensor,
    k_index: Tensor,
    weights: Tensor,
    q: Tensor,
    keys: Tensor,
    scale: float,
    document_ids: Tensor | None = None,
) -> Tensor:
    """KL of the indexer against dense attention, with the chosen backend.

    Args:
        run: the chosen backend.
        q_index: [B, T, H_I, D_I].
        k_index: [B, T, D_I].
        weights: [B, T, H_I], scaled.
        q: [B, T, H, D], queries of dense attention.
        keys: [B, T, D], its keys.
        scale: factor of its scores.
        document_ids: int64 [B, T], or None when rows are one document.

    Returns:
        [], at least fp32.
    """
    require_index_shapes("indexer_warmup_loss", q_index, k_index, weights)
    b, t = q_index.shape[:2]
    if q.dim() != 4 or q.shape[:2] != (b, t) or keys.shape != (b, t, q.shape[-1]):
        raise ValueError(
            f"indexer_warmup_loss: q is {list(q.shape)}, keys is {list(keys.shape)}; they must be [B, T, H, D] and "
            f"[B, T, D] with [B, T] = {[b, t]}"
        )
    require_document_shape("indexer_warmup_loss", document_ids, b, t, k_index.shape[1])
    loss: Tensor = run(q_index, k_index, weights, q.detach(), keys.detach(), scale, document_ids)
    return loss
