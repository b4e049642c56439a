"""`m2rnn_scan` on torch: `fused.torch` (own loops, forward and backward) and `loop.torch` (autograd's loop).

Shapes: B batch, T sequence, H heads, K key dim, V value dim. The state is [H, B, K, V], so that h·W is one batched matmul
over heads with B·K rows. With documents, `keep` is 0 where a step begins one and 1 elsewhere: what a step takes from the
state before it, and sends back to it, is multiplied by that.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

# --- fused.torch ----------------------------------------------------------------------------------------------------
# The step is as short as it can be: every operation of the loop writes into a buffer that exists, and going back nothing
# but the state's own gradient is computed step by step. Outer products before the loop, and the gradients of q, k, v, W
# and f after it, are made for a block of steps at once, small enough to stay in the cache: scratch the size of the
# whole sequence would cost more in page faults than the arithmetic does.

BLOCK_ELEMENTS = 2**18
"""Elements of the states of one block of steps: 1 MiB in fp32."""


def fused(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    weight: Tensor,
    forget: Tensor,
    state_gradient_clip: float,
    document_ids: Tensor | None = None,
) -> Tensor:
    """In-place loops without an autograd graph. Arguments and result as `ops.m2rnn_scan.m2rnn_scan`."""
    return torch.ops.lanewise.m2rnn_fused(
        q, k, v, weight, forget, state_gradient_clip, document_ids
    )[0]


@torch.library.custom_op("lanewise::m2rnn_fused", mutates_args=())
def _forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    weight: Tensor,
    forget: Tensor,
    state_gradient_clip: float,
    document_ids: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    q_T1BK1, k_T1BK1, v_THB1V, forget_THB11 = _time_first(q, k, v, forget)
    keeps = _keep(document_ids, v_THB1V)
    weight = weight.to(v_THB1V.dtype)
    length, heads, batch, _, value_dim = v_THB1V.shape
    states_UHBKV = v_THB1V.new_empty(length + 1, heads, batch, k.shape[2], value_dim)
    states_UHBKV[0].zero_()
    candidates_THBKV = torch.empty_like(states_UHBKV[1:])
    states, states_3d = states_UHBKV.unbind(0), states_UHBKV.flatten(2, 3).unbind(0)
    candidates, candidates_3d = candidates_THBKV.unbind(0), candidates_THBKV.flatten(2, 3).unbind(0)
    forgets = forget_THB11.unbind(0)
    o_THBV = v_THB1V.new_empty(length, heads, batch, value_dim)
    minus_one = v_THB1V.new_full((), -1.0)

    # tanh(x) = 2σ(2x) − 1: torch's sigmoid is several times faster than its tanh on a CPU, and the absolute error
    # stays below two units in the last place of 1, so that in fp32 a candidate of size ε is right to about 10⁻⁷/ε of
    # itself only. The inner 2 goes into the outer product and the matmul's factor.
    twice_k_T1BK1 = 2 * k_T1BK1
    blocks = _blocks(states_UHBKV)
    scratch = torch.empty_like(states_UHBKV[: blocks[0].stop])
    kept_HBKV = torch.empty_like(states[0])
    kept_3d = kept_HBKV.flatten(1, 2)
    for block in blocks:
        torch.mul(twice_k_T1BK1[block], v_THB1V[block], out=candidates_THBKV[block])
        for t in range(block.start, block.stop):
            candidate, before, before_3d = candidates[t], states[t], states_3d[t]
            if keeps is not None:
                torch.mul(before, keeps[t], out=kept_HBKV)
                before, before_3d = kept_HBKV, kept_3d
            candidates_3d[t].baddbmm_(before_3d, weight, alpha=2)
            candidate.sigmoid_()
            torch.add(minus_one, candidate, alpha=2, out=candidate)
            torch.lerp(candidate, before, forgets[t], out=states[t + 1])
        product = scratch[: block.stop - block.start]
        torch.mul(states_UHBKV[1:][block], q_T1BK1[block], out=product)
        torch.sum(product, 3, out=o_THBV[block])
    return o_THBV.permute(2, 0, 1, 3).to(v.dtype).contiguous(), states_UHBKV, candidates_THBKV


def _blocks(states_UHBKV: Tensor) -> list[slice]:
    """Consecutive steps whose states have about `BLOCK_ELEMENTS`."""
    length = states_UHBKV.shape[0] - 1
    steps = max(1, BLOCK_ELEMENTS // max(1, states_UHBKV[0].numel()))
    return [slice(start, min(start + steps, length)) for start in range(0, length, steps)]


def _keep(document_ids: Tensor | None, v_THB1V: Tensor) -> Tensor | None:
    """[T, 1, B, 1, 1], 0 where a document begins; step 0 follows a zero state, so it begins nothing. None without ids."""
    if document_ids is None:
        return None
    same = document_ids[:, 1:] == document_ids[:, :-1]
    return F.pad(same, (1, 0), value=True).T[:, None, :, None, None].to(v_THB1V.dtype)


@_forward.register_fake
def _(q, k, v, weight, forget, state_gradient_clip, document_ids):
    (batch, length, key_dim), (heads, value_dim) = k.shape, v.shape[2:]
    wide = torch.promote_types(v.dtype, torch.float32)
    return (
        v.new_empty(v.shape),
        v.new_empty(length + 1, heads, batch, key_dim, value_dim, dtype=wide),
        v.new_empty(length, heads, batch, key_dim, value_dim, dtype=wide),
    )


@torch.library.custom_op("lanewise::m2rnn_fused_backward", mutates_args=())
def _backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    weight: Tensor,
    forget: Tensor,
    states_UHBKV: Tensor,
    candidates_THBKV: Tensor,
    document_ids: Tensor | None,
    state_gradient_clip: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    q_T1BK1, k_T1BK1, v_THB1V, forget_THB11 = _time_first(q, k, v, forget)
    keeps = _keep(document_ids, v_THB1V)
    do_THB1V = grad.to(v_THB1V.dtype).permute(1, 2, 0, 3).contiguous().unsqueeze(3)
    length, heads, batch, key_dim, value_dim = candidates_THBKV.shape
    weight_transposed = weight.to(v_THB1V.dtype).mT
    take_THB11 = 1 - forget_THB11
    forgets = (forget_THB11 if keeps is None else forget_THB11 * keeps).unbind(0)

    dq_TBK = v_THB1V.new_empty(length, batch, key_dim)
    dk_TBK = torch.empty_like(dq_TBK)
    dv_THBV = v_THB1V.new_empty(length, heads, batch, value_dim)
    dforget_THB = v_THB1V.new_empty(length, heads, batch)
    dweight_HVV = v_THB1V.new_zeros(heads, value_dim, value_dim)

    blocks = _blocks(states_UHBKV)
    longest = blocks[0].stop
    # Slot i + 1 of a block is the gradient of the state after its step i; slot 0 is what it sends further back. A slot
    # starts with what the step's own output sends to its state, and the step after adds its part.
    dstates_buffer = v_THB1V.new_empty(longest + 1, heads, batch, key_dim, value_dim)
    dpre_buffer = torch.empty_like(dstates_buffer[1:])
    scratch = torch.empty_like(dpre_buffer)
    sent_HBKV = torch.empty_like(scratch[0])
    sent_3d = sent_HBKV.flatten(1, 2)
    complete_HBKV = q_T1BK1[-1] * do_THB1V[-1]
    one = v_THB1V.new_ones(())
    for block in reversed(blocks):
        steps = block.stop - block.start
        first = max(block.start, 1)  # the state before step 0 has no output
        torch.mul(
            q_T1BK1[first - 1 : block.stop - 1],
            do_THB1V[first - 1 : block.stop - 1],
            out=dstates_buffer[first - block.start : steps],
        )
        dstates_buffer[steps].copy_(complete_HBKV)
        dpre_SHBKV, candidate_SHBKV = dpre_buffer[:steps], candidates_THBKV[block]
        # (1 − f)(1 − c²), which the loop turns into the gradient of the pre-activation
        torch.addcmul(one, candidate_SHBKV, candidate_SHBKV, value=-1, out=dpre_SHBKV)
        dpre_SHBKV.mul_(take_THB11[block])
        dstates, dstates_3d = dstates_buffer.unbind(0), dstates_buffer.flatten(2, 3).unbind(0)
        dpres, dpres_3d = dpre_buffer.unbind(0), dpre_buffer.flatten(2, 3).unbind(0)
        for i in range(steps - 1, -1, -1):
            t, dstate, dpre = block.start + i, dstates[i + 1], dpres[i]
            dstate.clamp_(-state_gradient_clip, state_gradient_clip)
            dpre.mul_(dstate)
            if t:
                dstates[i].addcmul_(dstate, forgets[t])
                dpre_3d = dpres_3d[i]
                if keeps is not None:
                    torch.mul(dpre, keeps[t], out=sent_HBKV)
                    dpre_3d = sent_3d
                dstates_3d[i].baddbmm_(dpre_3d, weight_transposed)
        complete_HBKV.copy_(dstates[0])

        dstate_SHBKV = dstates_buffer[1 : steps + 1]
        before_SHBKV, after_SHBKV = states_UHBKV[:-1][block], states_UHBKV[1:][block]
        if keeps is not None:
            before_SHBKV = before_SHBKV * keeps[block]
        product = scratch[:steps]
        torch.sub(before_SHBKV, candidate_SHBKV, out=product).mul_(dstate_SHBKV)
        torch.sum(product, (-2, -1), out=dforget_THB[block])
        torch.mul(dpre_SHBKV, k_T1BK1[block], out=product)
        torch.sum(product, 3, out=dv_THBV[block])
        torch.mul(dpre_SHBKV, v_THB1V[block], out=product)
        torch.sum(product.sum(1), -1, out=dk_TBK[block])
        torch.mul(after_SHBKV, do_THB1V[block], out=product)
        torch.sum(product.sum(1), -1, out=dq_TBK[block])
        dweight_HVV += (before_SHBKV.flatten(2, 3).mT @ dpre_SHBKV.flatten(2, 3)).sum(0)
    return (
        dq_TBK.transpose(0, 1).to(q.dtype).contiguous(),
        dk_TBK.transpose(0, 1).to(k.dtype).contiguous(),
        dv_THBV.permute(2, 0, 1, 3).to(v.dtype).contiguous(),
        dweight_HVV.to(weight.dtype),
        dforget_THB.permute(2, 0, 1).to(forget.dtype).contiguous(),
    )


@_backward.register_fake
def _(grad, q, k, v, weight, forget, *_):
    return tuple(x.new_empty(x.shape) for x in (q, k, v, weight, forget))


def _time_first(q: Tensor, k: Tensor, v: Tensor, forget: Tensor) -> tuple[Tensor, ...]:
    """Inputs in fp32 or wider, broadcastable against [T, H, B, K, V]; contiguous, so that products with them are too."""
    dtype = torch.promote_types(v.dtype, torch.float32)
    return (
        q.to(dtype).transpose(0, 1).contiguous()[:, None, :, :, None],
        k.to(dtype).transpose(0, 1).contiguous()[:, None, :, :, None],
        v.to(dtype).permute(1, 2, 0, 3).contiguous().unsqueeze(3),
        forget.to(dtype).permute(1, 2, 0).contiguous()[..., None, None],
    )


def _save_for_backward(ctx, inputs, output):
    q, k, v, weight, forget, ctx.state_gradient_clip, document_ids = inputs
    _, states_UHBKV, candidates_THBKV = output
    ctx.save_for_backward(q, k, v, weight, forget, states_UHBKV, candidates_THBKV, document_ids)
    ctx.mark_non_differentiable(*output[1:])


def _call_backward(ctx, grad, *_):
    grads = torch.ops.lanewise.m2rnn_fused_backward(
        grad, *ctx.saved_tensors, ctx.state_gradient_clip
    )
    return (*grads, None, None)


_forward.register_autograd(_call_backward, setup_context=_save_for_backward)


# --- loop.torch -----------------------------------------------------------------------------------------------------


def loop(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    weight: Tensor,
    forget: Tensor,
    state_gradient_clip: float,
    document_ids: Tensor | None = None,
) -> Tensor:
    """The recurrence as a torch user writes it, with autograd; what does not need the state is hoisted out of the loop.

    Arguments and result as `ops.m2rnn_scan.m2rnn_scan`.
    """
    q_T1BK1, k_T1BK1, v_THB1V, forget_THB11 = _time_first(q, k, v, forget)
    outer_THBKV = k_T1BK1 * v_THB1V
    weight = weight.to(outer_THBKV.dtype)
    state_HBKV = torch.zeros_like(outer_THBKV[0])
    keeps = _keep(document_ids, v_THB1V)
    outputs = []
    for t, (outer_HBKV, forget_HB11, q_1BK1) in enumerate(
        zip(outer_THBKV.unbind(0), forget_THB11.unbind(0), q_T1BK1.unbind(0), strict=True)
    ):
        if keeps is not None:
            state_HBKV = state_HBKV * keeps[t]
        pre = torch.baddbmm(outer_HBKV.flatten(1, 2), state_HBKV.flatten(1, 2), weight)
        candidate_HBKV = torch.tanh(pre).view_as(state_HBKV)
        state_HBKV = torch.lerp(candidate_HBKV, state_HBKV, forget_HB11)
        state_HBKV = _ClipGradient.apply(state_HBKV, state_gradient_clip)
        outputs.append((state_HBKV * q_1BK1).sum(dim=2))
    return torch.stack(outputs).permute(2, 0, 1, 3).to(v.dtype)


class _ClipGradient(torch.autograd.Function):
    """The identity, whose gradient is clamped."""

    @staticmethod
    def forward(ctx, x, bound):
        ctx.bound = bound
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad):
        return grad.clamp(-ctx.bound, ctx.bound), None
