from functools import partial
from itertools import pairwise

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from lanewise.ops.shapes import SHAPES
from lanewise.ops.ssm_scan import SPEC, reference, ssm_scan
from tests.ops import conformance
from tests.ops.mamba3_parallel import parallel_form

FAST = [b.name for b in SPEC.backends if b.name != "reference"]
BACKENDS = [b.name for b in SPEC.backends]
NAMES = ("q", "k", "v", "dt", "a_dt", "trap", "angles", "q_bias", "k_bias", "skip", "z")


def arguments(
    shape: str, chunk_size: int = 4, log_decay: float | None = None, **changes: int
) -> conformance.Arguments:
    """Arguments with decays drawn at random, or all equal to `log_decay`."""
    dims = {**SHAPES["ssm_scan"][shape], **changes}
    rng = conformance.generator()
    batch, length, heads, groups, state = (dims[name] for name in "BTHGN")

    def draw(*size: int) -> Tensor:
        return torch.randn(*size, generator=rng, dtype=torch.float64)

    dt = F.softplus(draw(batch, length, heads) - 1)
    a_dt = -dt * torch.exp(draw(batch, length, heads))
    if log_decay is not None:
        a_dt = torch.full_like(a_dt, log_decay)
    values = (
        draw(batch, length, groups, state),
        draw(batch, length, groups, state),
        draw(batch, length, heads, dims["P"]),
        dt,
        a_dt,
        draw(batch, length, heads),
        draw(batch, length, dims["n"]),
        1 + 0.1 * draw(heads, state),
        1 + 0.1 * draw(heads, state),
        draw(heads),
        draw(batch, length, heads, dims["P"]),
    )
    return (*(value.requires_grad_() for value in values), chunk_size)


def with_documents(args: conformance.Arguments, *begins: int) -> conformance.Arguments:
    """The arguments with documents that begin at these steps of the first row; other rows are one document."""
    batch, length = args[2].shape[:2]
    ids = torch.zeros(batch, length, dtype=torch.int64)
    ids[0, list(begins)] = 1
    return (*args, ids.cumsum(1))


DOCUMENTS = {
    "ones": (1, 2, 3, 5, 6),  # documents of length 1, inside a chunk and over its end
    "at_chunks": (4, 8),
    "inside_chunks": (7, 10, 13),
    "long": (13,),
}


def bound(backend: str):
    run, _ = conformance.bind(SPEC, backend)
    return partial(ssm_scan, run)


@pytest.mark.parametrize(("backend", "shape", "dtype"), conformance.cases(SPEC))
def test_conforms_to_the_reference(backend: str, shape: str, dtype: str) -> None:
    with conformance.poisoned_memory():
        conformance.assert_conforms(
            bound(backend), reference, arguments(shape), conformance.DTYPES[dtype]
        )


@pytest.mark.parametrize(
    ("length", "chunk_size"),
    [(1, 1), (1, 16), (7, 16), (8, 8), (9, 8), (15, 8), (16, 8), (17, 8), (5, 1), (24, 5)],
)
def test_every_way_to_cut_a_sequence_into_chunks(length: int, chunk_size: int) -> None:
    with conformance.poisoned_memory():
        conformance.assert_conforms(
            bound("chunked.torch"),
            reference,
            arguments("tiny", chunk_size, T=length),
            torch.float64,
        )


@pytest.mark.parametrize("num_pairs", [0, 3, 4], ids=["no_rotation", "most", "all"])
@pytest.mark.parametrize("backend", FAST)
def test_every_share_of_rotated_coordinates(backend: str, num_pairs: int) -> None:
    conformance.assert_conforms(
        bound(backend), reference, arguments("tiny", n=num_pairs), torch.float64
    )


@pytest.mark.parametrize("backend", FAST)
def test_gradients_match_finite_differences(backend: str) -> None:
    conformance.assert_gradcheck(bound(backend), arguments("single", 2, T=5, B=1))


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("log_decay", [0.0, -1e-6, -50.0, -800.0])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["fp64", "fp32"])
def test_extreme_decays(backend: str, log_decay: float, dtype: torch.dtype) -> None:
    args = arguments("tiny", log_decay=log_decay)
    conformance.assert_conforms(bound(backend), reference, args, dtype)


@pytest.mark.parametrize("backend", FAST)
def test_a_step_that_forgets_all_beside_steps_that_forget_nothing(backend: str) -> None:
    args = list(arguments("odd", 16))
    a_dt = torch.zeros_like(args[4])
    a_dt[:, 5::9] = -300.0
    args[4] = a_dt.requires_grad_()
    conformance.assert_conforms(bound(backend), reference, tuple(args), torch.float32)


@pytest.mark.parametrize("backend", FAST)
def test_steps_of_no_length_change_nothing(backend: str) -> None:
    args = list(arguments("tiny"))
    dt, a_dt = args[3].detach().clone(), args[4].detach().clone()
    dt[:, 3:11], a_dt[:, 3:11] = 0, 0
    args[3:5] = dt.requires_grad_(), a_dt.requires_grad_()
    conformance.assert_conforms(bound(backend), reference, tuple(args), torch.float64)


@pytest.mark.parametrize("backend", FAST)
def test_long_sequences_drift_no_further_than_the_reference(backend: str) -> None:
    """1,024 steps in fp32: the error stays within the fp32 reference's own plus 64 epsilons."""
    conformance.assert_conforms(
        bound(backend),
        reference,
        arguments("tiny", 16, B=1, T=1024, H=1, G=1),
        torch.float32,
        margin_eps=64,
    )


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
    args = [a.detach() if isinstance(a, Tensor) else a for a in arguments("tiny")]
    y = bound(backend)(*args)
    changed = list(args)
    for i, name in enumerate(NAMES):
        if args[i].dim() > 2:
            changed[i] = args[i].clone()
            changed[i][:, 9:] *= 2 if name in ("dt", "a_dt") else -1
    z = bound(backend)(*changed)
    torch.testing.assert_close(z[:, :9], y[:, :9], rtol=0, atol=1e-12)
    assert (z[:, 9:] - y[:, 9:]).abs().amax(dim=(0, 2, 3)).min() > 1e-3


@pytest.mark.parametrize("shape", ["tiny", "odd"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_equals_the_parallel_form(backend: str, shape: str) -> None:
    args = [a.detach() if isinstance(a, Tensor) else a for a in arguments(shape)]
    if shape == "tiny":
        args = list(with_documents(tuple(args), 1, 2, 9))
    q, k, v, dt, a_dt, trap, angles, q_bias, k_bias, skip, z, _, *documents = args
    per_group = v.shape[2] // q.shape[2]
    q_BT1HN, k_BT1HN = (
        (x.repeat_interleave(per_group, dim=2) + bias).unsqueeze(2)
        for x, bias in ((q, q_bias), (k, k_bias))
    )
    pairs = torch.arange(2 * angles.shape[-1]).view(-1, 2)
    expected = parallel_form(
        q_BT1HN, k_BT1HN, v.unsqueeze(2), dt, a_dt, trap, angles, skip,
        pairs=pairs, document_ids=documents[0] if documents else None,
    ).squeeze(2) * F.silu(z)  # fmt: skip
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
    args = [a.detach() if isinstance(a, Tensor) else a for a in arguments("tiny")]
    together = bound(backend)(*with_documents(tuple(args), *begins))[:1]
    edges = [0, *begins, args[2].shape[1]]
    alone = [
        bound(backend)(*[a[:1, i:j] if isinstance(a, Tensor) and a.dim() > 2 else a for a in args])
        for i, j in pairwise(edges)
    ]
    torch.testing.assert_close(together, torch.cat(alone, dim=1), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
def test_nothing_crosses_a_boundary_not_even_rounding(backend: str) -> None:
    args = with_documents(arguments("tiny", T=14), 6)
    y = bound(backend)(*args)
    per_step = [a for a in args[:11] if a.dim() > 2]
    for gradient in torch.autograd.grad(y[0, 6:].sum(), per_step, retain_graph=True):
        assert not gradient[0, :6].any()
    for gradient in torch.autograd.grad(y[0, :6].sum(), per_step):
        assert not gradient[0, 6:].any()
    # Sums as large as fp32 allows stand before the boundary; nothing of them is seen behind it.
    loud = [a.detach() if isinstance(a, Tensor) else a for a in args]
    for i in (2, 3, 4, 6):
        loud[i] = loud[i].clone()
        loud[i][0, :6] *= 1e6
    assert torch.equal(bound(backend)(*loud)[0, 6:], y[0, 6:])


@pytest.mark.parametrize("backend", FAST)
def test_gradients_of_documents_match_finite_differences(backend: str) -> None:
    args = with_documents(arguments("single", 2, T=5, B=1), 1, 3)
    conformance.assert_gradcheck(bound(backend), args)


@pytest.mark.parametrize("dtype", list(conformance.DTYPES))
@pytest.mark.parametrize("backend", FAST)
def test_without_a_gate(backend: str, dtype: str) -> None:
    args = list(arguments("tiny"))
    args[10] = None
    conformance.assert_conforms(bound(backend), reference, tuple(args), conformance.DTYPES[dtype])


@pytest.mark.parametrize("begins", [(), (1, 2, 100, 4095)], ids=["one_document", "documents"])
def test_4096_large_turns_in_fp32_cost_no_more_than_a_few(begins: tuple[int, ...]) -> None:
    args = list(with_documents(arguments("tiny", 64, B=1, T=4096), *begins))
    args[3] = 4 * args[3]
    with torch.no_grad():
        truth = bound("recurrence.torch")(*args)
        found = bound("chunked.torch")(*conformance.cast(tuple(args), torch.float32))
    assert (found.double() - truth).norm() <= 1e-6 * truth.norm()


def test_2048_steps_in_fp32_stay_within_1e_5_of_the_fp64_recurrence() -> None:
    args = arguments("tiny", 64, B=1, T=2048, log_decay=-1e-3)
    with torch.no_grad():
        truth = bound("recurrence.torch")(*args)
        found = bound("chunked.torch")(*conformance.cast(args, torch.float32))
    # θ is a sum of 2,048 turns, so its rounding grows with the row; a state that keeps 1,000 steps hides nothing.
    assert (found.double() - truth).abs().max() <= 1e-5 * truth.abs().max()


def test_two_steps_by_hand() -> None:
    """One channel, no rotation, q = k = 1 + bias 0: y_2 = α γ v_1 + β v_1 + γ v_2 + D v_2, all by numbers."""
    one = torch.ones(1, 2, 1, dtype=torch.float64)
    pair = torch.zeros(1, 2, 1, 2, dtype=torch.float64)
    pair[..., 0] = 1
    v = torch.tensor([2.0, 5.0], dtype=torch.float64).view(1, 2, 1, 1)
    dt, decay = 0.5 * one, torch.log(torch.tensor(0.25, dtype=torch.float64)) * one
    trap = torch.log(torch.tensor(3.0, dtype=torch.float64)) * one  # λ = 3/4
    zero = torch.zeros(1, 2, dtype=torch.float64)
    z = torch.full_like(v, 40.0)  # silu(40) = 40
    y = reference(
        pair, pair, v, dt, decay, trap, torch.zeros(1, 2, 0, dtype=torch.float64), zero, zero,
        torch.ones(1, dtype=torch.float64), z, 1,
    )  # fmt: skip
    gamma, beta = 0.75 * 0.5, 0.25 * 0.5 * 0.25
    expected = [gamma * 2 + 2, 0.25 * gamma * 2 + beta * 2 + gamma * 5 + 5]
    torch.testing.assert_close(y.flatten(), 40 * torch.tensor(expected, dtype=torch.float64))


def test_what_does_not_fit_is_named() -> None:
    args = dict(zip((*NAMES, "chunk_size"), arguments("tiny"), strict=True))
    run = bound("reference")
    with pytest.raises(ValueError, match=r"skip is \[3\] and must be \[4\]"):
        run(**{**args, "skip": args["skip"][:3]})
    three = {n: args[n][:, :, :3] for n in ("v", "dt", "a_dt", "trap", "z")}
    biases = {n: args[n][:3] for n in ("q_bias", "k_bias", "skip")}
    with pytest.raises(ValueError, match="2 groups do not divide 3 heads"):
        run(**{**args, **three, **biases})
    with pytest.raises(ValueError, match="state size 8 and 5 rotated pairs do not fit"):
        run(**{**args, "angles": torch.zeros(2, 16, 5)})
    with pytest.raises(ValueError, match="chunk_size is 0"):
        run(**{**args, "chunk_size": 0})
    with pytest.raises(ValueError, match=r"document_ids is \[2, 5\] and must be \[2, 16\]"):
        run(**args, document_ids=torch.zeros(2, 5, dtype=torch.int64))
