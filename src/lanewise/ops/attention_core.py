"""Causal softmax attention with its own head dim for values, grouped heads and documents.

    out_t = Σ_{s ≤ t, document_s = document_t} softmax_s(scale · q_t·k_s) v_s

Query head h reads key and value head ⌊h / (H / H_kv)⌋, so H_kv = H is multi-head and H_kv = 1 multi-query attention.
Legend: B batch, H heads, H_kv key and value heads, T sequence, D_qk head dim of q and k, D_v of v. Problem dims: B, H,
H_kv, T, D_qk, D_v, and `documents`, 1 where document ids are given.
Shapes: q [B, H, T, D_qk], k [B, H_kv, T, D_qk], v [B, H_kv, T, D_v], document_ids [B, T] or None → [B, H, T, D_v]. H_kv
divides H; v may be a view of k. Scale is a plain number, for MLA (D_n+D_r)^−½.
Dtypes: q, k and v alike, result the same; document_ids int64.
Sources: Vaswani et al., arXiv 1706.03762, eq. 1; Ainslie et al., GQA, arXiv 2305.13245, §2.2; Dao et al.,
FlashAttention, arXiv 2205.14135, §3.1 (backward).

The default order was measured on one x86-64 core, fp32, forward and backward, in ms of CPU time (least of many). With
equal head dims torch's flash kernel is eligible, grouped heads and document masks included, and ahead up to T 128; beyond
that, and with unequal dims as in MLA, the blocks win. Eight documents a row add 5 to 30 % to every backend:

    B·H  H/H_kv  T      D_qk  D_v    sdpa   padded   blocked
    32   1       64     32    32      1.4      –       1.6
    64   1       128    32    32      9.5      –       8–11
    32   1       64     32    16      1.7     1.5      1.3
    32   4       64     48    32      2.2     1.7      1.6
    16   1       512    64    64       51      –        33
    16   4       512    64    64       50      –        29
    16   8       512    128   64       82      90       39
    8    8       1,024  128   64      220     133       74
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from lanewise.ops.observe import Launch
from lanewise.ops.spec import Backend, Needs, OpSpec

MAX_BLOCKED_T = 1_024
"""`blocked.torch` keeps B·H·T²/2 probabilities; beyond this length they outgrow what flash attention saves."""

FLASH_AHEAD_T = 128
"""Longest T at which torch's flash kernel, eligible with equal head dims, is as fast as the blocks."""


def _fits_blocked(dims: Mapping[str, int]) -> str | None:
    if dims["T"] > MAX_BLOCKED_T:
        return f"T = {dims['T']} is above {MAX_BLOCKED_T}: it keeps B·H·T²/2 probabilities"
    if dims["D_qk"] == dims["D_v"] and dims["T"] <= FLASH_AHEAD_T:
        return (
            f"D_qk = D_v = {dims['D_v']} and T = {dims['T']} ≤ {FLASH_AHEAD_T}: torch's flash kernel is eligible "
            "and as fast"
        )
    return None


def _needs_padding(dims: Mapping[str, int]) -> str | None:
    if dims["D_qk"] == dims["D_v"]:
        return f"D_qk = D_v = {dims['D_v']}: nothing to pad, it would be sdpa.torch"
    return None


SPEC = OpSpec(
    name="attention_core",
    reference="reference",
    backends=(
        Backend(
            name="blocked.torch",
            target="lanewise.kernels.attention_core_torch:blocked",
            needs=Needs(device_types=frozenset({"cpu"}), shape_rule=_fits_blocked),
            note="query blocks that skip masked keys; keeps probabilities",
        ),
        Backend(
            name="padded.torch",
            target="lanewise.kernels.attention_core_torch:padded",
            needs=Needs(shape_rule=_needs_padding),
            note="SDPA with equal head dims, so that its flash kernel is eligible",
        ),
        Backend(
            name="sdpa.torch",
            target="lanewise.kernels.attention_core_torch:sdpa",
            note="torch.nn.functional.scaled_dot_product_attention as it is",
        ),
        Backend(
            name="reference",
            target="lanewise.ops.attention_core:reference",
            note="the oracle: explicit scores, mask, softmax",
        ),
    ),
)


def reference(
    q: Tensor, k: Tensor, v: Tensor, scale: float, document_ids: Tensor | None = None
) -> Tensor:
    """Explicit scores, mask and softmax, the latter in at least fp32."""
    t, group = q.shape[-2], q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
    wide = torch.promote_types(q.dtype, torch.float32)
    scores = scale * (q @ k.transpose(-2, -1)).to(wide)
    hidden = torch.ones(t, t, dtype=torch.bool, device=q.device).triu(diagonal=1)
    if document_ids is not None:
        hidden = hidden | (document_ids[:, None, :, None] != document_ids[:, None, None, :])
    probabilities = scores.masked_fill(hidden, float("-inf")).softmax(dim=-1)
    return probabilities.to(v.dtype) @ v


def attention_core(
    run: Launch,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float,
    document_ids: Tensor | None = None,
) -> Tensor:
    """Attend causally, with the chosen backend.

    Args:
        run: the chosen backend.
        q: [B, H, T, D_qk].
        k: [B, H_kv, T, D_qk], H_kv a divisor of H.
        v: [B, H_kv, T, D_v].
        scale: factor of the scores.
        document_ids: int64 [B, T], or None when every row is one document; a query sees keys of its own number only.

    Returns:
        [B, H, T, D_v].

    Raises:
        ValueError: a shape or dtype does not fit.
    """
    if q.dim() != 4 or k.dim() != 4 or (k.shape[0], *k.shape[2:]) != (q.shape[0], *q.shape[2:]):
        raise ValueError(
            f"attention_core: q is {list(q.shape)}, k is {list(k.shape)}; they must be "
            "[B, H, T, D_qk] and [B, H_kv, T, D_qk]"
        )
    if q.shape[1] % k.shape[1]:
        raise ValueError(
            f"attention_core: {k.shape[1]} key heads (H_kv) do not divide {q.shape[1]} query heads (H)"
        )
    if v.shape[:3] != k.shape[:3]:
        raise ValueError(
            f"attention_core: v is {list(v.shape)} and must be [B, H_kv, T, D_v] with "
            f"[B, H_kv, T] = {list(k.shape[:3])}"
        )
    if document_ids is not None and (
        document_ids.shape != (q.shape[0], q.shape[2]) or document_ids.dtype != torch.int64
    ):
        raise ValueError(
            f"attention_core: document_ids is {document_ids.dtype} {list(document_ids.shape)} and must be "
            f"int64 [B, T] = {[q.shape[0], q.shape[2]]}"
        )
    out: Tensor = run(q, k, v, scale, document_ids)
    return out
