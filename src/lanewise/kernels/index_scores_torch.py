"""Index scores of DeepSeek sparse attention in torch ops, a block of queries at a time; shared by three ops.

    I[t,s] = Σ_j w[t,j] · ReLU(q_j[t]·k[s])

B batch, Q queries of a block, S keys they are scored against, H index heads, D index head dim, K keys gathered for one
query; the suffix of a name is its shape. Everything is in at least fp32. A block holds [B, Q, H, S] numbers and no more,
so its callers never hold a tensor with two dims of sequence length. Results of products are changed in place by ReLU only:
whoever keeps them for recomputation would see any other change twice.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

BLOCK_QUERIES = 32
"""Queries of a block: [B, H, 32, S] fp32 scores of 32 heads over 4,096 keys are 16 MiB for each row of the batch."""


def blocks(num_queries: int) -> Iterator[tuple[int, int]]:
    """First query and end of every block."""
    for start in range(0, num_queries, BLOCK_QUERIES):
        yield start, min(start + BLOCK_QUERIES, num_queries)


def wide_dtype(x: Tensor) -> torch.dtype:
    """The dtype that scores are taken in: at least fp32."""
    return torch.promote_types(x.dtype, torch.float32)


def products(q_BQHD: Tensor, keys: Tensor) -> Tensor:
    """ReLU(q·k) [B, Q, H, S] for keys [B, S, D] shared by the queries, or [B, Q, H, K] for own ones [B, Q, K, D]."""
    if keys.dim() == 4:
        return (q_BQHD @ keys.transpose(-2, -1)).relu_()
    _, num_queries, num_heads, _ = q_BQHD.shape
    flat = torch.bmm(q_BQHD.flatten(1, 2), keys.transpose(1, 2))
    return flat.relu_().unflatten(1, (num_queries, num_heads))


def weighted(products_BQHS: Tensor, weights_BQH: Tensor) -> Tensor:
    """I [B, Q, S]."""
    return (weights_BQH.unsqueeze(2) @ products_BQHS).squeeze(2)


def gradients(
    grad_BQS: Tensor, products_BQHS: Tensor, q_BQHD: Tensor, keys: Tensor, weights_BQH: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q [B, Q, H, D], of the keys in their shape, and of the weights [B, Q, H], from that of I [B, Q, S]."""
    grad_weights = (products_BQHS @ grad_BQS.unsqueeze(-1)).squeeze(-1)
    passed = products_BQHS > 0
    grad_products = torch.where(passed, weights_BQH.unsqueeze(-1) * grad_BQS.unsqueeze(2), 0.0)
    if keys.dim() == 4:
        return grad_products @ keys, grad_products.transpose(-2, -1) @ q_BQHD, grad_weights
    flat = grad_products.flatten(1, 2)
    grad_q = torch.bmm(flat, keys).view_as(q_BQHD)
    return grad_q, torch.bmm(flat.transpose(1, 2), q_BQHD.flatten(1, 2)), grad_weights


def visible(
    start: int, stop: int, past: int, document_ids: Tensor | None, device: torch.device
) -> Tensor:
    """What queries start … stop − 1 may see of the first past + stop keys: bool [B or 1, Q, past + stop].

    Args:
        start: first query of the block; query t stands at position past + t.
        stop: end of the block.
        past: keys before the first query.
        document_ids: int64 [B, T], with no past; or None.
        device: of the result.
    """
    positions = torch.arange(past + stop, device=device)
    seen = positions <= positions[past + start :].unsqueeze(1)
    if document_ids is None:
        return seen.unsqueeze(0)
    same = document_ids[:, start:stop].unsqueeze(2) == document_ids[:, :stop].unsqueeze(1)
    return seen & same


def gather_rows(source_BSD: Tensor, ids_BQK: Tensor) -> Tensor:
    """Rows [B, Q, K, D] of [B, S, D]; an id of −1 fetches row 0, for its caller to mask."""
    b, s, d = source_BSD.shape
    return source_BSD.reshape(b * s, d)[flat_rows(ids_BQK, s)]


def flat_rows(ids_BQK: Tensor, num_keys: int) -> Tensor:
    """Ids as rows of the keys of all batch rows laid one after another."""
    first = torch.arange(ids_BQK.shape[0], device=ids_BQK.device) * num_keys
    return ids_BQK.clamp(min=0) + first.view(-1, 1, 1)
