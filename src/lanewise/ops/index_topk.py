"""Lightning indexer: the keys that sparse attention will read, chosen by cheap scores.

    I[t,s] = Σ_j w[t,j] · ReLU(q_j[t]·k[s])            s visible to t: not later, and in the same document
    key_ids[t] = the min(top_k, visible) positions s with the highest I[t,s], of equal scores the lower position

Legend: B batch, T queries, S ≥ T keys, H_I index heads, D_I index head dim, k = min(top_k, S). Problem dims: B, T, H_I,
D_I, k.
Shapes: q_index [B, T, H_I, D_I], k_index [B, S, D_I] (one head), weights [B, T, H_I], document_ids int64 [B, T] or None
→ key_ids int64 [B, T, k], rising, −1 after the last. The queries are the last T of the S positions; S > T is decoding,
which knows no document_ids. Every query sees itself, so every row has at least one key.
Dtypes: q_index, k_index and weights alike; scores are taken in at least fp32. Not differentiable: what trains the indexer
is `indexer_loss`.
Limits: the mask is applied before the choice, so that no key is lost to a position that may not be seen. Backends hold the
scores of a block of queries, never [B, T, S].
Source: DeepSeek-V3.2-Exp: Boosting Long-Context Efficiency with DeepSeek Sparse Attention (2025), eqs. 1 and 2.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lanewise.ops.observe import Launch
from lanewise.ops.spec import Backend, OpSpec

SPEC = OpSpec(
    name="index_topk",
    reference="reference",
    backends=(
        Backend(
            name="blocked.torch",
            target="lanewise.kernels.index_topk_torch:blocked",
            note="query blocks; topk finds the lowest score kept, ties go to the first",
        ),
        Backend(
            name="reference",
            target="lanewise.ops.index_topk:reference",
            note="the oracle: all scores, mask, a stable sort",
        ),
    ),
)


def reference(
    q_index: Tensor, k_index: Tensor, weights: Tensor, top_k: int, document_ids: Tensor | None
) -> Tensor:
    """All scores at once, the mask, and a stable sort of every row."""
    with torch.no_grad():
        scores = index_scores(q_index, k_index, weights)
        scores = scores.masked_fill(~visible_keys(scores, document_ids), float("-inf"))
        num_keys = scores.shape[-1]
        best = scores.sort(dim=-1, descending=True, stable=True)
        width = min(top_k, num_keys)
        ids = best.indices[..., :width].masked_fill(
            best.values[..., :width] == float("-inf"), num_keys
        )
        ids = ids.sort(dim=-1).values
    return ids.masked_fill(ids == num_keys, -1)


def index_scores(q_index: Tensor, k_index: Tensor, weights: Tensor) -> Tensor:
    """I [B, T, S] of every query and key, visible or not; the oracle's, in at least fp32."""
    wide = torch.promote_types(q_index.dtype, torch.float32)
    dots = torch.einsum("bthd,bsd->bths", q_index.to(wide), k_index.to(wide))
    return torch.einsum("bth,bths->bts", weights.to(wide), dots.relu())


def visible_keys(scores: Tensor, document_ids: Tensor | None) -> Tensor:
    """bool [B or 1, T, S]: key not later than the query, and of its document; the queries are the last T positions."""
    num_queries, num_keys = scores.shape[-2:]
    seen = torch.ones(num_queries, num_keys, dtype=torch.bool, device=scores.device)
    seen = seen.tril(diagonal=num_keys - num_queries).unsqueeze(0)
    if document_ids is None:
        return seen
    return seen & (document_ids.unsqueeze(2) == document_ids.unsqueeze(1))


def require_index_shapes(op: str, q_index: Tensor, k_index: Tensor, weights: Tensor) -> None:
    """Refuse indexer tensors that do not fit each other.

    Raises:
        ValueError: naming the op, the shapes received and the rule.
    """
    if q_index.dim() != 4 or weights.shape != q_index.shape[:3]:
        raise ValueError(
            f"{op}: q_index is {list(q_index.shape)}, weights is {list(weights.shape)}; "
            "they must be [B, T, H_I, D_I] and [B, T, H_I]"
        )
    b, t, _, d = q_index.shape
    if k_index.dim() != 3 or (k_index.shape[0], k_index.shape[2]) != (b, d) or k_index.shape[1] < t:
        raise ValueError(
            f"{op}: k_index is {list(k_index.shape)} and must be [B, S, D_I] = [{b}, at least {t}, {d}]"
        )


def require_document_shape(op: str, document_ids: Tensor | None, b: int, t: int, s: int) -> None:
    """Refuse document ids that do not number the keys.

    Raises:
        ValueError: naming the op, the shape received and the rule.
    """
    if document_ids is not None and (document_ids.shape != (b, t) or s != t):
        raise ValueError(
            f"{op}: document_ids is {list(document_ids.shape)} with {t} queries and {s} keys; it must be [B, T] = "
            f"[{b}, {t}], as many keys as queries"
        )


def index_topk(
    run: Launch,
    q_index: Tensor,
    k_index: Tensor,
    weights: Tensor,
    top_k: int,
    document_ids: Tensor | None = None,
) -> Tensor:
    """Choose keys, with the chosen backend.

    Args:
        run: the chosen backend.
        q_index: [B, T, H_I, D_I].
        k_index: [B, S, D_I].
        weights: [B, T, H_I], scaled.
        top_k: most keys a query keeps, at least 1.
        document_ids: int64 [B, T], or None when rows are one document.

    Returns:
        int64 [B, T, min(top_k, S)], rising, −1 after the last.
    """
    require_index_shapes("index_topk", q_index, k_index, weights)
    if top_k < 1:
        raise ValueError(f"index_topk: top_k is {top_k}; a query keeps at least one key")
    b, t = q_index.shape[:2]
    require_document_shape("index_topk", document_ids, b, t, k_index.shape[1])
    key_ids: Tensor = run(q_index, k_index, weights, top_k, document_ids)
    return key_ids
