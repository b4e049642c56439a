"""Causal attention in torch ops: SDPA as it is, SDPA on padded head dims, and query blocks with an explicit backward.

B batch, H heads, T sequence, D head dim; the suffix of a name is its shape, N = B·H.

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


def sdpa(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """The control: torch's scaled_dot_product_attention, called as it is."""
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale)


def padded(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """SDPA with the narrower head dim filled up with zeros, so that the flash kernel is eligible."""
    extra = q.shape[-1] - v.shape[-1]
    if extra >= 0:
        return sdpa(q, k, F.pad(v, (0, extra)), scale)[..., : v.shape[-1]]
    return sdpa(F.pad(q, (0, -extra)), F.pad(k, (0, -extra)), v, scale)


def blocked(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """Blocks of queries against the keys they may see; probabilities are kept for an explicit backward."""
    return _Blocked.apply(q, k, v, scale)


def _blocks(t: int) -> list[tuple[int, int]]:
    size = max(MIN_BLOCK, -(-t // NUM_BLOCKS))
    return [(start, min(start + size, t)) for start in range(0, t, size)]


class _Blocked(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        b, h, t, d_v = v.shape
        q_NTD, k_NTD, v_NTD = (x.reshape(b * h, t, x.shape[-1]) for x in (q, k, v))
        out_NTD = v.new_empty(b * h, t, d_v)
        kept = []
        for start, stop in _blocks(t):
            mask = q.new_full((stop - start, stop), float("-inf")).triu_(start + 1)
            scores = torch.baddbmm(
                mask, q_NTD[:, start:stop], k_NTD[:, :stop].transpose(1, 2), alpha=scale
            )
            probabilities = torch.softmax(scores, dim=-1)
            out_NTD[:, start:stop] = torch.bmm(probabilities, v_NTD[:, :stop])
            kept.append(probabilities)
        ctx.save_for_backward(q_NTD, k_NTD, v_NTD, out_NTD, *kept)
        ctx.scale = scale
        return out_NTD.view(b, h, t, d_v)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Any, ...]:
        q_NTD, k_NTD, v_NTD, out_NTD, *kept = ctx.saved_tensors
        b, h, t, d_v = grad_out.shape
        grad_NTD = grad_out.reshape(b * h, t, d_v)
        # Softmax backward: dS = P ∘ (dP − Σ dP∘P), and Σ_keys dP∘P = Σ_D dO∘O.
        row_sums = (grad_NTD * out_NTD).sum(dim=-1, keepdim=True)
        grad_q = torch.empty_like(q_NTD)
        grad_k, grad_v = torch.zeros_like(k_NTD), torch.zeros_like(v_NTD)
        for (start, stop), probabilities in zip(_blocks(t), kept, strict=True):
            grad_block = grad_NTD[:, start:stop]
            grad_v[:, :stop].baddbmm_(probabilities.transpose(1, 2), grad_block)
            grad_scores = torch.baddbmm(
                row_sums[:, start:stop], grad_block, v_NTD[:, :stop].transpose(1, 2), beta=-1
            ).mul_(probabilities)
            grad_q[:, start:stop] = torch.bmm(grad_scores, k_NTD[:, :stop])
            grad_k[:, :stop].baddbmm_(
                grad_scores.transpose(1, 2), q_NTD[:, start:stop], alpha=ctx.scale
            )
        grad_q.mul_(ctx.scale)
        return (*(x.view(b, h, t, x.shape[-1]) for x in (grad_q, grad_k, grad_v)), None)
