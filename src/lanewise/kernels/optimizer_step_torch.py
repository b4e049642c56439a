"""AdamW as torch.optim builds it: one tensor at a time, in lists of tensors, or in one kernel per tensor.

A group's own `weight_decay` counts; a group without one is not decayed.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch


def per_tensor(
    param_groups: Iterable[dict[str, Any]], lr: float, betas: tuple[float, float], eps: float
) -> torch.optim.AdamW:
    """The control: torch's CPU default, about ten small kernels per parameter."""
    return torch.optim.AdamW(
        param_groups, lr=lr, betas=betas, eps=eps, weight_decay=0.0, foreach=False, fused=False
    )


def foreach(
    param_groups: Iterable[dict[str, Any]], lr: float, betas: tuple[float, float], eps: float
) -> torch.optim.AdamW:
    """Each of the ten kernels over the list of all parameters."""
    return torch.optim.AdamW(
        param_groups, lr=lr, betas=betas, eps=eps, weight_decay=0.0, foreach=True
    )


def fused(
    param_groups: Iterable[dict[str, Any]], lr: float, betas: tuple[float, float], eps: float
) -> torch.optim.AdamW:
    """One kernel reads and writes parameter, gradient and both moments."""
    return torch.optim.AdamW(
        param_groups, lr=lr, betas=betas, eps=eps, weight_decay=0.0, fused=True
    )
