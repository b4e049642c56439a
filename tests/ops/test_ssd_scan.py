import math
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from lanewise.ops.shapes import SHAPES
from lanewise.ops.ssd_scan import SPEC, reference, ssd_scan
from tests.ops import conformance

ALL = [b.name for b in SPEC.backends]
FAST = [name for name in ALL if name != "reference"]
NAMES = ("x", "dt", "a", "b", "c", "skip", "chunk_size")
DOCUMENTS = {
    "one": [16],
    "of_length_1": [1] * 16,
    "at_the_edges": [1, 14, 1],
    "on_chunk_starts": [4, 8, 4],
    "inside_chunks": [2, 3, 1, 1, 7, 2],
    "over_chunks": [6, 10],
}
"""Lengths of the documents of a row of 16 steps."""


def arguments(shape: str, chunk_size: int = 4, **changes: int) -> conformance.Arguments:
    dims = {**SHAPES["ssd_scan"][shape], **changes}
    rng = conformance.generator()
    batch, length, heads, groups, state = (dims[name] for name in "BTHGN")

    def draw(*size: int) -> Tensor:
        return torch.randn(*size, generator=rng, dtype=torch.float64)

    values = (
        draw(batch, length, heads, dims["P"]),
        F.softplus(draw(batch, length, heads) - 1),
        -torch.exp(draw(heads)),
        draw(batch, length, groups, state),
        draw(batch, length, groups, state),
        draw(heads),
    )
    return (*(value.requires_grad_() for value in values), chunk_size)


def with_decay(args: conformance.Arguments, log_decay: float) -> conformance.Arguments:
    """The same arguments with a·dt equal to `log_decay` at every step."""
    x, dt, a, *rest = args
    return (x, torch.ones_like(dt).requires_grad_(), torch.full_like(a, log_decay), *rest)


def ids_of(lengths: list[int]) -> Tensor:
    """Document ids [1, T] of documents of these lengths."""
    return torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))[None]


def random_ids(batch: int, length: int, seed: int) -> Tensor:
    begins = torch.rand(batch, length, generator=conformance.generator(seed)) < 0.3
    return begins.to(torch.int64).cumsum(1)


def bound(backend: str):
    run, _ = conformance.bind(SPEC, backend)
    return partial(ssd_scan, run)


def dense(x, dt, a, b, c, skip, chunk_size, document_ids=None) -> Tensor:
    """The attention-like form, all pairs of steps at once: an oracle without any recurrence."""
    length, heads_per_group = x.shape[1], x.shape[2] // b.shape[2]
    b, c = (g.repeat_interleave(heads_per_group, dim=2) for g in (b, c))
    weights = torch.zeros(x.shape[0], x.shape[2], length, length, dtype=x.dtype)
    for t in range(length):
        for s in range(t + 1):
            same = torch.ones(x.shape[0], dtype=x.dtype)
            if document_ids is not None:
                same = (document_ids[:, s] == document_ids[:, t]).to(x.dtype)
            decay = torch.exp(a * dt[:, s + 1 : t + 1].sum(1)) * dt[:, s]
            weights[:, :, t, s] = (c[:, t] * b[:, s]).sum(-1) * decay * same[:, None]
    return torch.einsum("bhts,bshp->bthp", weights, x) + skip[:, None] * x


@pytest.mark.parametrize("documents", [None, *DOCUMENTS])
def test_the_reference_is_the_dense_form(documents: str | None) -> None:
    args = arguments("tiny")
    ids = None if documents is None else ids_of(DOCUMENTS[documents]).expand(2, -1)
    torch.testing.assert_close(reference(*args, ids), dense(*args, ids), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("with_documents", [False, True], ids=["one_document", "documents"])
@pytest.mark.parametrize(("backend", "shape", "dtype"), conformance.cases(SPEC))
def test_conforms_to_the_reference(
    backend: str, shape: str, dtype: str, with_documents: bool
) -> None:
    args = arguments(shape)
    ids = random_ids(*args[0].shape[:2], seed=3) if with_documents else None
    with conformance.poisoned_memory():
        conformance.assert_conforms(
            bound(backend), reference, (*args, ids), conformance.DTYPES[dtype]
        )


@pytest.mark.parametrize("documents", DOCUMENTS)
@pytest.mark.parametrize("backend", FAST)
def test_documents_conform_to_the_reference(backend: str, documents: str) -> None:
    ids = ids_of(DOCUMENTS[documents]).expand(2, -1)
    args = (*arguments("tiny"), ids)
    conformance.assert_conforms(bound(backend), reference, args, torch.float64)


@pytest.mark.parametrize("documents", DOCUMENTS)
@pytest.mark.parametrize("backend", ALL)
def test_a_document_in_a_row_equals_the_document_alone(backend: str, documents: str) -> None:
    """Outputs and, since each document has its own upstream gradient, gradients."""
    lengths = DOCUMENTS[documents]
    args = arguments("tiny")
    together = conformance.evaluate(bound(backend), (*args, ids_of(lengths).expand(2, -1)))
    upstream = conformance.generator(conformance.UPSTREAM_SEED)
    grad = torch.randn(args[0].shape, generator=upstream, dtype=torch.float64)
    grad = grad.to(torch.bfloat16).double()
    start = 0
    for length in lengths:
        piece = slice(start, start + length)
        alone = tuple(
            v[:, piece].detach().requires_grad_() if isinstance(v, Tensor) and v.dim() > 1 else v
            for v in args
        )
        y = bound(backend)(*alone)
        torch.testing.assert_close(y, together["output 0"][:, piece], rtol=1e-12, atol=1e-12)
        found = torch.autograd.grad(y, [alone[0], alone[1], alone[3], alone[4]], grad[:, piece])
        for i, gradient in zip((0, 1, 3, 4), found, strict=True):
            expected = together[f"gradient {i}"][:, piece]
            torch.testing.assert_close(gradient, expected, rtol=1e-11, atol=1e-11)
        start += length


@pytest.mark.parametrize("backend", ALL)
def test_nothing_at_all_crosses_a_boundary(backend: str) -> None:
    """What is huge in one document is not even rounding in the next."""
    args = [v.detach() if isinstance(v, Tensor) else v for v in arguments("tiny")]
    ids = ids_of([6, 10]).expand(2, -1)
    y = bound(backend)(*args, ids)
    for i in (0, 3, 4):
        args[i] = args[i].clone()
        args[i][:, :6] *= 1e30
    z = bound(backend)(*args, ids)
    assert torch.equal(y[:, 6:], z[:, 6:])


@pytest.mark.parametrize(
    ("length", "chunk_size"),
    [
        (1, 1),
        (1, 16),
        (7, 16),
        (8, 8),
        (9, 8),
        (15, 8),
        (16, 8),
        (17, 8),
        (5, 1),
        (24, 5),
        (63, 16),
    ],
)
def test_every_way_to_cut_a_sequence_into_chunks(length: int, chunk_size: int) -> None:
    args = arguments("tiny", chunk_size, T=length)
    for ids in (None, random_ids(2, length, seed=length)):
        conformance.assert_conforms(bound("chunked.torch"), reference, (*args, ids), torch.float64)


@pytest.mark.parametrize("with_documents", [False, True], ids=["one_document", "documents"])
@pytest.mark.parametrize("backend", FAST)
def test_gradients_match_finite_differences(backend: str, with_documents: bool) -> None:
    ids = ids_of([2, 1, 2]) if with_documents else None
    conformance.assert_gradcheck(bound(backend), (*arguments("single", 2, T=5, B=1), ids))


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("log_decay", [0.0, -1e-6, -50.0, -800.0])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["fp64", "fp32"])
def test_extreme_decays(backend: str, log_decay: float, dtype: torch.dtype) -> None:
    args = with_decay(arguments("tiny"), log_decay)
    conformance.assert_conforms(bound(backend), reference, args, dtype)


@pytest.mark.parametrize("backend", FAST)
def test_a_step_that_forgets_all_beside_steps_that_forget_nothing(backend: str) -> None:
    args = list(with_decay(arguments("odd", 16), -1.0))
    dt = torch.full_like(args[1], 1e-6)
    dt[:, 5::9] = 300.0
    args[1] = dt.requires_grad_()
    conformance.assert_conforms(bound(backend), reference, tuple(args), torch.float32)


@pytest.mark.parametrize("backend", FAST)
def test_steps_of_no_length_change_nothing(backend: str) -> None:
    args = list(arguments("tiny"))
    dt = args[1].detach().clone()
    dt[:, 3:11] = 0
    args[1] = dt.requires_grad_()
    conformance.assert_conforms(bound(backend), reference, tuple(args), torch.float64)


@pytest.mark.parametrize("backend", FAST)
def test_long_sequences_drift_no_further_than_the_reference(backend: str) -> None:
    """1,024 steps in fp32: the error stays within the fp32 reference's own plus 64 epsilons."""
    args = arguments("tiny", 16, B=1, T=1024, H=1, G=1)
    conformance.assert_conforms(bound(backend), reference, args, torch.float32, margin_eps=64)


@pytest.mark.parametrize("backend", FAST)
def test_accepts_strided_memory(backend: str) -> None:
    conformance.assert_conforms(
        bound(backend), reference, arguments("odd"), torch.float32, make=conformance.strided
    )


@pytest.mark.parametrize("with_documents", [False, True], ids=["one_document", "documents"])
@pytest.mark.parametrize("backend", FAST)
def test_compiles_whole(backend: str, with_documents: bool) -> None:
    args = conformance.cast(arguments("single", 2, T=3), torch.float32)
    ids = ids_of([2, 1]).expand(2, -1) if with_documents else None
    conformance.assert_compiles(bound(backend), (*args, ids))


@pytest.mark.parametrize("backend", ALL)
def test_no_output_sees_the_future(backend: str) -> None:
    args = [v.detach() if isinstance(v, Tensor) else v for v in arguments("tiny")]
    y = bound(backend)(*args)
    changed = list(args)
    for i, name in enumerate(NAMES):
        if name in ("x", "dt", "b", "c"):
            changed[i] = args[i].clone()
            changed[i][:, 9:] *= 2 if name == "dt" else -1
    z = bound(backend)(*changed)
    torch.testing.assert_close(z[:, :9], y[:, :9], rtol=0, atol=1e-12)
    assert (z[:, 9:] - y[:, 9:]).abs().amax(dim=(0, 2, 3)).min() > 1e-3


def test_two_steps_by_hand() -> None:
    """b = c = 1, dt = ½, a·dt = log ¼: S_1 = ½·2, S_2 = ¼·1 + ½·5, D = 3."""
    one = torch.ones(1, 2, 1, 1, dtype=torch.float64)
    x = torch.tensor([2.0, 5.0], dtype=torch.float64).view(1, 2, 1, 1)
    a = torch.tensor([2 * math.log(0.25)], dtype=torch.float64)
    y = reference(x, 0.5 * one[..., 0], a, one, one, torch.full((1,), 3.0).double(), 1)
    expected = torch.tensor([1.0 + 6.0, 0.25 + 2.5 + 15.0], dtype=torch.float64)
    torch.testing.assert_close(y.flatten(), expected)


def test_what_does_not_fit_is_named() -> None:
    args = dict(zip(NAMES, arguments("tiny"), strict=True))
    run = bound("reference")
    with pytest.raises(ValueError, match=r"skip is \[3\] and must be \[4\]"):
        run(**{**args, "skip": args["skip"][:3]})
    with pytest.raises(ValueError, match=r"document_ids is \[1, 16\] and must be \[2, 16\]"):
        run(**args, document_ids=ids_of([16]))
    three = {n: args[n][:, :, :3] for n in ("x", "dt")} | {n: args[n][:3] for n in ("a", "skip")}
    with pytest.raises(ValueError, match="2 groups do not divide 3 heads"):
        run(**{**args, **three})
    with pytest.raises(ValueError, match="chunk_size is 0"):
        run(**{**args, "chunk_size": 0})
