"""Attention over selected keys, with one key head shared by all query heads: MLA in absorbed form.

    P_h[t,s] = softmax over s in key_ids[t] of scale · q_h[t]·keys[s]
    out_h[t] = Σ_s P_h[t,s] keys[s][:C]                         selected_probability[t,i] = mean_h P_h[t, key_ids[t,i]]

Legend: B batch, T queries, S ≥ T keys, H heads, C value dims (the latent), D_r rope dims, k selected keys. Problem dims:
B, T, H, C, D_r, k.
Shapes: q [B, T, H, C+D_r], keys [B, S, C+D_r], key_ids int64 [B, T, k] → out [B, T, H, C], selected_probability
[B, T, k]. Scale is a plain number, for MLA (D_n+D_r)^−½ of the head before absorption.
Ids are distinct positions of keys, or −1, which counts for nothing; the selection is the only mask. Whoever selects lets
every query see itself, so a row always has a key; a row of −1 alone gives 0.
Dtypes: q and keys alike, out the same; selected_probability is at least fp32, 0 at −1, and not differentiated: it is the
target of `indexer_loss`.
Source: DeepSeek-V3.2-Exp: Boosting Long-Context Efficiency with DeepSeek Sparse Attention (2025), eq. 2.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lanewise.ops.observe import Launch
from lanewise.ops.spec import Backend, OpSpec

SPEC = OpSpec(
    name="sparse_attention",
    reference="reference",
    backends=(
        Backend(
            name="blocked.torch",
            target="lanewise.kernels.sparse_attention_torch:blocked",
            note="query blocks over gathered keys; recomputed in an explicit backward",
        ),
        Backend(
            name="reference",
            target="lanewise.ops.sparse_attention:reference",
            note="the oracle: gather, softmax, sum, one row of the batch and one head at a time",
        ),
    ),
)


def reference(
    q: Tensor, keys: Tensor, key_ids: Tensor, scale: float, num_value_dims: int
) -> tuple[Tensor, Tensor]:
    """Gather, softmax and sum, one row of the batch and one head at a time."""
    wide = torch.promote_types(q.dtype, torch.float32)
    rows, probability_rows = [], []
    for q_THD, keys_SD, ids_Tk in zip(q, keys, key_ids, strict=True):
        absent = ids_Tk < 0
        gathered_TkD = keys_SD[ids_Tk.clamp(min=0)]
        outs, probabilities = [], []
        for h in range(q.shape[2]):
            scores = scale * torch.einsum("td,tkd->tk", q_THD[:, h], gathered_TkD).to(wide)
            scores = scores.masked_fill(absent, torch.finfo(wide).min)
            p_Tk = scores.softmax(dim=-1).masked_fill(absent, 0.0)
            values = gathered_TkD[..., :num_value_dims]
            outs.append(torch.einsum("tk,tkc->tc", p_Tk.to(q.dtype), values))
            probabilities.append(p_Tk.detach())
        rows.append(torch.stack(outs, dim=1))
        probability_rows.append(torch.stack(probabilities).mean(dim=0))
    return torch.stack(rows), torch.stack(probability_rows)


def sparse_attention(
    run: Launch, q: Tensor, keys: Tensor, key_ids: Tensor, scale: float, num_value_dims: int
) -> tuple[Tensor, Tensor]:
    """Attend to the selected keys, with the chosen backend.

    Args:
        run: the chosen backend.
        q: [B, T, H, C+D_r].
        keys: [B, S, C+D_r].
        key_ids: int64 [B, T, k], −1 pads.
        scale: factor of the scores.
        num_value_dims: C, the first dims of a key, which are its value.

    Returns:
        out [B, T, H, C] and selected_probability [B, T, k].
    """
    if (
        q.dim() != 4
        or keys.dim() != 3
        or (keys.shape[0], keys.shape[2]) != (q.shape[0], q.shape[3])
    ):
        raise ValueError(
            f"sparse_attention: q is {list(q.shape)}, keys is {list(keys.shape)}; they must be [B, T, H, C+D_r] and "
            "[B, S, C+D_r]"
        )
    if key_ids.dim() != 3 or key_ids.shape[:2] != q.shape[:2] or key_ids.dtype != torch.int64:
        raise ValueError(
            f"sparse_attention: key_ids is {key_ids.dtype} {list(key_ids.shape)} and must be int64 [B, T, k] with "
            f"[B, T] = {list(q.shape[:2])}"
        )
    if not 1 <= num_value_dims <= q.shape[-1]:
        raise ValueError(
            f"sparse_attention: num_value_dims is {num_value_dims} and must be 1 to {q.shape[-1]}, the key dim"
        )
    results: tuple[Tensor, Tensor] = run(q, keys, key_ids, scale, num_value_dims)
    return results
