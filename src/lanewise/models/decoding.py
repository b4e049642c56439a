"""Attention of the newest tokens over a cache, for `extend` of the attention blocks.

    out_t = Σ_{s ≤ t} softmax_s(scale · q_t·k_s) v_s        for the last T of S positions

Queries are taken in blocks, so that a long prefill holds [B, H, block, S] and never [B, H, T, S]; all query heads of one key
head are rows of one product, so that the cache is read as it lies.
Legend: B batch, H heads, H_kv key and value heads, T new positions, S all positions so far, D head dim.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

QUERY_BLOCK = 128
"""Queries of one block of a prefill."""


def attend_newest(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """Attend from the last T of S positions, causally.

    Args:
        q: [B, H, T, D_qk].
        k: [B, H_kv, S, D_qk], S ≥ T.
        v: [B, H_kv, S, D_v].
        scale: factor of the scores.

    Returns:
        [B, H, T, D_v].
    """
    b, h, t, d = q.shape
    h_kv, s = k.shape[1:3]
    grouped = q.reshape(b, h_kv, h // h_kv, t, d)
    out = []
    for start in range(0, t, QUERY_BLOCK):
        stop = min(start + QUERY_BLOCK, t)
        num_visible = s - t + stop
        rows = grouped[:, :, :, start:stop].flatten(2, 3)
        ones = torch.ones(stop - start, num_visible, dtype=torch.bool, device=q.device)
        visible = ones.tril(num_visible - (stop - start)).repeat(h // h_kv, 1)
        attended = F.scaled_dot_product_attention(
            rows, k[:, :, :num_visible], v[:, :, :num_visible], attn_mask=visible, scale=scale
        )
        out.append(attended.view(b, h, stop - start, -1))
    return torch.cat(out, dim=2)
