"""KL loss of the lightning indexer on the selected keys (the sparse stage).

    L = 1/(B·T) Σ_t KL(p_t ‖ softmax over s in key_ids[t] of I[t,s])         I as in `index_topk`

Legend: B batch, T queries, H_I index heads, D_I index head dim, k selected keys. Problem dims: B, T, H_I, D_I, k.
Shapes: q_index [B, T, H_I, D_I], k_index [B, T, D_I], weights [B, T, H_I], key_ids int64 [B, T, k], target [B, T, k] → [].
`target` is p_t, the mean over attention heads of their probabilities on the selected keys (`sparse_attention` returns
it), 0 at −1. KL(p ‖ q) = Σ p log p − p log q with 0 log 0 = 0.
Dtypes: q_index, k_index and weights alike; everything is computed in at least fp32, which the loss has. Only these three are
differentiated; what selected the keys and what the target depends on is taken as given.
Source: DeepSeek-V3.2-Exp: Boosting Long-Context Efficiency with DeepSeek Sparse Attention (2025), eq. 4,
whose sum over queries is a mean here.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lanewise.ops.index_topk import index_scores, require_index_shapes
from lanewise.ops.observe import Launch
from lanewise.ops.spec import Backend, OpSpec

SPEC = OpSpec(
    name="indexer_loss",
    reference="reference",
    backends=(
        Backend(
            name="blocked.torch",
            target="lanewise.kernels.indexer_loss_torch:blocked_selected",
            note="loss and gradients in one walk over query blocks and their gathered keys",
        ),
        Backend(
            name="reference",
            target="lanewise.ops.indexer_loss:reference",
            note="the oracle: all scores, then those of the selected keys",
        ),
    ),
)


def reference(
    q_index: Tensor, k_index: Tensor, weights: Tensor, key_ids: Tensor, target: Tensor
) -> Tensor:
    """All scores at once, those of the selected keys gathered, KL by the formula."""
    scores = index_scores(q_index, k_index, weights).gather(-1, key_ids.clamp(min=0))
    return mean_divergence(target, scores, key_ids >= 0)


def mean_divergence(target: Tensor, scores: Tensor, counts: Tensor) -> Tensor:
    """Mean over queries of KL(target ‖ softmax over the entries that count of scores); the oracle's.

    Args:
        target: [B, T, S], 0 where an entry does not count.
        scores: [B, T, S], in at least fp32.
        counts: bool, broadcast to [B, T, S]; a row in which nothing counts adds 0.
    """
    masked = scores.masked_fill(~counts, torch.finfo(scores.dtype).min)
    log_q = masked.log_softmax(dim=-1).masked_fill(~counts, 0.0)
    p = target.detach().to(scores.dtype)
    return (torch.xlogy(p, p) - p * log_q).sum(dim=-1).mean()


def indexer_loss(
    run: Launch,
    q_index: Tensor,
    k_index: Tensor,
    weights: Tensor,
    key_ids: Tensor,
    target: Tensor,
) -> Tensor:
    """KL of the indexer on the selected keys, with the chosen backend.

    Args:
        run: the chosen backend.
        q_index: [B, T, H_I, D_I].
        k_index: [B, T, D_I].
        weights: [B, T, H_I], scaled.
        key_ids: int64 [B, T, k], −1 pads.
        target: [B, T, k], rows that sum to 1, 0 at −1.

    Returns:
        [], at least fp32.
    """
    require_index_shapes("indexer_loss", q_index, k_index, weights)
    if key_ids.dim() != 3 or key_ids.shape[:2] != q_index.shape[:2]:
        raise ValueError(
            f"indexer_loss: key_ids is {list(key_ids.shape)} and must be [B, T, k] with [B, T] = "
            f"{list(q_index.shape[:2])}"
        )
    if target.shape != key_ids.shape:
        raise ValueError(
            f"indexer_loss: target is {list(target.shape)} and must have the shape of key_ids, {list(key_ids.shape)}"
        )
    loss: Tensor = run(q_index, k_index, weights, key_ids, target.detach())
    return loss
