"""KL losses of the lightning indexer in torch ops: loss and gradients in one walk over blocks of queries.

B batch, T queries, Q queries of a block, S keys, K selected keys, H index heads, D index head dim, N attention heads; the
suffix of a name is its shape.

Both losses are means over queries of KL(p ‖ softmax I), whose gradient in I is (Σp·softmax I − p) / (B·T): it is known as
soon as the scores are, so one walk takes the loss and all gradients while a block's scores exist, and the backward only
scales by the upstream gradient. Without gradients the walk takes the loss alone. Neither loss holds scores of more than
one block; sums over blocks are kept in at least fp32. A walk is one `torch.library` op: a compiler would unroll T/32 blocks,
and recompute would keep results of their products.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lanewise.kernels.index_scores_torch import (
    blocks,
    flat_rows,
    gather_rows,
    gradients,
    products,
    visible,
    weighted,
    wide_dtype,
)

Block = tuple[Tensor, Tensor, Tensor | None]
"""Target p [B, Q, S or K], whether an entry counts (bool, the same shape or one that broadcasts), ids of gathered keys."""


Found = tuple[Tensor, Tensor, Tensor, Tensor]
"""Loss and the gradients of the three index tensors; those are empty when they were not asked for."""


def blocked_selected(
    q_index: Tensor, k_index: Tensor, weights: Tensor, key_ids: Tensor, target: Tensor
) -> Tensor:
    """KL over the selected keys."""
    inputs = (q_index, k_index, weights)
    needed = _need_gradients(*inputs)
    detached = (x.detach() for x in inputs)
    return _attach(inputs, selected_op(*detached, key_ids, target, needed), needed)


def blocked_visible(
    q_index: Tensor,
    k_index: Tensor,
    weights: Tensor,
    q: Tensor,
    keys: Tensor,
    scale: float,
    document_ids: Tensor | None,
) -> Tensor:
    """KL over all visible keys; attention's probabilities are taken block by block and given up again."""
    inputs = (q_index, k_index, weights)
    needed = _need_gradients(*inputs)
    detached = (x.detach() for x in (*inputs, q, keys))
    return _attach(inputs, visible_op(*detached, scale, document_ids, needed), needed)


def _need_gradients(*inputs: Tensor) -> bool:
    return torch.is_grad_enabled() and any(x.requires_grad for x in inputs)


def _attach(inputs: tuple[Tensor, ...], found: Found, needed: bool) -> Tensor:
    return _Attach.apply(*inputs, *found) if needed else found[0]


class _Attach(torch.autograd.Function):
    """Gives a loss the gradients that were taken along with it."""

    @staticmethod
    def forward(
        ctx: Any,
        q_index: Tensor,  # noqa: ARG004  the gradients belong to these three
        k_index: Tensor,  # noqa: ARG004
        weights: Tensor,  # noqa: ARG004
        loss: Tensor,
        *found: Tensor,
    ) -> Tensor:
        ctx.save_for_backward(*found)
        return loss.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Any, ...]:
        scaled = ((x * grad_loss).to(x.dtype) for x in ctx.saved_tensors)
        return (*scaled, None, None, None, None)


def _selected(
    q_index: Tensor,
    k_index: Tensor,
    weights: Tensor,
    key_ids: Tensor,
    target: Tensor,
    needs_gradients: bool,
) -> Found:
    def block(start: int, stop: int) -> Block:
        ids_BQK = key_ids[:, start:stop]
        return target[:, start:stop], ids_BQK >= 0, ids_BQK

    return _walk(q_index, k_index, weights, block, needs_gradients)


def _visible(
    q_index: Tensor,
    k_index: Tensor,
    weights: Tensor,
    q: Tensor,
    keys: Tensor,
    scale: float,
    document_ids: Tensor | None,
    needs_gradients: bool,
) -> Found:
    wide = wide_dtype(q_index)

    def block(start: int, stop: int) -> Block:
        seen = visible(start, stop, 0, document_ids, q.device)
        q_BMD = q[:, start:stop].flatten(1, 2)
        scores = torch.bmm(q_BMD, keys[:, :stop].transpose(1, 2)).to(wide) * scale
        scores_BQNS = scores.unflatten(1, (stop - start, q.shape[2]))
        scores_BQNS.masked_fill_(~seen.unsqueeze(2), float("-inf"))
        return torch.softmax(scores_BQNS, dim=-1).mean(dim=2), seen, None

    return _walk(q_index, k_index, weights, block, needs_gradients)


def _walk(
    q_index: Tensor,
    k_index: Tensor,
    weights: Tensor,
    block: Callable[[int, int], Block],
    needs_gradients: bool,
) -> Found:
    """The loss [] in at least fp32 and, if needed, the gradients in the dtype and shape of the three inputs."""
    wide = wide_dtype(q_index)
    b, t = q_index.shape[:2]
    (s, d), num_queries = k_index.shape[1:], b * t
    loss = q_index.new_zeros((), dtype=wide)
    grad_q = q_index.new_empty(q_index.shape if needs_gradients else 0)
    grad_weights = weights.new_empty(weights.shape if needs_gradients else 0)
    grad_keys = k_index.new_zeros((b, s, d) if needs_gradients else 0, dtype=wide)
    for start, stop in blocks(t):
        target, counts, ids_BQK = block(start, stop)
        target = target.to(wide)
        q_BQHD = q_index[:, start:stop].to(wide)
        weights_BQH = weights[:, start:stop].to(wide)
        keys = k_index[:, :stop] if ids_BQK is None else gather_rows(k_index, ids_BQK)
        keys = keys.to(wide)
        found = products(q_BQHD, keys)
        scores = weighted(found, weights_BQH).masked_fill(~counts, torch.finfo(wide).min)
        log_q = torch.log_softmax(scores, dim=-1).masked_fill_(~counts, 0.0)
        loss += (torch.xlogy(target, target) - target * log_q).sum() / num_queries
        if not needs_gradients:
            continue
        softmax = log_q.exp_().masked_fill_(~counts, 0.0)
        grad_scores = (softmax.mul_(target.sum(dim=-1, keepdim=True)) - target).div_(num_queries)
        block_q, block_keys, block_weights = gradients(
            grad_scores, found, q_BQHD, keys, weights_BQH
        )
        grad_q[:, start:stop] = block_q
        grad_weights[:, start:stop] = block_weights
        if ids_BQK is None:
            grad_keys[:, :stop] += block_keys
        else:
            rows = flat_rows(ids_BQK, s).flatten()  # a −1 adds the zeros of its masked score
            grad_keys.view(b * s, d).index_add_(0, rows, block_keys.flatten(0, 2))
    return loss, grad_q, grad_keys.to(k_index.dtype), grad_weights


selected_op = torch.library.custom_op("lanewise::indexer_loss_blocked", _selected, mutates_args=())
visible_op = torch.library.custom_op(
    "lanewise::indexer_warmup_loss_blocked", _visible, mutates_args=()
)


def _fake(q_index: Tensor, k_index: Tensor, weights: Tensor, *others: Any) -> Found:
    needs_gradients: bool = others[-1]
    inputs = (q_index, k_index, weights)
    found = (x.new_empty(x.shape if needs_gradients else 0) for x in inputs)
    grad_q, grad_keys, grad_weights = found
    return q_index.new_empty((), dtype=wide_dtype(q_index)), grad_q, grad_keys, grad_weights


selected_op.register_fake(_fake)
visible_op.register_fake(_fake)
