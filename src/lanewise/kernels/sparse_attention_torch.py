"""Attention over selected keys in torch ops, a block of queries at a time, with an explicit backward.

B batch, Q queries of a block, H heads, K selected keys, D key dim, C value dim, S keys; the suffix of a name is its shape.

A block gathers its keys [B, Q, K, D] once for all heads. Nothing of the forward is kept but its inputs: the backward
gathers and takes the softmax again, which costs a third of the products and saves H·K numbers per query. The walks over
blocks are `torch.library` ops: a compiler would unroll T/32 blocks, and recompute would keep results of their products.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lanewise.kernels.index_scores_torch import blocks, flat_rows, gather_rows, wide_dtype


def blocked(
    q: Tensor, keys: Tensor, key_ids: Tensor, scale: float, num_value_dims: int
) -> tuple[Tensor, Tensor]:
    """Gather, softmax and sum per block of queries; recomputed in the backward."""
    out, selected_probability = _Blocked.apply(q, keys, key_ids, scale, num_value_dims)
    return out, selected_probability


def _probabilities(q_BQHD: Tensor, gathered_BQKD: Tensor, ids_BQK: Tensor, scale: float) -> Tensor:
    """Softmax over the selected keys [B, Q, H, K] in at least fp32, 0 at −1."""
    wide = wide_dtype(q_BQHD)
    absent = (ids_BQK < 0).unsqueeze(2)
    # Not in place: whoever keeps results of products for recomputation keeps this one.
    scores = (q_BQHD @ gathered_BQKD.transpose(-2, -1)).to(wide) * scale
    scores.masked_fill_(absent, torch.finfo(wide).min)  # finite: a row of −1 alone gives 0, not NaN
    return torch.softmax(scores, dim=-1).masked_fill_(absent, 0.0)


class _Blocked(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, keys: Tensor, key_ids: Tensor, scale: float, num_value_dims: int
    ) -> tuple[Tensor, Tensor]:
        out, mean = forward_op(q, keys, key_ids, scale, num_value_dims)
        ctx.save_for_backward(q, keys, key_ids)
        ctx.scale, ctx.num_value_dims = scale, num_value_dims
        ctx.mark_non_differentiable(mean)
        return out, mean

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor, _: Tensor) -> tuple[Any, ...]:
        found = backward_op(grad_out, *ctx.saved_tensors, ctx.scale, ctx.num_value_dims)
        return (*found, *(None,) * 3)


def _forward(
    q: Tensor, keys: Tensor, key_ids: Tensor, scale: float, num_value_dims: int
) -> tuple[Tensor, Tensor]:
    b, t, h, _ = q.shape
    out = q.new_empty(b, t, h, num_value_dims)
    mean = torch.empty(key_ids.shape, dtype=wide_dtype(q), device=q.device)
    for start, stop in blocks(t):
        ids_BQK = key_ids[:, start:stop]
        gathered = gather_rows(keys, ids_BQK)
        p_BQHK = _probabilities(q[:, start:stop], gathered, ids_BQK, scale)
        out[:, start:stop] = p_BQHK.to(q.dtype) @ gathered[..., :num_value_dims]
        mean[:, start:stop] = p_BQHK.mean(dim=2)
    return out, mean


def _backward(
    grad_out: Tensor, q: Tensor, keys: Tensor, key_ids: Tensor, scale: float, num_value_dims: int
) -> tuple[Tensor, Tensor]:
    """Gradients of q and keys."""
    (b, t, _, d), s, c = q.shape, keys.shape[1], num_value_dims
    grad_q = q.new_empty(q.shape)
    grad_keys = q.new_zeros(b * s, d, dtype=wide_dtype(q))
    for start, stop in blocks(t):
        ids_BQK, q_BQHD = key_ids[:, start:stop], q[:, start:stop]
        gathered = gather_rows(keys, ids_BQK)
        p_BQHK = _probabilities(q_BQHD, gathered, ids_BQK, scale)
        grad_BQHC = grad_out[:, start:stop]
        # Softmax backward: dS = P ∘ (dP − Σ dP∘P).
        grad_p = (grad_BQHC @ gathered[..., :c].transpose(-2, -1)).to(p_BQHK.dtype)
        row_sums = (grad_p * p_BQHK).sum(dim=-1, keepdim=True)
        grad_scores = ((grad_p - row_sums) * p_BQHK).mul_(scale).to(q.dtype)
        grad_q[:, start:stop] = grad_scores @ gathered
        grad_gathered = (grad_scores.transpose(-2, -1) @ q_BQHD).to(grad_keys.dtype)
        grad_gathered[..., :c] += p_BQHK.to(q.dtype).transpose(-2, -1) @ grad_BQHC
        # −1 fetched row 0 and has probability 0, so what it adds there is 0.
        grad_keys.index_add_(0, flat_rows(ids_BQK, s).flatten(), grad_gathered.flatten(0, 2))
    return grad_q, grad_keys.view(b, s, d).to(keys.dtype)


forward_op = torch.library.custom_op(
    "lanewise::sparse_attention_forward", _forward, mutates_args=()
)
backward_op = torch.library.custom_op(
    "lanewise::sparse_attention_backward", _backward, mutates_args=()
)


@forward_op.register_fake
def _(
    q: Tensor,
    keys: Tensor,
    key_ids: Tensor,
    scale: float,
    num_value_dims: int,
) -> tuple[Tensor, Tensor]:
    out = q.new_empty(*q.shape[:3], num_value_dims)
    return out, torch.empty(key_ids.shape, dtype=wide_dtype(q), device=q.device)


@backward_op.register_fake
def _(
    grad_out: Tensor,
    q: Tensor,
    keys: Tensor,
    key_ids: Tensor,
    scale: float,
    num_value_dims: int,
) -> tuple[Tensor, Tensor]:
    return q.new_empty(q.shape), keys.new_empty(keys.shape)
