"""MLA ingress in torch ops: the reshaping control and an assembly with an explicit backward.

B batch, T sequence, H heads, D_n/D_r/D_v nope, rope and value head dims; the suffix of a name is its shape.

Both directions of the assembly write every output element once, in the layout attention reads ([B, H, T, D]): no
intermediate tensor of the size of q or k exists. The gradient is the same code with −sin, a rotation's transpose. (One product of
whole rows with [1 … 1, cos, cos] saves two passes over q and was no faster: the rows are short, not the passes many.)

An `autograd.Function` rather than a custom op: no control flow depends on data, v leaves as a view of kv (a custom op
may not return one), and at the size of `nam56r-tiny` the call overhead of an op would eat a tenth of the gain.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def reshaped(
    q: Tensor, kv: Tensor, k_rope: Tensor, cos: Tensor, sin: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The control: split, rotate, expand, concatenate, transpose, as public MLA modules do."""
    d_r = k_rope.shape[-1]
    d_n = q.shape[-1] - d_r
    q_nope, q_rope = q.split([d_n, d_r], dim=-1)
    k_nope, v = kv.split([d_n, kv.shape[-1] - d_n], dim=-1)
    cos, sin = cos.to(q.dtype).unsqueeze(1), sin.to(q.dtype).unsqueeze(1)
    q_rope = _rotate(q_rope, cos, sin)
    shared = _rotate(k_rope.unsqueeze(2), cos, sin).expand(-1, -1, q.shape[2], -1)
    q_out = torch.cat([q_nope, q_rope], dim=-1)
    k_out = torch.cat([k_nope, shared], dim=-1)
    return q_out.transpose(1, 2), k_out.transpose(1, 2), v.transpose(1, 2)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def assembled(
    q: Tensor, kv: Tensor, k_rope: Tensor, cos: Tensor, sin: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Rotate and assemble straight into the buffers that attention reads; v is a view of kv."""
    return _Assemble.apply(q, kv, k_rope, cos.to(q.dtype), sin.to(q.dtype))


class _Assemble(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, kv: Tensor, k_rope: Tensor, cos: Tensor, sin: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        b, t, h, d = q.shape
        d_n = d - k_rope.shape[-1]
        ctx.save_for_backward(cos, sin)
        ctx.d_n = d_n
        q_BHTD = q.new_empty(b, h, t, d)
        _rotate_tail_into(q_BHTD.transpose(1, 2), q, cos.unsqueeze(1), sin.unsqueeze(1))
        shared_BTR = torch.empty_like(k_rope, memory_format=torch.contiguous_format)
        _rotate_tail_into(shared_BTR, k_rope, cos, sin)
        k_BHTD = q.new_empty(b, h, t, d)
        k_BTHD = k_BHTD.transpose(1, 2)
        k_BTHD[..., :d_n].copy_(kv[..., :d_n])
        k_BTHD[..., d_n:].copy_(shared_BTR.unsqueeze(2))
        return q_BHTD, k_BHTD, kv[..., d_n:].transpose(1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_q: Tensor, grad_k: Tensor, grad_v: Tensor) -> tuple[Any, ...]:
        cos, sin = ctx.saved_tensors
        d_n = ctx.d_n
        b, h, t, d = grad_q.shape
        grad_q_BTHD = grad_q.new_empty(b, t, h, d)
        _rotate_tail_into(
            grad_q_BTHD, grad_q.transpose(1, 2), cos.unsqueeze(1), sin.neg().unsqueeze(1)
        )
        grad_kv = grad_k.new_empty(b, t, h, d_n + grad_v.shape[-1])
        grad_kv[..., :d_n].copy_(grad_k[..., :d_n].transpose(1, 2))
        grad_kv[..., d_n:].copy_(grad_v.transpose(1, 2))
        summed_BTR = grad_k[..., d_n:].sum(dim=1)
        grad_shared = torch.empty_like(summed_BTR)
        _rotate_tail_into(grad_shared, summed_BTR, cos, sin.neg())
        return grad_q_BTHD, grad_kv, grad_shared, None, None


def _rotate_tail_into(out: Tensor, x: Tensor, cos: Tensor, sin: Tensor) -> None:
    """Write x [..., D] to `out` with its last 2·n coordinates rotated by tables [..., n] (split halves)."""
    n = cos.shape[-1]
    d_n = x.shape[-1] - 2 * n
    first, second = x[..., d_n : d_n + n], x[..., d_n + n :]
    out.copy_(x)
    out[..., d_n : d_n + n].mul_(cos).addcmul_(second, sin, value=-1)
    out[..., d_n + n :].mul_(cos).addcmul_(first, sin)
