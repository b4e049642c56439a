"""Rotary position embedding over pairs of halves (Su et al., RoFormer, arXiv 2104.09864, eq. 34).

R(x)_t = [x₁ cos_t − x₂ sin_t | x₂ cos_t + x₁ sin_t],  x = [x₁ | x₂],  angle of pair i at position t: t · theta^(−2i / D)
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lanewise.ops.mla_ingress import rope_tables


class RotaryTable(nn.Module):
    """cos and sin of the positions of training, fp32 [T, D/2] each; later positions are computed when asked for.

    Args:
        length: T.
        head_dim: D, even.
        theta: base of the angles.
    """

    cos: Tensor
    sin: Tensor

    def __init__(self, length: int, head_dim: int, theta: float) -> None:
        super().__init__()
        self.head_dim, self.theta = head_dim, theta
        cos, sin = rope_tables(length, head_dim, theta)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def forward(self, start: int, stop: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """cos and sin of positions start … stop − 1, each [stop − start, D/2], in the dtype of `like`."""
        cos, sin = self.cos, self.sin
        if stop > len(cos):  # generation may run past the training length
            cos, sin = rope_tables(stop, self.head_dim, self.theta, device=like.device)
        return cos[start:stop].to(like.dtype), sin[start:stop].to(like.dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Split-half rotation of the last dim.

    Args:
        x: [..., D], positions on a dim that `cos` and `sin` broadcast over.
        cos: [..., D/2].
        sin: [..., D/2].
    """
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
