"""Causal softmax attention with its own head dim for values.

    out_t = Σ_{s ≤ t} softmax_s(scale · q_t·k_s) v_s

Legend: B batch, H heads, T sequence, D_qk head dim of q and k, D_v of v. Problem dims: B, H, T, D_qk, D_v.
Shapes: q, k [B, H, T, D_qk], v [B, H, T, D_v] → [B, H, T, D_v]. Scale is a plain number, for MLA (D_n+D_r)^−½.
Dtypes: q, k and v alike, result the same.
Sources: Vaswani et al., arXiv 1706.03762, eq. 1; Dao et al., FlashAttention, arXiv 2205.14135, §3.1 (backward).

The default order was measured on one x86-64 core, fp32, forward and backward, in ms of CPU time. With equal head dims
torch's flash kernel is eligible and ahead up to T 128; with unequal ones, as in MLA, the blocks win:

    B·H  T      D_qk  D_v    sdpa   padded   blocked
    64   64     32    32      3.1      –       3.6
    64   128    32    32      9.6      –      10.7
    64   64     48    32      5.6     5.9      5.1
    16   512    128   64       88      98       54
     8   1,024  128   64      212     146      101
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from lanewise.ops.observe import Launch
from lanewise.ops.spec import Backend, Needs, OpSpec

MAX_BLOCKED_T = 1_024
"""`blocked.torch` keeps B·H·T²/2 probabilities; beyond this length they outgrow what flash attention saves."""


def _fits_blocked(dims: Mapping[str, int]) -> str | None:
    if dims["T"] > MAX_BLOCKED_T:
        return f"T = {dims['T']} is above {MAX_BLOCKED_T}: it keeps B·H·T²/2 probabilities"
    if dims["D_qk"] == dims["D_v"]:
        return f"D_qk = D_v = {dims['D_v']}: torch's flash kernel is eligible and as fast"
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


def reference(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """Explicit scores, mask and softmax, the latter in at least fp32."""
    t = q.shape[-2]
    wide = torch.promote_types(q.dtype, torch.float32)
    scores = scale * (q @ k.transpose(-2, -1)).to(wide)
    future = torch.ones(t, t, dtype=torch.bool, device=q.device).triu(diagonal=1)
    probabilities = scores.masked_fill(future, float("-inf")).softmax(dim=-1)
    return probabilities.to(v.dtype) @ v


def attention_core(run: Launch, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """Attend causally, with the chosen backend.

    Args:
        run: the chosen backend.
        q: [B, H, T, D_qk].
        k: [B, H, T, D_qk].
        v: [B, H, T, D_v].
        scale: factor of the scores.

    Returns:
        [B, H, T, D_v].
    """
    if q.dim() != 4 or k.shape != q.shape:
        raise ValueError(
            f"attention_core: q is {list(q.shape)}, k is {list(k.shape)}; both must be [B, H, T, D_qk]"
        )
    if v.shape[:3] != q.shape[:3]:
        raise ValueError(
            f"attention_core: v is {list(v.shape)} and must be [B, H, T, D_v] with "
            f"[B, H, T] = {list(q.shape[:3])}"
        )
    out: Tensor = run(q, k, v, scale)
    return out
