"""`moe_experts` on torch's own GEMMs: `sorted.torch` (fast path) and `padded.torch` (the article's standard path).

Shapes: S tokens, d hidden, E experts, k choices, F expert hidden size, R = S·k choices, F' = F or 2F, N ≤ R rows: one for
each choice of an expert. Choices of a negative id sort behind all experts and have no row.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

# --- sorted.torch ---------------------------------------------------------------------------------------------------
# Rows are sorted by expert, so each expert is one GEMM over its own rows: nothing is padded, and a negative choice costs
# nothing. Both weighted sums over the choices of a token (y forward, dx backward) are gathers with a sum,
# `embedding_bag`, not scatters: each token's rows are known from the inverse permutation, the order of summation is
# fixed, and no thread adds into another's row.
# One buffer of rows serves all its successive tenants: on a CPU fresh memory costs page faults comparable to the GEMMs.


def sorted_by_expert(
    x: Tensor, expert_ids: Tensor, gates: Tensor, w_in: Tensor, w_out: Tensor, activation: str
) -> Tensor:
    """Sort rows by expert, run one GEMM per expert on exactly its rows, gather back by gate.

    One custom op with an explicit backward; reads the loads on the host, which a GPU pays with one synchronisation.
    Arguments and result as `ops.moe_experts.moe_experts`.
    """
    return torch.ops.lanewise.moe_sorted(x, expert_ids, gates, w_in, w_out, activation)[0]


@torch.library.custom_op("lanewise::moe_sorted", mutates_args=())
def _moe_sorted(
    x: Tensor, expert_ids: Tensor, gates: Tensor, w_in: Tensor, w_out: Tensor, activation: str
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    num_tokens, k = expert_ids.shape
    order_R, loads_E = _sort_by_expert(expert_ids, w_in.shape[0])
    place_R = torch.empty_like(order_R)  # where each choice went: the inverse of order
    place_R[order_R] = torch.arange(num_tokens * k, device=x.device)

    loads = loads_E.tolist()
    num_rows = sum(loads)
    rows_ND = x.index_select(0, order_R[:num_rows] // k)
    pre_RF = x.new_empty(num_tokens * k, w_in.shape[2])  # a result of the op, so its size is static
    pre_RF[num_rows:].zero_()
    pre_NF = pre_RF[:num_rows]
    _grouped_mm(rows_ND, w_in, loads, out=pre_NF)
    _grouped_mm(_activate(pre_NF, activation), w_out, loads, out=rows_ND)
    y_SD = _sum_choices(rows_ND, place_R.view(num_tokens, k), gates)
    return y_SD, pre_RF, order_R, place_R, loads_E


@_moe_sorted.register_fake
def _(x, expert_ids, gates, w_in, w_out, activation):
    rows = expert_ids.numel()
    return (
        x.new_empty(x.shape),
        x.new_empty(rows, w_in.shape[2]),
        expert_ids.new_empty(rows),
        expert_ids.new_empty(rows),
        expert_ids.new_empty(w_in.shape[0]),
    )


@torch.library.custom_op("lanewise::moe_sorted_backward", mutates_args=())
def _moe_sorted_backward(
    dy_SD: Tensor,
    x: Tensor,
    gates: Tensor,
    w_in: Tensor,
    w_out: Tensor,
    pre_RF: Tensor,
    order_R: Tensor,
    place_R: Tensor,
    loads_E: Tensor,
    activation: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    num_tokens, k = gates.shape
    loads = loads_E.tolist()
    num_rows = sum(loads)
    choice_N = order_R[:num_rows]
    token_N = choice_N // k
    gate_N1 = gates.reshape(-1).index_select(0, choice_N).unsqueeze(1)
    hidden_NF, derivative = _activate_with_derivative(pre_RF[:num_rows], activation)

    # The gate is a factor of the row, so it may sit on either side of W_out: d(gate) = <dy W_outᵀ, hidden> needs no
    # stored expert output, and gate · hidden serves both dW_out and nothing else.
    rows_ND = dy_SD.index_select(0, token_N)
    dhidden_NF = torch.empty_like(hidden_NF)
    _grouped_mm(rows_ND, w_out.transpose(1, 2), loads, out=dhidden_NF)
    dgates_N = torch.linalg.vecdot(dhidden_NF, hidden_NF)
    dw_out = _grouped_outer(hidden_NF.mul_(gate_N1), rows_ND, loads)

    dpre_NF = derivative(dhidden_NF.mul_(gate_N1))
    torch.index_select(x, 0, token_N, out=rows_ND)
    dw_in = _grouped_outer(rows_ND, dpre_NF, loads)
    _grouped_mm(dpre_NF, w_in.transpose(1, 2), loads, out=rows_ND)
    dx_SD = _sum_choices(rows_ND, place_R.view(num_tokens, k))
    dgates_R = gates.new_zeros(num_tokens * k).index_copy_(0, choice_N, dgates_N)
    return dx_SD, dgates_R.view(num_tokens, k), dw_in, dw_out


@_moe_sorted_backward.register_fake
def _(dy_SD, x, gates, w_in, w_out, pre_RF, order_R, place_R, loads_E, activation):
    return (
        x.new_empty(x.shape),
        gates.new_empty(gates.shape),
        w_in.new_empty(w_in.shape),
        w_out.new_empty(w_out.shape),
    )


def _save_for_backward(ctx, inputs, output):
    x, _, gates, w_in, w_out, activation = inputs
    _, pre_RF, order_R, place_R, loads_E = output
    ctx.save_for_backward(x, gates, w_in, w_out, pre_RF, order_R, place_R, loads_E)
    ctx.mark_non_differentiable(*output[1:])
    ctx.activation = activation


def _backward(ctx, dy_SD, *_):
    # contiguous: the gradient of a plain sum is expanded, with strides of 0
    dx, dgates, dw_in, dw_out = torch.ops.lanewise.moe_sorted_backward(
        dy_SD.contiguous(), *ctx.saved_tensors, ctx.activation
    )
    return dx, None, dgates, dw_in, dw_out, None


_moe_sorted.register_autograd(_backward, setup_context=_save_for_backward)


def _sort_by_expert(expert_ids: Tensor, num_experts: int) -> tuple[Tensor, Tensor]:
    """The choices in the order of their experts [R], negative ones last, and the number of choices of each expert [E]."""
    flat_R = expert_ids.reshape(-1)
    flat_R = torch.where(flat_R < 0, num_experts, flat_R)
    loads = torch.bincount(flat_R, minlength=num_experts + 1)
    return flat_R.argsort(stable=True), loads[:num_experts]


def _sum_choices(rows_ND: Tensor, place_SK: Tensor, gates: Tensor | None = None) -> Tensor:
    """Each token's rows added up, weighted by gate if given → [S, d]; a place of N or more has no row."""
    num_rows = rows_ND.shape[0]
    if num_rows == place_SK.numel():
        weights = None if gates is None else gates.contiguous()
        return F.embedding_bag(place_SK, rows_ND, mode="sum", per_sample_weights=weights)
    has_row_SK = place_SK < num_rows
    ends_S = has_row_SK.sum(1).cumsum(0)
    return F.embedding_bag(
        place_SK[has_row_SK],
        rows_ND,
        F.pad(ends_S[:-1], (1, 0)),
        mode="sum",
        per_sample_weights=None if gates is None else gates[has_row_SK],
    )


def _grouped_mm(rows_NI: Tensor, weight_EIO: Tensor, loads: list[int], *, out: Tensor) -> None:
    """Each expert's rows by its own matrix. A loop of mm: F.grouped_mm is no faster on a CPU and pickier."""
    for rows, weight, result in zip(
        rows_NI.split(loads), weight_EIO.unbind(0), out.split(loads), strict=True
    ):
        torch.mm(rows, weight, out=result)


def _grouped_outer(left_NI: Tensor, right_NO: Tensor, loads: list[int]) -> Tensor:
    """Each expert's leftᵀ · right over its rows → [E, I, O]; zero for an expert without rows."""
    out_EIO = left_NI.new_empty(len(loads), left_NI.shape[1], right_NO.shape[1])
    for left, right, out in zip(
        left_NI.split(loads), right_NO.split(loads), out_EIO.unbind(0), strict=True
    ):
        torch.mm(left.t(), right, out=out)
    return out_EIO


def _activate_with_derivative(pre, activation):
    """The activation's value, and a function that turns the value's gradient, overwritten, into that of `pre`."""
    if activation == "gelu":
        return F.gelu(pre), lambda grad: torch.ops.aten.gelu_backward.grad_input(
            grad, pre, grad_input=grad
        )
    if activation == "relu2":
        positive = F.relu(pre)
        return positive.square(), lambda grad: grad.mul_(positive).mul_(2)
    gate, up = pre.chunk(2, dim=-1)
    silu = F.silu(gate)

    def swiglu_derivative(grad: Tensor) -> Tensor:
        out = torch.empty_like(pre)
        dgate, dup = out.chunk(2, dim=-1)
        torch.mul(grad, silu, out=dup)
        dgate.copy_(torch.ops.aten.silu_backward(grad.mul_(up), gate))
        return out

    return silu * up, swiglu_derivative


# --- padded.torch ---------------------------------------------------------------------------------------------------


def padded(
    x: Tensor, expert_ids: Tensor, gates: Tensor, w_in: Tensor, w_out: Tensor, activation: str
) -> Tensor:
    """The standard path: permute, pad every expert to the largest load, batched GEMM, unpad, unpermute, weighted sum.

    Nothing is dropped: the capacity is the largest load. Arguments and result as `ops.moe_experts.moe_experts`.
    """
    k, (num_experts, width, _) = expert_ids.shape[1], w_in.shape
    order_R, loads_E = _sort_by_expert(expert_ids, num_experts)
    loads = loads_E.tolist()
    num_rows, capacity = sum(loads), max(loads)
    choice_N = order_R[:num_rows]
    expert_N = expert_ids.reshape(-1)[choice_N]
    rank_N = torch.arange(num_rows, device=x.device) - (loads_E.cumsum(0) - loads_E)[expert_N]
    slot_N = expert_N * capacity + rank_N
    token_N = choice_N // k

    padded_ECD = x.new_zeros(num_experts * capacity, width).index_copy(
        0, slot_N, x.index_select(0, token_N)
    )
    hidden_ECF = _activate(
        torch.bmm(padded_ECD.view(num_experts, capacity, width), w_in), activation
    )
    y_ECD = torch.bmm(hidden_ECF, w_out)
    y_ND = y_ECD.flatten(0, 1).index_select(0, slot_N)
    gate_N1 = gates.reshape(-1).index_select(0, choice_N).unsqueeze(1)
    return torch.zeros_like(x).index_add(0, token_N, y_ND * gate_N1)


def _activate(pre, activation):
    if activation == "gelu":
        return F.gelu(pre)
    if activation == "relu2":
        return F.relu(pre).square()
    gate, up = pre.chunk(2, dim=-1)
    return F.silu(gate) * up
