"""`ssd_scan`: the core of Mamba-2 (state space duality), from convolved x, B, C and step sizes to the output.

Per batch row and head, with S_0 = 0 at the start of every document:

    S_t = exp(a·dt_t) S_{t−1} + dt_t x_t b_tᵀ      y_t = S_t c_t + skip·x_t

Head h takes b and c of group h // (H/G). Source: arXiv 2405.21060 (eq. 16 with a scalar A a head; §6 for the chunked form);
state-spaces/mamba, `mamba_ssm/modules/ssd_minimal.py`. Projections, convolution, softplus of dt, gate and norm are the
block's business.

Shape legend: B batch, T sequence, H heads (a multiple of G), G groups, P head dim, N state.
Dtypes: fp64, fp32, bf16; bf16 is computed in fp32. The result has the dtype of `x`.
Limits: a ≤ 0 and dt ≥ 0; only sums of decays inside a chunk are exponentiated, so nothing overflows. A document boundary
is a selection, never a large negative decay, so nothing of another document is left, not even rounding.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from lanewise.ops.observe import Launch
from lanewise.ops.spec import Backend, OpSpec


def reference(
    x: Tensor,
    dt: Tensor,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    skip: Tensor,
    chunk_size: int,  # noqa: ARG001  the recurrence knows no chunks; all backends share the signature
    document_ids: Tensor | None = None,
) -> Tensor:
    """The recurrence as written above, one step after the other; the oracle. Arguments as `ssd_scan`."""
    heads_per_group = x.shape[2] // b.shape[2]
    b_BTHN = b.repeat_interleave(heads_per_group, dim=2)
    c_BTHN = c.repeat_interleave(heads_per_group, dim=2)
    state_BHPN = x.new_zeros(x.shape[0], x.shape[2], x.shape[3], b.shape[3])
    outputs = []
    for t in range(x.shape[1]):
        if document_ids is not None and t > 0:
            begins = document_ids[:, t] != document_ids[:, t - 1]
            state_BHPN = state_BHPN.masked_fill(begins[:, None, None, None], 0)
        decay = torch.exp(a * dt[:, t])[:, :, None, None]
        input_BHP = dt[:, t, :, None] * x[:, t]
        state_BHPN = decay * state_BHPN + input_BHP[..., None] * b_BTHN[:, t, :, None, :]
        y_BHP = (state_BHPN * c_BTHN[:, t, :, None, :]).sum(-1) + skip[:, None] * x[:, t]
        outputs.append(y_BHP)
    return torch.stack(outputs, dim=1).to(x.dtype)


def state_after(x: Tensor, dt: Tensor, a: Tensor, b: Tensor, state: Tensor | None) -> Tensor:
    """S_T after steps of one document: `exp(Σ a·dt) S + Σ_t exp(a·Σ_{s>t} dt_s) dt_t x_t b_tᵀ`, for decoding.

    Args:
        x: inputs [B, T, H, P].
        dt: step sizes [B, T, H].
        a: decay rate [H].
        b: what writes to the state [B, T, G, N].
        state: S before these steps [B, H, P, N]; None is zero.

    Returns:
        [B, H, P, N], fp32 or wider.
    """
    dtype = torch.promote_types(x.dtype, torch.float32)
    a_dt = a.to(dtype) * dt.to(dtype)
    to_end = F.pad(a_dt[:, 1:], (0, 0, 0, 1)).flip(1).cumsum(1).flip(1).exp()
    input_BTHP = (to_end * dt).unsqueeze(-1) * x
    input_BTGJP = torch.unflatten(input_BTHP, 2, (b.shape[2], -1))
    added = torch.einsum("btgjp,btgn->bgjpn", input_BTGJP, b.to(dtype)).flatten(1, 2)
    return added if state is None else a_dt.sum(1).exp()[..., None, None] * state + added


def read_from_state(dt: Tensor, a: Tensor, c: Tensor, state: Tensor) -> Tensor:
    """What a state before these steps of one document adds to their outputs: `exp(a·Σ_{s≤t} dt_s) S c_t`, for decoding.

    Args:
        dt: step sizes [B, T, H].
        a: decay rate [H].
        c: what reads the state [B, T, G, N].
        state: S before these steps [B, H, P, N].

    Returns:
        [B, T, H, P] in the dtype of `state`.
    """
    from_start = (a.to(state.dtype) * dt.to(state.dtype)).cumsum(1).exp()
    state_BGJPN = torch.unflatten(state, 1, (c.shape[2], -1))
    read = torch.einsum("btgn,bgjpn->btgjp", c.to(state.dtype), state_BGJPN).flatten(2, 3)
    return from_start.unsqueeze(-1) * read


SPEC = OpSpec(
    name="ssd_scan",
    reference="reference",
    backends=(
        Backend(
            name="chunked.torch",
            target="lanewise.kernels.ssd_scan_torch:chunked",
            note="chunks as batched matmuls, the state passed once a chunk; backward by autograd",
        ),
        Backend(
            name="recurrence.torch",
            target="lanewise.kernels.ssd_scan_torch:recurrence",
            note="one step after the other under autograd, vectorised over batch and heads",
        ),
        Backend(
            name="reference",
            target="lanewise.ops.ssd_scan:reference",
            note="the oracle: the formula, step by step",
        ),
    ),
)


def ssd_scan(
    run: Launch,
    x: Tensor,
    dt: Tensor,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    skip: Tensor,
    chunk_size: int,
    document_ids: Tensor | None = None,
) -> Tensor:
    """Scan a sequence with the Mamba-2 recurrence, with the chosen backend.

    Args:
        run: the chosen backend.
        x: inputs [B, T, H, P].
        dt: step sizes ≥ 0, after the softplus [B, T, H].
        a: decay rate < 0 [H].
        b: what writes to the state [B, T, G, N].
        c: what reads the state [B, T, G, N].
        skip: weight of x in the output ("D") [H].
        chunk_size: steps a chunk ≥ 1, for backends that have chunks; T need not be a multiple.
        document_ids: int64 [B, T], never falling along a row and rising where a document begins; the state starts at
            zero there. None when a row is one document.

    Returns:
        [B, T, H, P] in the dtype of `x`.

    Raises:
        ValueError: a shape does not fit.
    """
    batch, length, heads = x.shape[:3]
    groups, state = b.shape[2:]
    expected = {
        "dt": (dt, (batch, length, heads)),
        "a": (a, (heads,)),
        "b": (b, (batch, length, groups, state)),
        "c": (c, (batch, length, groups, state)),
        "skip": (skip, (heads,)),
    }
    if document_ids is not None:
        expected["document_ids"] = (document_ids, (batch, length))
    for name, (tensor, shape) in expected.items():
        if tensor.shape != shape:
            raise ValueError(
                f"ssd_scan: {name} is {list(tensor.shape)} and must be {list(shape)} "
                f"beside x {list(x.shape)} and b {list(b.shape)}"
            )
    if heads % groups:
        raise ValueError(f"ssd_scan: {groups} groups do not divide {heads} heads; choose a divisor")
    if chunk_size < 1:
        raise ValueError(f"ssd_scan: chunk_size is {chunk_size} and must be at least 1")
    y: Tensor = run(x, dt, a, b, c, skip, chunk_size, document_ids)
    return y
