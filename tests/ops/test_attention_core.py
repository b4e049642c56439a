from functools import partial

import pytest
import torch
from torch import Tensor

from lanewise.ops.attention_core import SPEC, attention_core, reference
from lanewise.ops.dispatch import capabilities, choose
from lanewise.ops.shapes import SHAPES, TEST_SHAPES
from tests.ops import conformance

SCALE = 0.3
FAST = [b.name for b in SPEC.backends if b.name != "reference"]
LONG = (*TEST_SHAPES, "wide_v", "equal", "blocks")


def arguments(shape: str) -> conformance.Arguments:
    s = SHAPES["attention_core"][shape]
    rng = conformance.generator()

    def draw(d: int) -> Tensor:
        size = (s["B"], s["H"], s["T"], d)
        return torch.randn(*size, generator=rng, dtype=torch.float64).requires_grad_()

    return draw(s["D_qk"]), draw(s["D_qk"]), draw(s["D_v"]), SCALE


def bound(backend: str):
    run, _ = conformance.bind(SPEC, backend)
    return partial(attention_core, run)


@pytest.mark.parametrize(("backend", "shape", "dtype"), conformance.cases(SPEC, LONG))
def test_conforms_to_the_reference(backend: str, shape: str, dtype: str) -> None:
    with conformance.poisoned_memory():
        conformance.assert_conforms(
            bound(backend), reference, arguments(shape), conformance.DTYPES[dtype]
        )


@pytest.mark.parametrize("backend", FAST)
def test_accepts_strided_memory(backend: str) -> None:
    conformance.assert_conforms(
        bound(backend), reference, arguments("odd"), torch.float32, make=conformance.strided
    )


@pytest.mark.parametrize("backend", FAST)
def test_gradients_match_finite_differences(backend: str) -> None:
    q, k, v, scale = arguments("odd")
    short = tuple(x.detach()[:, :1, :5].clone().requires_grad_() for x in (q, k, v))
    conformance.assert_gradcheck(bound(backend), (*short, scale))


@pytest.mark.parametrize("backend", FAST)
def test_compiles_whole(backend: str) -> None:
    args = conformance.cast(arguments("tiny"), torch.float32)
    conformance.assert_compiles(bound(backend), args)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["blocked.torch", "padded.torch"])
def test_compiles_to_machine_code(backend: str) -> None:
    args = conformance.cast(arguments("tiny"), torch.float32)
    conformance.assert_compiles(bound(backend), args, compiler="inductor")


@pytest.mark.parametrize("backend", FAST)
def test_no_position_sees_the_future(backend: str) -> None:
    q, k, v, scale = conformance.cast(arguments("blocks"), torch.float32)
    before = bound(backend)(q, k, v, scale)
    t = q.shape[2] // 2
    with torch.no_grad():
        k[:, :, t:] += 100.0
        v[:, :, t:] -= 100.0
    torch.testing.assert_close(bound(backend)(q, k, v, scale)[:, :, :t], before[:, :, :t])


@pytest.mark.parametrize(
    ("dims", "chosen"),
    [
        ({"T": 64, "D_qk": 48, "D_v": 32}, "blocked.torch"),
        ({"T": 4_096, "D_qk": 128, "D_v": 64}, "padded.torch"),
        ({"T": 4_096, "D_qk": 64, "D_v": 64}, "sdpa.torch"),
        ({"T": 64, "D_qk": 32, "D_v": 32}, "sdpa.torch"),
    ],
)
def test_the_default_order_follows_the_shape(dims: dict[str, int], chosen: str) -> None:
    problem = conformance.cpu_problem("fp32", {"B": 1, "H": 1, **dims})
    choice = choose(SPEC, (), problem, capabilities("cpu"))
    assert choice.chosen == chosen
    assert not choice.fallback


def test_shapes_that_do_not_fit_are_named() -> None:
    q, k, v, scale = arguments("tiny")
    with pytest.raises(ValueError, match=r"q is .*, k is .*; both must be \[B, H, T, D_qk\]"):
        bound("reference")(q, k[:, :1], v, scale)
    with pytest.raises(ValueError, match=r"v is \[2, 3, 7, 5\] and must be"):
        bound("reference")(q, k, v[:, :, 1:], scale)
