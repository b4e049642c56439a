import math
from functools import partial

import pytest
import torch
from torch import Tensor

from lanewise.ops.mla_ingress import SPEC, mla_ingress, reference, rope_tables
from lanewise.ops.shapes import SHAPES
from tests.ops import conformance

FAST = [b.name for b in SPEC.backends if b.name != "reference"]


def arguments(shape: str) -> conformance.Arguments:
    s = SHAPES["mla_ingress"][shape]
    rng = conformance.generator()

    def draw(*size: int) -> Tensor:
        return torch.randn(*size, generator=rng, dtype=torch.float64).requires_grad_()

    q = draw(s["B"], s["T"], s["H"], s["D_n"] + s["D_r"])
    kv = draw(s["B"], s["T"], s["H"], s["D_n"] + s["D_v"])
    cos, sin = rope_tables(s["T"], s["D_r"], theta=10_000.0)
    return q, kv, draw(s["B"], s["T"], s["D_r"]), cos.double(), sin.double()


def bound(backend: str):
    run, _ = conformance.bind(SPEC, backend)
    return partial(mla_ingress, run)


@pytest.mark.parametrize(("backend", "shape", "dtype"), conformance.cases(SPEC))
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
    conformance.assert_gradcheck(bound(backend), arguments("single"))


@pytest.mark.parametrize("backend", FAST)
def test_compiles_whole(backend: str) -> None:
    args = conformance.cast(arguments("tiny"), torch.float32)
    conformance.assert_compiles(bound(backend), args)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["assembled.torch"])
def test_compiles_to_machine_code(backend: str) -> None:
    args = conformance.cast(arguments("tiny"), torch.float32)
    conformance.assert_compiles(bound(backend), args, compiler="inductor")


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("used", [0, 1, 2], ids=["q", "k", "v"])
def test_one_output_alone_gives_the_reference_gradients(backend: str, used: int) -> None:
    def only(function):
        return lambda *args: function(*args)[used]

    found = conformance.evaluate(only(bound(backend)), arguments("odd"))
    truth = conformance.evaluate(only(reference), arguments("odd"))
    for name in found:
        expected = truth.get(name, torch.zeros_like(found[name]))
        torch.testing.assert_close(found[name], expected, rtol=0, atol=1e-14)


def test_the_assembly_hands_attention_contiguous_queries_and_keys() -> None:
    q, k, v = bound("assembled.torch")(*arguments("tiny"))
    assert q.is_contiguous()
    assert k.is_contiguous()
    assert v.stride(-1) == 1


def test_scores_depend_on_the_distance_of_positions_only() -> None:
    t, d_r = 6, 8
    cos, sin = rope_tables(t, d_r, theta=100.0)
    rng = conformance.generator()
    q = torch.randn(1, 1, 1, d_r, generator=rng).expand(1, t, 1, d_r)
    k_rope = torch.randn(1, 1, d_r, generator=rng).expand(1, t, d_r)
    kv = torch.zeros(1, t, 1, 1)
    q_out, k_out, _ = bound("assembled.torch")(q, kv, k_rope, cos, sin)
    scores = (q_out @ k_out.mT)[0, 0]
    for distance in range(-t + 1, t):
        diagonal = torch.diagonal(scores, distance)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal))


def test_rope_tables_follow_the_formula() -> None:
    cos, sin = rope_tables(5, 4, theta=100.0)
    assert cos.dtype == torch.float32
    assert cos.shape == (5, 2)
    assert cos[3, 1].item() == pytest.approx(math.cos(3 * 100.0**-0.5), abs=1e-7)
    assert sin[3, 0].item() == pytest.approx(math.sin(3.0), abs=1e-7)
    with pytest.raises(ValueError, match="rope_head_dim is 5; it must be even"):
        rope_tables(5, 5, theta=100.0)


@pytest.mark.parametrize(
    ("position", "replacement", "message"),
    [
        (1, torch.ones(2, 8, 3, 6), r"kv is \[2, 8, 3, 6\] and must be .* more than 6"),
        (2, torch.ones(2, 7, 4), r"k_rope is \[2, 7, 4\] and must be \[B, T, D_r\] = \[2, 8, 4\]"),
        (2, torch.ones(2, 8, 5), r"D_r = 5 must be even and at most the q head dim 10"),
        (3, torch.ones(8, 4), r"cos is \[8, 4\], .* = \[8, 2\]; build them with rope_tables"),
    ],
)
def test_shapes_that_do_not_fit_are_named(position, replacement, message) -> None:
    args = list(arguments("tiny"))
    args[position] = replacement
    with pytest.raises(ValueError, match=message):
        bound("reference")(*args)
