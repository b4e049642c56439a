"""Residual add and RMSNorm, the step between any two blocks.

    h = residual + x                                  (h = x when there is no residual: the first norm)
    y = h / sqrt(mean(h², last dim) + eps) · weight

Legend: S rows (all leading dims together), d hidden size.
Shapes: x and residual [..., d], weight [d] → h [..., d], y [..., d]. Problem dims: S, d.
Dtypes: h has the promoted dtype of x and residual, so an fp32 residual stream stays fp32 under bf16 blocks; statistics
are taken in that dtype or fp32, whichever is wider; y has the dtype of x, ready for the next block.
Source: Zhang and Sennrich, "Root Mean Square Layer Normalization", arXiv 1910.07467, eq. 4.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lanewise.ops.observe import Launch
from lanewise.ops.spec import Backend, OpSpec

SPEC = OpSpec(
    name="add_norm",
    reference="reference",
    backends=(
        Backend(
            name="fused.torch",
            target="lanewise.kernels.add_norm_torch:fused",
            note="explicit backward in one node; saves h and 1/rms",
        ),
        Backend(
            name="composed.torch",
            target="lanewise.kernels.add_norm_torch:composed",
            note="x + residual, then torch.nn.functional.rms_norm",
        ),
        Backend(
            name="reference",
            target="lanewise.ops.add_norm:reference",
            note="the oracle: the formula, step by step",
        ),
    ),
)


def reference(
    x: Tensor, residual: Tensor | None, weight: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """The formula, step by step."""
    h = x if residual is None else residual + x
    wide = h.to(torch.promote_types(h.dtype, torch.float32))
    mean_square = (wide * wide).mean(dim=-1, keepdim=True)
    y = wide / torch.sqrt(mean_square + eps) * weight
    return h, y.to(x.dtype)


def add_norm(
    run: Launch, x: Tensor, residual: Tensor | None, weight: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """Add the residual and normalise, with the chosen backend.

    Args:
        run: the chosen backend.
        x: output of the last block [..., d].
        residual: residual stream [..., d], or None before the first block.
        weight: scale [d].
        eps: added to the mean square.

    Returns:
        The new residual stream [..., d] and the normed input of the next block [..., d].
    """
    if residual is not None and residual.shape != x.shape:
        raise ValueError(
            f"add_norm: residual is {list(residual.shape)} and x is {list(x.shape)}; give equal shapes"
        )
    if weight.shape != x.shape[-1:]:
        raise ValueError(
            f"add_norm: weight is {list(weight.shape)} and must be [d] = {list(x.shape[-1:])}"
        )
    results: tuple[Tensor, Tensor] = run(x, residual, weight, eps)
    return results
