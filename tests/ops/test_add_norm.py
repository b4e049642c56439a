from functools import partial

import pytest
import torch
from torch import Tensor

from lanewise.ops.add_norm import SPEC, add_norm, reference
from lanewise.ops.shapes import SHAPES
from tests.ops import conformance

EPS = 1e-6
FAST = [b.name for b in SPEC.backends if b.name != "reference"]


def arguments(shape: str, *, residual: bool = True) -> conformance.Arguments:
    dims = SHAPES["add_norm"][shape]
    rng = conformance.generator()
    leading = (dims["S"], 1) if dims["S"] % 2 else (2, dims["S"] // 2)

    def draw(*size: int) -> Tensor:
        return torch.randn(*size, generator=rng, dtype=torch.float64).requires_grad_()

    x, stream = draw(*leading, dims["d"]), draw(*leading, dims["d"])
    return x, stream if residual else None, draw(dims["d"]), EPS


def bound(backend: str):
    run, _ = conformance.bind(SPEC, backend)
    return partial(add_norm, run)


@pytest.mark.parametrize("residual", [True, False], ids=["add", "first"])
@pytest.mark.parametrize(("backend", "shape", "dtype"), conformance.cases(SPEC))
def test_conforms_to_the_reference(backend: str, shape: str, dtype: str, residual: bool) -> None:
    with conformance.poisoned_memory():
        conformance.assert_conforms(
            bound(backend),
            reference,
            arguments(shape, residual=residual),
            conformance.DTYPES[dtype],
        )


@pytest.mark.parametrize("backend", FAST)
def test_accepts_strided_memory(backend: str) -> None:
    conformance.assert_conforms(
        bound(backend), reference, arguments("odd"), torch.float32, make=conformance.strided
    )


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("residual", [True, False], ids=["add", "first"])
def test_gradients_match_finite_differences(backend: str, residual: bool) -> None:
    conformance.assert_gradcheck(bound(backend), arguments("single", residual=residual))


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("residual", [True, False], ids=["add", "first"])
def test_compiles_whole(backend: str, residual: bool) -> None:
    args = conformance.cast(arguments("tiny", residual=residual), torch.float32)
    conformance.assert_compiles(bound(backend), args)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["fused.torch"])
def test_compiles_to_machine_code(backend: str) -> None:
    args = conformance.cast(arguments("tiny"), torch.float32)
    conformance.assert_compiles(bound(backend), args, compiler="inductor")


@pytest.mark.parametrize("backend", [b.name for b in SPEC.backends])
def test_an_fp32_stream_stays_fp32_under_bf16_blocks(backend: str) -> None:
    x, stream, weight, eps = arguments("tiny")
    x_bf16 = x.detach().bfloat16().requires_grad_()
    stream_fp32 = stream.detach().float().requires_grad_()
    h, y = bound(backend)(x_bf16, stream_fp32, weight.detach().float(), eps)
    assert (h.dtype, y.dtype) == (torch.float32, torch.bfloat16)
    torch.testing.assert_close(h, stream_fp32 + x_bf16, rtol=0, atol=0)
    (h.sum() + y.float().sum()).backward()
    assert (x_bf16.grad.dtype, stream_fp32.grad.dtype) == (torch.bfloat16, torch.float32)


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("used", [0, 1], ids=["stream", "normed"])
def test_one_output_alone_gives_the_reference_gradients(backend: str, used: int) -> None:
    def only(function):
        return lambda *args: function(*args)[used]

    conformance.assert_conforms(
        only(bound(backend)), only(reference), arguments("odd"), torch.float64
    )


def test_the_fused_node_saves_the_stream_once_and_one_number_a_row() -> None:
    x, stream, weight, eps = conformance.cast(arguments("tiny"), torch.float32)
    saved: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        h, _ = bound("fused.torch")(x, stream, weight, eps)
    rows = h.numel() // h.shape[-1]
    assert sorted(t.numel() for t in saved) == sorted([h.numel(), weight.numel(), rows])


def test_shapes_that_do_not_fit_are_named() -> None:
    run = bound("reference")
    with pytest.raises(ValueError, match=r"residual is \[2, 3\] and x is \[2, 4\]"):
        run(torch.ones(2, 4), torch.ones(2, 3), torch.ones(4), EPS)
    with pytest.raises(ValueError, match=r"weight is \[3\] and must be \[d\] = \[4\]"):
        run(torch.ones(2, 4), None, torch.ones(3), EPS)
