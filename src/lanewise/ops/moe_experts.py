"""`moe_experts`: the routed experts of a mixture-of-experts layer, without dropping a token.

    y_s = Σ_j gates[s, j] · W_out[e]ᵀ · act(W_in[e]ᵀ x_s)       with e = expert_ids[s, j]

Source: the mixture-of-experts layer of Shazeer et al. 2017 (arXiv 1701.06538, eq. 1) over the k chosen experts only;
the router, which chooses and weighs, is not part of this op. A token may name one expert twice: both choices count. A
choice of a negative id (a null slot) computes nothing: it adds nothing, its gate is not read and gets a zero gradient.

Activations: `gelu` is the exact one, x·Φ(x) by erf, not the tanh approximation; `swiglu` is silu(first half) · second
half, so `w_in` has 2F columns; `relu2` is relu(x)².

Shape legend: S tokens (B·T), d hidden, E experts, k choices of a token, F expert hidden size.
Dtypes: fp64, fp32, bf16 for all floating inputs alike; `expert_ids` int64, each below E.
Limits: every load is allowed, from no token on an expert to all of them, and all choices negative; k ≥ 1 may exceed E.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from lanewise.errors import UsageError
from lanewise.ops.observe import Launch
from lanewise.ops.spec import Backend, OpSpec

ACTIVATIONS = ("gelu", "swiglu", "relu2")


def reference(
    x: Tensor, expert_ids: Tensor, gates: Tensor, w_in: Tensor, w_out: Tensor, activation: str
) -> Tensor:
    """Each token, each of its choices, one after the other; the oracle.

    Args:
        x: tokens [S, d].
        expert_ids: experts of each token [S, k], int64; a negative id computes nothing.
        gates: weight of each choice [S, k].
        w_in: first projection [E, d, F], or [E, d, 2F] for `swiglu`.
        w_out: second projection [E, F, d].
        activation: `gelu`, `swiglu` or `relu2`.

    Returns:
        [S, d].
    """
    rows = []
    for x_d, ids_k, gates_k in zip(x, expert_ids.tolist(), gates, strict=True):
        y_d = torch.zeros_like(x_d)
        for expert, gate in zip(ids_k, gates_k, strict=True):
            if expert < 0:
                continue
            hidden_f = _activate(x_d @ w_in[expert], activation)
            y_d = y_d + gate * (hidden_f @ w_out[expert])
        rows.append(y_d)
    return torch.stack(rows)


def _activate(pre: Tensor, activation: str) -> Tensor:
    if activation == "gelu":
        return 0.5 * pre * (1 + torch.erf(pre / 2**0.5))
    if activation == "relu2":
        return F.relu(pre) ** 2
    gate, up = pre.chunk(2, dim=-1)
    return gate * torch.sigmoid(gate) * up


SPEC = OpSpec(
    name="moe_experts",
    reference="reference",
    backends=(
        Backend(
            name="sorted.torch",
            target="lanewise.kernels.moe_experts_torch:sorted_by_expert",
            note="sort by expert, one GEMM per expert on its own rows, gated gather; explicit backward",
        ),
        Backend(
            name="padded.torch",
            target="lanewise.kernels.moe_experts_torch:padded",
            note="the standard path: permute, pad to the largest load, batched GEMM, unpad, unpermute",
        ),
        Backend(
            name="reference",
            target="lanewise.ops.moe_experts:reference",
            note="the oracle: token by token, choice by choice",
        ),
    ),
)


def moe_experts(
    run: Launch,
    x: Tensor,
    expert_ids: Tensor,
    gates: Tensor,
    w_in: Tensor,
    w_out: Tensor,
    activation: str,
) -> Tensor:
    """Apply the chosen experts to every token and sum them by gate.

    Args:
        run: the chosen backend.
        x: tokens [S, d].
        expert_ids: experts of each token [S, k], int64, each below E; a negative one computes nothing.
        gates: weight of each choice [S, k].
        w_in: first projection [E, d, F], or [E, d, 2F] for `swiglu` (first half is the gate).
        w_out: second projection [E, F, d].
        activation: `gelu` (exact), `swiglu` or `relu2`.

    Returns:
        [S, d] in the dtype of `x`.

    Raises:
        UsageError: the activation is unknown.
        ValueError: a shape or dtype does not fit. The values of `expert_ids` are the router's promise and are not read.
    """
    if activation not in ACTIVATIONS:
        raise UsageError(
            f"moe_experts: activation {activation!r} is unknown; use one of {', '.join(ACTIVATIONS)}"
        )
    (num_tokens, width), (num_experts, hidden, _) = x.shape, w_out.shape
    columns = 2 * hidden if activation == "swiglu" else hidden
    if w_in.shape != (num_experts, width, columns) or w_out.shape[2] != width:
        raise ValueError(
            f"moe_experts: x {tuple(x.shape)}, w_in {tuple(w_in.shape)} and w_out {tuple(w_out.shape)} do not fit; "
            f"for {activation} they are [S, d], [E, d, {'2F' if activation == 'swiglu' else 'F'}] and [E, F, d]"
        )
    if expert_ids.shape != gates.shape or expert_ids.shape[:1] != (num_tokens,):
        raise ValueError(
            f"moe_experts: expert_ids {tuple(expert_ids.shape)} and gates {tuple(gates.shape)} must both be "
            f"[S, k] with S = {num_tokens}"
        )
    if expert_ids.dtype != torch.int64:
        raise ValueError(f"moe_experts: expert_ids is {expert_ids.dtype}; give int64 (`.long()`)")
    y: Tensor = run(x, expert_ids, gates, w_in, w_out, activation)
    return y
