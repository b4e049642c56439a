import math
from functools import partial

import pytest
import torch

from lanewise.ops.linear_cross_entropy import SPEC, linear_cross_entropy, reference
from lanewise.ops.shapes import SHAPES, TEST_SHAPES
from tests.ops import conformance

IGNORE = -100
ALL = [b.name for b in SPEC.backends]
FAST = [b for b in ALL if b != "reference"]


def arguments(shape: str, *, ignored: int = 0) -> conformance.Arguments:
    s = SHAPES["linear_cross_entropy"][shape]
    rng = conformance.generator()
    hidden = torch.randn(s["S"], s["d"], generator=rng, dtype=torch.float64).requires_grad_()
    weight = torch.randn(s["W"], s["d"], generator=rng, dtype=torch.float64).requires_grad_()
    targets = torch.randint(0, s["W"], (s["S"],), generator=rng)
    targets[:ignored] = IGNORE
    return hidden, weight, targets, IGNORE


def bound(backend: str):
    run, _ = conformance.bind(SPEC, backend)
    return partial(linear_cross_entropy, run)


@pytest.mark.parametrize(
    ("backend", "shape", "dtype"), conformance.cases(SPEC, (*TEST_SHAPES, "chunks"))
)
def test_conforms_to_the_reference(backend: str, shape: str, dtype: str) -> None:
    with conformance.poisoned_memory():
        conformance.assert_conforms(
            bound(backend), reference, arguments(shape), conformance.DTYPES[dtype]
        )


@pytest.mark.parametrize("dtype", ["fp64", "fp32"])
@pytest.mark.parametrize("backend", FAST)
def test_ignored_targets_count_for_nothing(backend: str, dtype: str) -> None:
    conformance.assert_conforms(
        bound(backend), reference, arguments("chunks", ignored=290), conformance.DTYPES[dtype]
    )


@pytest.mark.parametrize("backend", ALL)
def test_ignored_rows_equal_absent_rows(backend: str) -> None:
    hidden, weight, targets, ignore = arguments("odd", ignored=20)
    whole = bound(backend)(hidden, weight, targets, ignore)
    rest = bound(backend)(hidden[20:], weight, targets[20:], ignore)
    torch.testing.assert_close(whole, rest, rtol=1e-13, atol=0)


@pytest.mark.parametrize("backend", ALL)
def test_nothing_to_count_is_zero_not_nan(backend: str) -> None:
    hidden, weight, targets, ignore = arguments("tiny", ignored=32)
    loss = bound(backend)(hidden, weight, targets, ignore)
    gradients = torch.autograd.grad(loss, (hidden, weight))
    assert loss.item() == 0.0
    assert all(not gradient.any() for gradient in gradients)


@pytest.mark.parametrize("backend", ALL)
def test_equal_logits_cost_log_of_the_vocabulary(backend: str) -> None:
    hidden, weight, targets, ignore = arguments("odd")
    loss = bound(backend)(
        hidden.detach().float(), torch.zeros_like(weight).float(), targets, ignore
    )
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(math.log(weight.shape[0]), rel=1e-6)


@pytest.mark.parametrize("backend", ALL)
def test_large_logits_do_not_overflow(backend: str) -> None:
    hidden, weight, targets, ignore = conformance.cast(arguments("odd"), torch.float32)
    loss = bound(backend)(hidden * 1e4, weight, targets, ignore)
    gradients = torch.autograd.grad(loss, (hidden, weight))
    assert all(torch.isfinite(x).all() for x in (loss, *gradients))


@pytest.mark.parametrize("backend", FAST)
def test_accepts_strided_memory(backend: str) -> None:
    hidden, weight, targets, ignore = arguments("odd")
    conformance.assert_conforms(
        bound(backend),
        reference,
        (hidden, weight, targets, ignore),
        torch.float32,
        make=lambda a: (*conformance.strided(a[:2]), *a[2:]),
    )


@pytest.mark.parametrize("backend", FAST)
def test_gradients_match_finite_differences(backend: str) -> None:
    hidden, weight, targets, ignore = arguments("single")
    two = hidden.detach().repeat(2, 1).requires_grad_()
    conformance.assert_gradcheck(
        bound(backend), (two, weight, torch.tensor([int(targets[0]), IGNORE]), ignore)
    )


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("frozen", [0, 1], ids=["hidden", "weight"])
def test_a_frozen_input_gets_no_gradient(backend: str, frozen: int) -> None:
    args = list(arguments("odd"))
    args[frozen] = args[frozen].detach()
    conformance.assert_conforms(bound(backend), reference, tuple(args), torch.float64)


def test_evaluation_computes_no_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, weight, targets, ignore = arguments("tiny")
    products: list[tuple[int, ...]] = []
    real = torch.mm

    def spy(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        products.append(tuple(a.shape))
        return real(a, b)

    monkeypatch.setattr(torch, "mm", spy)
    with torch.no_grad():
        loss = bound("chunked.torch")(hidden, weight, targets, ignore)
    assert not loss.requires_grad
    assert len(products) == 1, "one product for the logits of one chunk, none for gradients"


@pytest.mark.parametrize("backend", FAST)
def test_the_upstream_gradient_scales_the_result(backend: str) -> None:
    hidden, weight, targets, ignore = arguments("tiny")
    inputs = (hidden, weight)
    one = torch.autograd.grad(bound(backend)(hidden, weight, targets, ignore), inputs)
    third = torch.autograd.grad(bound(backend)(hidden, weight, targets, ignore) / 3, inputs)
    for whole, part in zip(one, third, strict=True):
        torch.testing.assert_close(whole / 3, part)


@pytest.mark.parametrize("backend", FAST)
def test_compiles_whole(backend: str) -> None:
    args = conformance.cast(arguments("tiny"), torch.float32)
    conformance.assert_compiles(bound(backend), args)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["chunked.torch"])
def test_compiles_to_machine_code(backend: str) -> None:
    args = conformance.cast(arguments("tiny"), torch.float32)
    conformance.assert_compiles(bound(backend), args, compiler="inductor")


def test_shapes_that_do_not_fit_are_named() -> None:
    hidden, weight, targets, ignore = arguments("tiny")
    with pytest.raises(ValueError, match=r"hidden is \[32, 11\] and weight \[40, 12\]"):
        bound("reference")(hidden[:, 1:], weight, targets, ignore)
    with pytest.raises(ValueError, match=r"targets are \[31\] torch.int64 and must be \[S\]"):
        bound("reference")(hidden, weight, targets[1:], ignore)
    with pytest.raises(ValueError, match=r"targets are \[32\] torch.int32"):
        bound("reference")(hidden, weight, targets.int(), ignore)
