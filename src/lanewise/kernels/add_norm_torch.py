"""Residual add and RMSNorm in torch ops: the composed control and a fused node with an explicit backward.

S rows, d hidden size; `_Sd` marks the flattened shape. With n = 1/sqrt(mean(h²) + eps), y = h·n·w:

    dw = Σ_rows dy·h·n
    dh = dy·w·n − h · n³/d · Σ_d (dy·w·h) + (gradient that reaches h directly)

The fused node is an `autograd.Function`, not a custom op: it has no control flow that depends on data, so Dynamo traces
it whole and a compiler may fuse it further, and on [1024, 128] a custom op costs 0.1 ms more per call (of 0.5 ms).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


def composed(
    x: Tensor, residual: Tensor | None, weight: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """The control: an addition, then torch's rms_norm."""
    h = x if residual is None else residual + x
    y = F.rms_norm(h, (h.shape[-1],), weight.to(h.dtype), eps)
    return h, y.to(x.dtype)


def fused(x: Tensor, residual: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """One autograd node over both steps that saves h and 1/rms only."""
    if residual is None:
        return x, _Norm.apply(x, weight, eps)
    return _AddNorm.apply(x, residual, weight, eps)


class _AddNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, residual: Tensor, weight: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        h = residual + x
        y, inverse_rms = _normalise(h, weight, eps, x.dtype)
        ctx.save_for_backward(h, weight, inverse_rms)
        ctx.dtypes = (x.dtype, residual.dtype)
        ctx.set_materialize_grads(False)
        return h, y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_h: Tensor | None, grad_y: Tensor | None) -> tuple[Any, ...]:
        grad, grad_weight = grad_h, None
        if grad_y is not None:
            grad, grad_weight = _gradients(grad_h, grad_y, *ctx.saved_tensors)
        if grad is None:
            return None, None, None, None
        x_dtype, residual_dtype = ctx.dtypes
        return grad.to(x_dtype), grad.to(residual_dtype), grad_weight, None


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        y, inverse_rms = _normalise(x, weight, eps, x.dtype)
        ctx.save_for_backward(x, weight, inverse_rms)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Any, ...]:
        x, weight, inverse_rms = ctx.saved_tensors
        grad_x, grad_weight = _gradients(None, grad_y, x, weight, inverse_rms)
        return grad_x.to(x.dtype), grad_weight, None


def _normalise(h: Tensor, weight: Tensor, eps: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """y [..., d] and the inverse root mean square [..., 1] in at least fp32."""
    wide = torch.promote_types(h.dtype, torch.float32)
    inverse_rms = torch.linalg.vector_norm(h, dim=-1, keepdim=True, dtype=wide)
    inverse_rms = inverse_rms.square_().div_(h.shape[-1]).add_(eps).rsqrt_()
    y = torch.mul(h, inverse_rms).mul_(weight)
    return y.to(dtype), inverse_rms


def _gradients(
    grad_h: Tensor | None, grad_y: Tensor, h: Tensor, weight: Tensor, inverse_rms: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradient of the sum [..., d] and of the weight [d]; the row and column sums share one product."""
    d, wide = h.shape[-1], inverse_rms.dtype
    h, grad_y, wide_weight = h.to(wide), grad_y.to(wide), weight.to(wide)
    product_Sd = (h * grad_y).reshape(-1, d)
    grad_weight = (inverse_rms.reshape(1, -1) @ product_Sd).reshape(d)
    row_sums = torch.mv(product_Sd, wide_weight).view(inverse_rms.shape)
    along_h = row_sums.mul_(inverse_rms.pow(3)).div_(-d)
    grad = h * along_h if grad_h is None else torch.addcmul(grad_h.to(wide), h, along_h)
    grad.addcmul_(grad_y * wide_weight, inverse_rms)
    return grad, grad_weight.to(weight.dtype)
