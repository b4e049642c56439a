"""Muon for one parameter group: a matrix at a time, or all matrices of a shape as one batch.

N matrices of a batch, R rows, C columns (R ≤ C after transposing); the suffix of a name is its shape. The formulas and
constants are those of `ops.optimizer_step`.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
from torch import Tensor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
MIN_NORM = 1e-7
RMS_SCALE = 0.2
BATCH_ELEMENTS = {"cpu": 2**16, "cuda": 2**26}
"""Elements of the matrices that are iterated at once. On a CPU they and their products should stay in the cache: in CPU
time of one core, 43 parameters of `nam56r-tiny` (most matrices 128 × 128) take 116 ms one by one, 110 ms at 2¹⁶ and 144 ms
at 2²⁰; with 32 × 32 experts 39, 17 and 18 ms."""


def step_per_matrix(group: dict[str, Any], state: dict[Tensor, Any]) -> None:
    """The control: momentum, iteration and update of one matrix after the other."""
    momentum, lr = group["momentum"], group["lr"]
    for p in group["params"]:
        if p.grad is None:
            continue
        buffer = _buffer(p, state)
        buffer.mul_(momentum).add_(p.grad)
        u = p.grad.add(buffer, alpha=momentum)
        p.mul_(1 - lr * group["weight_decay"])
        for p_RC, u_RC in zip(_matrices(p), _matrices(u), strict=True):
            x_1RC = _newton_schulz(_wide(u_RC)[None].clone(), group["num_iterations"])
            _wide(p_RC).sub_(x_1RC[0], alpha=lr * _scale(p))


def step_batched(group: dict[str, Any], state: dict[Tensor, Any]) -> None:
    """Momentum by list kernels; the matrices of each shape, from whatever parameter, in one batch."""
    params = [p for p in group["params"] if p.grad is not None]
    if not params:
        return
    momentum, lr = group["momentum"], group["lr"]
    gradients = [p.grad for p in params]
    buffers = [_buffer(p, state) for p in params]
    torch._foreach_mul_(buffers, momentum)
    torch._foreach_add_(buffers, gradients)
    updates = torch._foreach_add(gradients, buffers, alpha=momentum)
    torch._foreach_mul_(params, 1 - lr * group["weight_decay"])
    by_shape: defaultdict[tuple[int, ...], list[tuple[Tensor, Tensor]]] = defaultdict(list)
    for p, u in zip(params, updates, strict=True):
        for p_RC, u_RC in zip(_matrices(p), _matrices(u), strict=True):
            by_shape[_wide(u_RC).shape].append((_wide(p_RC), _wide(u_RC)))
    for pairs in by_shape.values():
        first = pairs[0][0]
        batch = max(1, BATCH_ELEMENTS[first.device.type] // first.numel())
        for start in range(0, len(pairs), batch):
            chosen = pairs[start : start + batch]
            x_NRC = _newton_schulz(torch.stack([u for _, u in chosen]), group["num_iterations"])
            torch._foreach_sub_(
                [p for p, _ in chosen], list(x_NRC.mul_(lr * _scale(first)).unbind(0))
            )


def _newton_schulz(x_NRC: Tensor, num_iterations: int) -> Tensor:
    """The iteration on a batch of wide matrices, whose memory it overwrites first."""
    x_NRC.div_(torch.linalg.matrix_norm(x_NRC, keepdim=True).clamp_(min=MIN_NORM))
    a, b, c = COEFFICIENTS
    for _ in range(num_iterations):
        gram_NRR = torch.bmm(x_NRC, x_NRC.mT)
        step_NRR = torch.baddbmm(gram_NRR, gram_NRR, gram_NRR, beta=b, alpha=c)
        x_NRC = torch.baddbmm(x_NRC, step_NRR, x_NRC, beta=a)
    return x_NRC


def _buffer(p: Tensor, state: dict[Tensor, Any]) -> Tensor:
    if not state[p]:
        state[p]["momentum_buffer"] = torch.zeros_like(p)
    return state[p]["momentum_buffer"]


def _matrices(x: Tensor) -> list[Tensor]:
    """The matrices of a parameter, as views."""
    return list(x.unbind(0)) if x.dim() == 3 else [x]


def _wide(x_RC: Tensor) -> Tensor:
    return x_RC.mT if x_RC.shape[0] > x_RC.shape[1] else x_RC


def _scale(p: Tensor) -> float:
    return RMS_SCALE * max(p.shape[-2:]) ** 0.5
