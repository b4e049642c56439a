"""MLA ingress: from the up-projections of multi-head latent attention to q, k, v as attention reads them.

    q = [q_nope | R(q_rope)]        k = [k_nope | R(k_rope) shared by all heads]        v = v
    R(x)_t = [x₁ cos_t − x₂ sin_t | x₂ cos_t + x₁ sin_t],  x = [x₁ | x₂] split in halves

Legend: B batch, T sequence, H heads, D_n, D_r, D_v nope, rope and value head dims. Problem dims: B, T, H, D_n, D_r, D_v.
Shapes: q [B, T, H, D_n+D_r], kv [B, T, H, D_n+D_v], k_rope [B, T, D_r], cos and sin [T, D_r/2]
→ q, k [B, H, T, D_n+D_r], v [B, H, T, D_v]; v may be a view of kv. D_r is even.
Dtypes: q, kv and k_rope alike, results the same; the tables are cast to it and are not differentiated.
Sources: DeepSeek-V2, arXiv 2405.04434, §2.1.3 (decoupled RoPE); Su et al., RoFormer, arXiv 2104.09864, eq. 34.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lanewise.ops.observe import Launch
from lanewise.ops.spec import Backend, OpSpec

SPEC = OpSpec(
    name="mla_ingress",
    reference="reference",
    backends=(
        Backend(
            name="assembled.torch",
            target="lanewise.kernels.mla_ingress_torch:assembled",
            note="writes q and k once, in attention's layout; explicit backward",
        ),
        Backend(
            name="reshaped.torch",
            target="lanewise.kernels.mla_ingress_torch:reshaped",
            note="split, rotate, expand, concatenate, transpose",
        ),
        Backend(
            name="reference",
            target="lanewise.ops.mla_ingress:reference",
            note="the oracle: one head and one half at a time",
        ),
    ),
)


def reference(
    q: Tensor, kv: Tensor, k_rope: Tensor, cos: Tensor, sin: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The formula, one head and one half at a time."""
    half = k_rope.shape[-1] // 2
    d_n = q.shape[-1] - 2 * half
    cos, sin = cos.to(q.dtype), sin.to(q.dtype)

    def rotate(x: Tensor) -> Tensor:
        first, second = x[..., :half], x[..., half:]
        return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)

    heads = range(q.shape[2])
    shared = rotate(k_rope)
    return (
        torch.stack(
            [torch.cat([q[:, :, h, :d_n], rotate(q[:, :, h, d_n:])], -1) for h in heads], 1
        ),
        torch.stack([torch.cat([kv[:, :, h, :d_n], shared], -1) for h in heads], 1),
        torch.stack([kv[:, :, h, d_n:] for h in heads], 1),
    )


def rope_tables(
    sequence_length: int, rope_head_dim: int, theta: float, device: torch.device | None = None
) -> tuple[Tensor, Tensor]:
    """cos and sin of position · theta^(−2i / D_r), each [T, D_r/2], fp32 (computed in fp64)."""
    if rope_head_dim % 2:
        raise ValueError(f"rope_head_dim is {rope_head_dim}; it must be even: halves are rotated")
    exponents = torch.arange(0, rope_head_dim, 2, dtype=torch.float64, device=device)
    positions = torch.arange(sequence_length, dtype=torch.float64, device=device)
    angles = torch.outer(positions, theta ** (-exponents / rope_head_dim))
    return angles.cos().float(), angles.sin().float()


def mla_ingress(
    run: Launch, q: Tensor, kv: Tensor, k_rope: Tensor, cos: Tensor, sin: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Rotate and assemble q, k and v with the chosen backend.

    Args:
        run: the chosen backend.
        q: [B, T, H, D_n+D_r].
        kv: [B, T, H, D_n+D_v], k_nope then v.
        k_rope: [B, T, D_r], one head shared by all.
        cos: [T, D_r/2].
        sin: [T, D_r/2].

    Returns:
        q and k [B, H, T, D_n+D_r], v [B, H, T, D_v].
    """
    b, t, h, d = q.shape
    d_r = k_rope.shape[-1]
    if d_r % 2 or d_r > d:
        raise ValueError(f"mla_ingress: D_r = {d_r} must be even and at most the q head dim {d}")
    if kv.shape[:3] != (b, t, h) or kv.shape[3] <= d - d_r:
        raise ValueError(
            f"mla_ingress: kv is {list(kv.shape)} and must be [B, T, H, D_n+D_v] = "
            f"[{b}, {t}, {h}, more than {d - d_r}] to match q {list(q.shape)}"
        )
    if k_rope.shape[:2] != (b, t):
        raise ValueError(
            f"mla_ingress: k_rope is {list(k_rope.shape)} and must be [B, T, D_r] = [{b}, {t}, {d_r}]"
        )
    if cos.shape != (t, d_r // 2) or sin.shape != cos.shape:
        raise ValueError(
            f"mla_ingress: cos is {list(cos.shape)}, sin is {list(sin.shape)}, both must be "
            f"[T, D_r/2] = [{t}, {d_r // 2}]; build them with rope_tables"
        )
    results: tuple[Tensor, Tensor, Tensor] = run(q, kv, k_rope, cos, sin)
    return results
