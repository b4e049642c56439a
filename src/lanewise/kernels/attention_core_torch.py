"""Causal attention in torch ops: SDPA as it is, SDPA on padded head dims, and query blocks with an explicit backward.

B batch, H heads, T sequence, D head dim, R = H / H_kv query heads of one key head; the suffix of a name is its shape, with
N = B·H_kv products of S = T·R rows.

torch's CPU flash kernel wants equal head dims of q, k and v; with unequal ones `scaled_dot_product_attention` takes
its math path in silence (seen in the profiler on torch 2.13). `padded` fills the narrower side with zeros, which changes
neither scores nor outputs. `blocked` walks blocks of queries and never touches a key block that the causal mask hides,
so it does (1 + 1/blocks)/2 of the multiplications; it keeps the probabilities, hence its limit on T.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

NUM_BLOCKS = 8
"""Query blocks: more skip more of the mask, fewer keep the products large; 8 was best or within 5 % at T 64–1,024."""
MIN_BLOCK = 32
"""Rows below which a product no longer pays for its call."""


def sdpa(
    q: Tensor, k: Tensor, v: Tensor, scale: float, document_ids: Tensor | None = None
) -> Tensor:
    """The control: torch's scaled_dot_product_attention, called as it is; documents are a mask [B, 1, T, T]."""
    mask = None
    if document_ids is not None:
        mask = (document_ids[:, None, :, None] == document_ids[:, None, None, :]).tril()
    return F.scaled_dot_product_attention(
        q,
        k,
        v,
        attn_mask=mask,
        is_causal=mask is None,
        scale=scale,
        enable_gqa=q.shape[1] != k.shape[1],
    )


def padded(
    q: Tensor, k: Tensor, v: Tensor, scale: float, document_ids: Tensor | None = None
) -> Tensor:
    """SDPA with the narrower head dim filled up with zeros, so that the flash kernel is eligible."""
    extra = q.shape[-1] - v.shape[-1]
    if extra >= 0:
        return sdpa(q, k, F.pad(v, (0, extra)), scale, document_ids)[..., : v.shape[-1]]
    return sdpa(F.pad(q, (0, -extra)), F.pad(k, (0, -extra)), v, scale, document_ids)


def blocked(
    q: Tensor, k: Tensor, v: Tensor, scale: float, document_ids: Tensor | None = None
) -> Tensor:
    """Blocks of queries against the keys they may see; probabilities are kept for an explicit backward."""
    return _Blocked.apply(q, k, v, scale, document_ids)


def _blocks(t: int) -> list[tuple[int, int]]:
    size = max(MIN_BLOCK, -(-t // NUM_BLOCKS))
    return [(start, min(start + size, t)) for start in range(0, t, size)]


class _Blocked(torch.autograd.Function):
    """All query heads of one key head are rows of one product: row r of a block is position r // R, query head r % R."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, scale: float, document_ids: Tensor | None
    ) -> Tensor:
        b, h_kv, t, d_v = v.shape
        num_queries = q.shape[1] // h_kv
        q_NSD = _rows(q, h_kv)
        k_NTD, v_NTD = (x.reshape(b * h_kv, t, x.shape[-1]) for x in (k, v))
        out_NSD = v.new_empty(b * h_kv, t * num_queries, d_v)
        kept = []
        for start, stop in _blocks(t):
            rows = slice(start * num_queries, stop * num_queries)
            mask = q.new_full((stop - start, stop), float("-inf")).triu_(start + 1)
            scores = torch.baddbmm(
                mask if num_queries == 1 else mask.repeat_interleave(num_queries, dim=0),
                q_NSD[:, rows],
                k_NTD[:, :stop].transpose(1, 2),
                alpha=scale,
            )
            if document_ids is not None:
                other = document_ids[:, start:stop, None] != document_ids[:, None, :stop]
                by_position = scores.view(b, h_kv, stop - start, num_queries, stop)
                by_position.masked_fill_(other[:, None, :, None], float("-inf"))
            probabilities = torch.softmax(scores, dim=-1)
            out_NSD[:, rows] = torch.bmm(probabilities, v_NTD[:, :stop])
            kept.append(probabilities)
        ctx.save_for_backward(q_NSD, k_NTD, v_NTD, out_NSD, *kept)
        ctx.scale = scale
        ctx.num_kv_heads = h_kv
        return _heads(out_NSD, b, num_queries)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Any, ...]:
        q_NSD, k_NTD, v_NTD, out_NSD, *kept = ctx.saved_tensors
        b, h, t, _ = grad_out.shape
        h_kv = ctx.num_kv_heads
        num_queries = h // h_kv
        grad_NSD = _rows(grad_out, h_kv)
        # Softmax backward: dS = P ∘ (dP − Σ dP∘P), and Σ_keys dP∘P = Σ_D dO∘O.
        row_sums = (grad_NSD * out_NSD).sum(dim=-1, keepdim=True)
        grad_q = torch.empty_like(q_NSD)
        grad_k, grad_v = torch.zeros_like(k_NTD), torch.zeros_like(v_NTD)
        for (start, stop), probabilities in zip(_blocks(t), kept, strict=True):
            rows = slice(start * num_queries, stop * num_queries)
            grad_block = grad_NSD[:, rows]
            grad_v[:, :stop].baddbmm_(probabilities.transpose(1, 2), grad_block)
            grad_scores = torch.baddbmm(
                row_sums[:, rows], grad_block, v_NTD[:, :stop].transpose(1, 2), beta=-1
            ).mul_(probabilities)
            grad_q[:, rows] = torch.bmm(grad_scores, k_NTD[:, :stop])
            grad_k[:, :stop].baddbmm_(grad_scores.transpose(1, 2), q_NSD[:, rows], alpha=ctx.scale)
        grad_q.mul_(ctx.scale)
        return (
            _heads(grad_q, b, num_queries),
            *(x.view(b, h_kv, t, x.shape[-1]) for x in (grad_k, grad_v)),
            None,
            None,
        )


def _rows(x: Tensor, num_kv_heads: int) -> Tensor:
    """[B, H, T, D] → [B·H_kv, T·R, D] with R = H / H_kv; no copy where memory allows (R = 1, or H inside T already)."""
    b, h, t, d = x.shape
    grouped = x.reshape(b, num_kv_heads, h // num_kv_heads, t, d).transpose(2, 3)
    return grouped.reshape(b * num_kv_heads, -1, d)


def _heads(rows: Tensor, batch: int, num_queries: int) -> Tensor:
    """[B·H_kv, T·R, D] → [B, H, T, D], the way back from `_rows`."""
    n, length, d = rows.shape
    grouped = rows.view(batch, n // batch, length // num_queries, num_queries, d).transpose(2, 3)
    return grouped.reshape(batch, -1, length // num_queries, d)
