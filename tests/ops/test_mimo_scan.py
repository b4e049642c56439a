from functools import partial
from itertools import pairwise

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from lanewise.ops import ssm_scan
from lanewise.ops.mimo_scan import SPEC, mimo_scan, reference
from lanewise.ops.shapes import SHAPES
from tests.ops import conformance
from tests.ops.mamba3_parallel import parallel_form
from tests.ops.test_ssm_scan import DOCUMENTS, with_documents

BACKENDS = [b.name for b in SPEC.backends]
FAST = [name for name in BACKENDS if name != "reference"]
NAMES = (
    "q", "k", "v", "dt", "a_dt", "trap", "angles", "q_bias", "k_bias", "skip",
    "z", "psi_x", "psi_z", "psi_o", "chunk_size",
)  # fmt: skip
GATE = (10, 12, 13)
"""Positions of z, psi_z and psi_o."""


def arguments(
    shape: str, chunk_size: int = 4, log_decay: float | None = None, **changes: int
) -> conformance.Arguments:
    """Arguments with decays drawn at random, or all equal to `log_decay`."""
    dims = {**SHAPES["mimo_scan"][shape], **changes}
    rng = conformance.generator()
    batch, length, heads, groups, state, rank = (dims[name] for name in "BTHGNR")

    def draw(*size: int) -> Tensor:
        return torch.randn(*size, generator=rng, dtype=torch.float64)

    dt = F.softplus(draw(batch, length, heads) - 1)
    a_dt = -dt * torch.exp(draw(batch, length, heads))
    if log_decay is not None:
        a_dt = torch.full_like(a_dt, log_decay)
    values = (
        draw(batch, length, rank, groups, state),
        draw(batch, length, rank, groups, state),
        draw(batch, length, heads, dims["P"]),
        dt,
        a_dt,
        draw(batch, length, heads),
        draw(batch, length, dims["n"]),
        1 + 0.1 * draw(heads, rank, state),
        1 + 0.1 * draw(heads, rank, state),
        draw(heads),
        draw(batch, length, heads, dims["P"]),
        draw(heads, rank, dims["P"]),
        draw(heads, rank, dims["P"]),
        draw(heads, rank, dims["P"]),
    )
    return (*(value.requires_grad_() for value in values), chunk_size)


def without_gate(args: conformance.Arguments) -> conformance.Arguments:
    return tuple(None if i in GATE else a for i, a in enumerate(args))


def detached(args: conformance.Arguments) -> list:
    return [a.detach() if isinstance(a, Tensor) else a for a in args]


def bound(backend: str):
    run, _ = conformance.bind(SPEC, backend)
    return partial(mimo_scan, run)


@pytest.mark.parametrize(("backend", "shape", "dtype"), conformance.cases(SPEC))
def test_conforms_to_the_reference(backend: str, shape: str, dtype: str) -> None:
    with conformance.poisoned_memory():
        conformance.assert_conforms(
            bound(backend), reference, arguments(shape), conformance.DTYPES[dtype]
        )


@pytest.mark.parametrize(
    ("length", "chunk_size"), [(1, 1), (1, 16), (7, 16), (8, 8), (9, 8), (17, 8), (5, 1), (24, 5)]
)
def test_every_way_to_cut_a_sequence_into_chunks(length: int, chunk_size: int) -> None:
    args = arguments("tiny", chunk_size, T=length)
    with conformance.poisoned_memory():
        conformance.assert_conforms(bound("chunked.torch"), reference, args, torch.float64)


@pytest.mark.parametrize("rank", [1, 4])
@pytest.mark.parametrize("num_pairs", [0, 3, 4], ids=["no_rotation", "most", "all"])
@pytest.mark.parametrize("backend", FAST)
def test_every_rank_and_share_of_rotated_coordinates(
    backend: str, num_pairs: int, rank: int
) -> None:
    args = arguments("tiny", n=num_pairs, R=rank)
    conformance.assert_conforms(bound(backend), reference, args, torch.float64)


@pytest.mark.parametrize("backend", FAST)
def test_gradients_match_finite_differences(backend: str) -> None:
    args = arguments("single", 2, T=5, B=1, P=2)
    conformance.assert_gradcheck(bound(backend), args)
    conformance.assert_gradcheck(bound(backend), with_documents(without_gate(args), 1, 3))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("begins", [(), *DOCUMENTS.values()], ids=["one", *DOCUMENTS])
def test_equals_the_parallel_form(backend: str, begins: tuple[int, ...]) -> None:
    args = detached(with_documents(arguments("tiny", R=3), *begins))
    q, k, v, dt, a_dt, trap, angles, q_bias, k_bias, skip, z, psi_x, psi_z, psi_o, _, ids = args
    per_group, num_pairs, half = v.shape[2] // q.shape[3], angles.shape[-1], q.shape[-1] // 2
    q_BTRHN, k_BTRHN = (
        x.repeat_interleave(per_group, dim=3) + bias.transpose(0, 1)
        for x, bias in ((q, q_bias), (k, k_bias))
    )
    per_rank = parallel_form(
        q_BTRHN, k_BTRHN, torch.einsum("bthp,hrp->btrhp", v, psi_x), dt, a_dt, trap, angles, skip,
        pairs=torch.stack([torch.arange(num_pairs), half + torch.arange(num_pairs)], dim=1),
        document_ids=ids,
    )  # fmt: skip
    found = bound(backend)(*without_gate(args[:14]), 4, ids)
    torch.testing.assert_close(found, per_rank, rtol=1e-12, atol=1e-12)
    gates = F.silu(torch.einsum("bthp,hrp->btrhp", z, psi_z))
    expected = torch.einsum("btrhp,btrhp,hrp->bthp", per_rank, gates, psi_o)
    torch.testing.assert_close(bound(backend)(*args), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
def test_rank_one_is_ssm_scan_with_coordinates_in_another_order(backend: str) -> None:
    """SISO turns neighbours (2i, 2i + 1), MIMO turns (i, i + N/2)."""
    args = detached(arguments("tiny", R=1))
    for i in (11, 12, 13):
        args[i] = torch.ones_like(args[i])
    state = args[0].shape[-1]
    order = torch.stack([torch.arange(state // 2), state // 2 + torch.arange(state // 2)], dim=1)
    siso = list(args[:11])
    for i in (0, 1):
        siso[i] = args[i][:, :, 0, :, order.flatten()]
    for i in (7, 8):
        siso[i] = args[i][:, 0, order.flatten()]
    expected = ssm_scan.reference(*siso, 4)
    torch.testing.assert_close(bound(backend)(*args), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["fp64", "fp32"])
@pytest.mark.parametrize("begins", DOCUMENTS.values(), ids=DOCUMENTS)
@pytest.mark.parametrize("backend", FAST)
def test_documents_conform_to_the_reference(
    backend: str, begins: tuple[int, ...], dtype: torch.dtype
) -> None:
    args = with_documents(arguments("tiny"), *begins)
    with conformance.poisoned_memory():
        conformance.assert_conforms(bound(backend), reference, args, dtype)


@pytest.mark.parametrize("begins", DOCUMENTS.values(), ids=DOCUMENTS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_document_is_as_if_it_were_alone(backend: str, begins: tuple[int, ...]) -> None:
    args = detached(arguments("tiny"))
    together = bound(backend)(*with_documents(tuple(args), *begins))[:1]
    edges = [0, *begins, args[2].shape[1]]
    alone = [
        bound(backend)(
            *[a[:1, i:j] if name in NAMES[:7] or name == "z" else a
              for name, a in zip(NAMES, args, strict=True)]
        )
        for i, j in pairwise(edges)
    ]  # fmt: skip
    torch.testing.assert_close(together, torch.cat(alone, dim=1), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
def test_nothing_crosses_a_boundary_not_even_rounding(backend: str) -> None:
    args = with_documents(arguments("tiny", T=14), 6)
    y = bound(backend)(*args)
    per_step = [*args[:7], args[10]]
    for gradient in torch.autograd.grad(y[0, 6:].sum(), per_step, retain_graph=True):
        assert not gradient[0, :6].any()
    for gradient in torch.autograd.grad(y[0, :6].sum(), per_step):
        assert not gradient[0, 6:].any()
    loud = detached(args)
    for i in (2, 3, 4, 6):
        loud[i] = loud[i].clone()
        loud[i][0, :6] *= 1e6
    assert torch.equal(bound(backend)(*loud)[0, 6:], y[0, 6:])


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("log_decay", [0.0, -1e-6, -50.0, -800.0])
def test_extreme_decays(backend: str, log_decay: float) -> None:
    args = arguments("tiny", log_decay=log_decay)
    conformance.assert_conforms(bound(backend), reference, args, torch.float32)


@pytest.mark.parametrize("begins", [(), (1, 2, 100, 4095)], ids=["one_document", "documents"])
def test_4096_large_turns_in_fp32_cost_no_more_than_a_few(begins: tuple[int, ...]) -> None:
    args = list(with_documents(arguments("tiny", 32, B=1, T=4096), *begins))
    args[3] = 4 * args[3]
    with torch.no_grad():
        truth = bound("recurrence.torch")(*args)
        found = bound("chunked.torch")(*conformance.cast(tuple(args), torch.float32))
    assert (found.double() - truth).norm() <= 1e-6 * truth.norm()


def test_2048_steps_in_fp32_stay_within_1e_5_of_the_fp64_recurrence() -> None:
    args = arguments("tiny", 32, B=1, T=2048, log_decay=-1e-3)
    with torch.no_grad():
        truth = bound("recurrence.torch")(*args)
        found = bound("chunked.torch")(*conformance.cast(args, torch.float32))
    assert (found.double() - truth).abs().max() <= 1e-5 * truth.abs().max()


@pytest.mark.parametrize("dtype", list(conformance.DTYPES))
@pytest.mark.parametrize("backend", FAST)
def test_every_rank_without_a_gate(backend: str, dtype: str) -> None:
    args = without_gate(arguments("tiny"))
    conformance.assert_conforms(bound(backend), reference, args, conformance.DTYPES[dtype])


def test_the_state_of_bf16_inputs_is_fp32() -> None:
    """4,096 equal inputs that are never forgotten: a bf16 sum would stop growing at 256."""
    args = detached(arguments("tiny", 16, B=1, T=4096, log_decay=0.0))
    args[2], args[3] = torch.ones_like(args[2]), torch.ones_like(args[3])
    for backend in FAST:
        narrow = conformance.cast(tuple(args), torch.bfloat16)
        with torch.no_grad():
            truth = bound("recurrence.torch")(*conformance.cast(narrow, torch.float64))
            found = bound(backend)(*narrow)
        assert found.dtype == torch.bfloat16
        error = (found.double() - truth).abs().max() / truth.abs().max()
        assert error <= torch.finfo(torch.bfloat16).eps


@pytest.mark.parametrize("backend", FAST)
def test_accepts_strided_memory(backend: str) -> None:
    conformance.assert_conforms(
        bound(backend), reference, arguments("odd"), torch.float32, make=conformance.strided
    )


@pytest.mark.parametrize("backend", FAST)
def test_compiles_whole(backend: str) -> None:
    args = conformance.cast(arguments("single", 2, T=3), torch.float32)
    conformance.assert_compiles(bound(backend), args)


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_output_sees_the_future(backend: str) -> None:
    args = detached(arguments("tiny"))
    y = bound(backend)(*args)
    changed = list(args)
    for i in (*range(7), 10):
        changed[i] = args[i].clone()
        changed[i][:, 9:] *= 2 if NAMES[i] in ("dt", "a_dt") else -1
    z = bound(backend)(*changed)
    torch.testing.assert_close(z[:, :9], y[:, :9], rtol=0, atol=1e-12)
    assert (z[:, 9:] - y[:, 9:]).abs().amax(dim=(0, 2, 3)).min() > 1e-3


def test_what_does_not_fit_is_named() -> None:
    args = dict(zip(NAMES, arguments("tiny"), strict=True))
    run = bound("reference")
    with pytest.raises(ValueError, match=r"psi_x is \[3, 2, 6\] and must be \[4, 2, 6\]"):
        run(**{**args, "psi_x": args["psi_x"][:3]})
    with pytest.raises(ValueError, match=r"psi_o is None beside given ones; give z, psi_z and psi"):
        run(**{**args, "psi_o": None})
    three = {n: args[n][:, :, :3] for n in ("v", "dt", "a_dt", "trap", "z")}
    per_head = ("q_bias", "k_bias", "skip", "psi_x", "psi_z", "psi_o")
    with pytest.raises(ValueError, match="2 groups do not divide 3 heads"):
        run(**{**args, **three, **{n: args[n][:3] for n in per_head}})
    with pytest.raises(ValueError, match="state size 8 and 5 rotated pairs do not fit"):
        run(**{**args, "angles": torch.zeros(2, 16, 5)})
    with pytest.raises(ValueError, match="chunk_size is 0"):
        run(**{**args, "chunk_size": 0})
