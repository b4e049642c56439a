"""`m2rnn_scan`: the recurrence of M2RNN, a matrix state with a tanh update and a forget gate.

Per batch row and head, with h_0 = 0 and, in the first step of every document, h_{t−1} = 0:

    c_t = tanh(h_{t−1} W + k_t v_tᵀ)      h_t = f_t h_{t−1} + (1 − f_t) c_t      o_t = h_tᵀ q_t

Source: arXiv 2603.14360; open-lm-engine/accelerated-model-architectures, `xma/layers/m2rnn`. The convolution, the map to
f, the skip, gate and norm that follow are the block's business.

The gradient of the state is clipped: let g_t = dL/dh_t be complete, that is q_t do_tᵀ plus what step t + 1 sent back.
Then clamp(g_t, ±state_gradient_clip), element by element, stands for it in everything further back: in the gradients of
f_t, W, k_t, v_t and in what step t sends to h_{t−1}. dq_t does not pass through the state and is not clipped. All
backends clip at this place, so they agree also where the clip is active; `inf` turns it off. It is the place of the
source's torch form; its Triton kernel clamps what step t + 1 sent back before q_t do_tᵀ is added. A step that begins a
document sends nothing to the step before it.

Shape legend: B batch, T sequence, H heads, K key dim (rows of the state), V value dim (columns).
Dtypes: fp64, fp32, bf16; bf16 is computed in fp32, `forget` may be wider than the rest. The result has the dtype of `v`.
Limits: serial in T.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lanewise.ops.observe import Launch
from lanewise.ops.spec import Backend, OpSpec


def reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    weight: Tensor,
    forget: Tensor,
    state_gradient_clip: float,
    document_ids: Tensor | None = None,
) -> Tensor:
    """The recurrence as written above, one step after the other; the oracle. Arguments as `m2rnn_scan`."""
    state_BHKV = v.new_zeros(v.shape[0], v.shape[2], k.shape[2], v.shape[3])
    outputs = []
    for t in range(v.shape[1]):
        if document_ids is not None and t > 0:
            begins = document_ids[:, t] != document_ids[:, t - 1]
            state_BHKV = state_BHKV.masked_fill(begins[:, None, None, None], 0)
        state_BHKV = next_state(state_BHKV, k[:, t], v[:, t], weight, forget[:, t])
        if state_BHKV.requires_grad:
            state_BHKV.register_hook(  # type: ignore[no-untyped-call]
                lambda grad: grad.clamp(-state_gradient_clip, state_gradient_clip)
            )
        outputs.append(read_state(state_BHKV, q[:, t]))
    return torch.stack(outputs, dim=1).to(v.dtype)


def next_state(
    state_BHKV: Tensor, k_BK: Tensor, v_BHV: Tensor, weight_HVV: Tensor, forget_BH: Tensor
) -> Tensor:
    """h_t from h_{t−1}, the formula of one step."""
    outer_BHKV = k_BK[:, None, :, None] * v_BHV[:, :, None, :]
    pre_BHKV = (
        torch.einsum("bhkv,hvw->bhkw", state_BHKV, weight_HVV.to(state_BHKV.dtype)) + outer_BHKV
    )
    forget_BH11 = forget_BH[..., None, None]
    return forget_BH11 * state_BHKV + (1 - forget_BH11) * torch.tanh(pre_BHKV)


def read_state(state_BHKV: Tensor, q_BK: Tensor) -> Tensor:
    """o_t [B, H, V] from h_t."""
    return (q_BK[:, None, :, None] * state_BHKV).sum(dim=2)


SPEC = OpSpec(
    name="m2rnn_scan",
    reference="reference",
    backends=(
        Backend(
            name="fused.torch",
            target="lanewise.kernels.m2rnn_scan_torch:fused",
            note="in-place loops forward and backward; parameter gradients as matmuls over all steps",
        ),
        Backend(
            name="loop.torch",
            target="lanewise.kernels.m2rnn_scan_torch:loop",
            note="one step after the other under autograd, vectorised over batch and heads",
        ),
        Backend(
            name="reference",
            target="lanewise.ops.m2rnn_scan:reference",
            note="the oracle: the formula, step by step",
        ),
    ),
)


def m2rnn_scan(
    run: Launch,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    weight: Tensor,
    forget: Tensor,
    state_gradient_clip: float,
    document_ids: Tensor | None = None,
) -> Tensor:
    """Scan a sequence with the M2RNN recurrence, with the chosen backend.

    Args:
        run: the chosen backend.
        q: queries [B, T, K], shared by heads.
        k: keys [B, T, K], shared by heads.
        v: values [B, T, H, V].
        weight: transition of each head [H, V, V].
        forget: how much of the state stays [B, T, H], in (0, 1).
        state_gradient_clip: bound > 0 on every element of the state's gradient; `inf` for none.
        document_ids: int64 [B, T], changing where a document begins inside a row; None when a row is one document.

    Returns:
        [B, T, H, V] in the dtype of `v`.

    Raises:
        ValueError: a shape or the bound does not fit.
    """
    batch, length, heads, value_dim = v.shape
    expected: dict[str, tuple[Tensor, tuple[int, ...]]] = {
        "q": (q, (batch, length, k.shape[-1])),
        "k": (k, (batch, length, k.shape[-1])),
        "weight": (weight, (heads, value_dim, value_dim)),
        "forget": (forget, (batch, length, heads)),
    }
    if document_ids is not None:
        expected["document_ids"] = (document_ids, (batch, length))
    for name, (tensor, shape) in expected.items():
        if tensor.shape != shape:
            raise ValueError(
                f"m2rnn_scan: {name} is {list(tensor.shape)} and must be {list(shape)} "
                f"beside v {list(v.shape)} and k {list(k.shape)}"
            )
    if not state_gradient_clip > 0:
        raise ValueError(
            f"m2rnn_scan: state_gradient_clip is {state_gradient_clip} and must be positive; use inf for no clipping"
        )
    o: Tensor = run(q, k, v, weight, forget, state_gradient_clip, document_ids)
    return o
