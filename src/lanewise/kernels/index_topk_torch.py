"""Selection of the keys with the highest index scores in torch ops, a block of queries at a time.

B batch, Q queries of a block, S keys they may see, K keys kept; the suffix of a name is its shape.

`torch.topk` may return any of several equal scores, and equal scores are common: a key that no head likes scores exactly
0. So topk only finds the lowest score that is kept; of the keys at that score the first are taken.

The walk over blocks is one `torch.library` op: a compiler would unroll T/32 blocks, and recompute would keep results of their
products.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from lanewise.kernels.index_scores_torch import blocks, products, visible, weighted, wide_dtype


def blocked(
    q_index: Tensor, k_index: Tensor, weights: Tensor, top_k: int, document_ids: Tensor | None
) -> Tensor:
    """Scores of one block of queries at a time, against the keys up to its end."""
    detached = (x.detach() for x in (q_index, k_index, weights))
    key_ids: Tensor = walk_op(*detached, top_k, document_ids)
    return key_ids


def _walk(
    q_index: Tensor, k_index: Tensor, weights: Tensor, top_k: int, document_ids: Tensor | None
) -> Tensor:
    num_queries, num_keys = q_index.shape[1], k_index.shape[1]
    past = num_keys - num_queries
    width = min(top_k, num_keys)
    wide = wide_dtype(q_index)
    selected = []
    for start, stop in blocks(num_queries):
        found = products(q_index[:, start:stop].to(wide), k_index[:, : past + stop].to(wide))
        scores_BQS = weighted(found, weights[:, start:stop].to(wide))
        seen = visible(start, stop, past, document_ids, q_index.device)
        ids_BQK = _best(scores_BQS.masked_fill(~seen, float("-inf")), width)
        selected.append(F.pad(ids_BQK, (0, width - ids_BQK.shape[-1]), value=-1))
    return torch.cat(selected, dim=1)


walk_op = torch.library.custom_op("lanewise::index_topk_blocked", _walk, mutates_args=())
"""The walk as one node for compilers and recompute."""


@walk_op.register_fake
def _(
    q_index: Tensor,
    k_index: Tensor,
    weights: Tensor,
    top_k: int,
    document_ids: Tensor | None,
) -> Tensor:
    width = min(top_k, k_index.shape[1])
    return q_index.new_empty(*q_index.shape[:2], width, dtype=torch.int64)


def _best(scores_BQS: Tensor, width: int) -> Tensor:
    """Positions of the best scores in rising order, at most `width`, −1 after the last; −inf is never taken."""
    num_keys = scores_BQS.shape[-1]
    width = min(width, num_keys)
    lowest_kept = scores_BQS.topk(width, dim=-1).values[..., -1:]
    above = scores_BQS > lowest_kept
    level = (scores_BQS == lowest_kept) & (lowest_kept > float("-inf"))
    taken = above | (level & (level.cumsum(-1) <= width - above.sum(-1, keepdim=True)))
    positions = torch.arange(num_keys, device=scores_BQS.device)
    ids = torch.where(taken, positions, num_keys).topk(width, dim=-1, largest=False, sorted=True)
    return ids.values.masked_fill(ids.values == num_keys, -1)
