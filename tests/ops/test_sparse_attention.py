from functools import partial

import pytest
import torch
from torch import Tensor

from lanewise.ops.shapes import SHAPES, TEST_SHAPES
from lanewise.ops.sparse_attention import SPEC, reference, sparse_attention
from tests.ops import conformance
from tests.ops.watch import ShapeWatch

SCALE = 0.3
ALL = [b.name for b in SPEC.backends]
FAST = [b for b in ALL if b != "reference"]
SHAPES_HERE = (*TEST_SHAPES, "blocks")


def selection(b: int, t: int, k: int, seed: int = 3) -> Tensor:
    """Random distinct visible keys, the query's own among them, −1 where fewer are visible or by chance."""
    rng = conformance.generator(seed)
    ids = torch.full((b, t, k), -1)
    for row in range(b):
        for query in range(t):
            others = torch.randperm(query, generator=rng)[: k - 1]
            chosen = torch.cat([others, torch.tensor([query])])
            ids[row, query, : len(chosen)] = chosen
    return ids


def arguments(shape: str) -> conformance.Arguments:
    s = SHAPES["sparse_attention"][shape]
    rng = conformance.generator()
    b, t, d = s["B"], s["T"], s["C"] + s["D_r"]
    q = torch.randn(b, t, s["H"], d, generator=rng, dtype=torch.float64).requires_grad_()
    keys = torch.randn(b, t, d, generator=rng, dtype=torch.float64).requires_grad_()
    return q, keys, selection(b, t, s["k"]), SCALE, s["C"]


def dense(q: Tensor, keys: Tensor, key_ids: Tensor, scale: float, c: int) -> tuple[Tensor, Tensor]:
    """Softmax over all keys with everything masked that was not selected."""
    b, t, s = *q.shape[:2], keys.shape[1]
    selected = torch.zeros(b, t, s + 1, dtype=torch.bool)
    selected.scatter_(2, key_ids.where(key_ids >= 0, s), True)
    selected = selected[..., :s].unsqueeze(1)
    scores = scale * torch.einsum("bthd,bsd->bhts", q, keys)
    p = scores.masked_fill(~selected, float("-inf")).softmax(-1)
    mean = p.mean(1).detach().gather(-1, key_ids.clamp(min=0)) * (key_ids >= 0)
    return torch.einsum("bhts,bsc->bthc", p, keys[..., :c]), mean


def bound(backend: str):
    run, _ = conformance.bind(SPEC, backend)
    return partial(sparse_attention, run)


def out_of(function):
    """The differentiated result alone."""
    return lambda *args: function(*args)[0]


def probability_of(function):
    """The other result, of inputs without gradients."""
    return lambda *args: function(*args)[1]


@pytest.mark.parametrize("backend", ALL)
@pytest.mark.parametrize("shape", SHAPES_HERE)
def test_equals_masked_dense_attention(backend: str, shape: str) -> None:
    args = arguments(shape)
    found = conformance.evaluate(out_of(bound(backend)), args)
    expected = conformance.evaluate(out_of(dense), args)
    assert found.keys() == expected.keys() == {"output 0", "gradient 0", "gradient 1"}
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(bound(backend)(*args)[1], dense(*args)[1], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(("backend", "shape", "dtype"), conformance.cases(SPEC, SHAPES_HERE))
def test_conforms_to_the_reference(backend: str, shape: str, dtype: str) -> None:
    args = arguments(shape)
    frozen = (args[0].detach(), args[1].detach(), *args[2:])
    with conformance.poisoned_memory():
        conformance.assert_conforms(
            out_of(bound(backend)), out_of(reference), args, conformance.DTYPES[dtype]
        )
        conformance.assert_conforms(
            probability_of(bound(backend)),
            probability_of(reference),
            frozen,
            conformance.DTYPES[dtype],
        )


@pytest.mark.parametrize("backend", FAST)
def test_accepts_strided_memory(backend: str) -> None:
    conformance.assert_conforms(
        out_of(bound(backend)),
        out_of(reference),
        arguments("odd"),
        torch.float32,
        make=conformance.strided,
    )


@pytest.mark.parametrize("backend", FAST)
def test_gradients_match_finite_differences(backend: str) -> None:
    q, keys, _, scale, c = arguments("tiny")
    args = (q.detach()[:1, :5].clone().requires_grad_(), keys.detach()[:1, :5].requires_grad_())
    conformance.assert_gradcheck(out_of(bound(backend)), (*args, selection(1, 5, 3), scale, c))


@pytest.mark.parametrize("backend", FAST)
def test_compiles_whole(backend: str) -> None:
    conformance.assert_compiles(
        out_of(bound(backend)), conformance.cast(arguments("blocks"), torch.float32)
    )


@pytest.mark.parametrize("backend", ALL)
def test_all_keys_selected_is_dense_attention(backend: str) -> None:
    q, keys, _, scale, c = arguments("odd")
    positions = torch.arange(63)
    everything = torch.where(positions <= positions.unsqueeze(1), positions, -1).unsqueeze(0)
    found = bound(backend)(q, keys, everything, scale, c)[0]
    expected = torch.nn.functional.scaled_dot_product_attention(
        q.transpose(1, 2),
        keys.unsqueeze(1).expand(-1, 2, -1, -1),
        keys[..., :c].unsqueeze(1).expand(-1, 2, -1, -1),
        is_causal=True,
        scale=scale,
    )
    torch.testing.assert_close(found, expected.transpose(1, 2), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("backend", ALL)
def test_padding_counts_for_nothing(backend: str) -> None:
    q, keys, ids, scale, c = arguments("tiny")
    padded = torch.nn.functional.pad(ids, (2, 1), value=-1)
    found, probability = bound(backend)(q, keys, padded, scale, c)
    expected, narrow = bound(backend)(q, keys, ids, scale, c)
    torch.testing.assert_close(found, expected, rtol=1e-13, atol=1e-14)
    torch.testing.assert_close(probability[..., 2:-1], narrow, rtol=1e-13, atol=1e-14)
    assert not probability[padded < 0].any()
    torch.testing.assert_close(probability.sum(-1), torch.ones(2, 8, dtype=torch.float64))


@pytest.mark.parametrize("backend", ALL)
def test_a_row_without_keys_is_zero_and_moves_nothing(backend: str) -> None:
    q, keys, ids, scale, c = arguments("tiny")
    ids[0, 3] = -1
    out, probability = bound(backend)(q, keys, ids, scale, c)
    assert not out[0, 3].any()
    assert not probability[0, 3].any()
    grad_q, grad_keys = torch.autograd.grad(out[0, 3].sum(), (q, keys))
    assert not grad_q.any()
    assert not grad_keys.any()


@pytest.mark.parametrize("backend", ALL)
def test_the_probabilities_are_a_target_without_gradient(backend: str) -> None:
    probability = bound(backend)(*arguments("tiny"))[1]
    assert not probability.requires_grad


@pytest.mark.parametrize("backend", ALL)
def test_queries_may_be_fewer_than_keys(backend: str) -> None:
    q, keys, ids, scale, c = arguments("blocks")
    whole = bound(backend)(q, keys, ids, scale, c)[0]
    last = bound(backend)(q[:, -5:], keys, ids[:, -5:], scale, c)[0]
    torch.testing.assert_close(last, whole[:, -5:], rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("backend", FAST)
def test_holds_no_pair_of_positions(backend: str) -> None:
    args = arguments("blocks")
    with ShapeWatch() as watch:
        out, _ = bound(backend)(*args)
        out.sum().backward()
    assert (2, 97, 6) in watch.shapes  # the gradient of the keys was seen
    assert watch.quadratic(97, 2) == []


def test_shapes_that_do_not_fit_are_named() -> None:
    q, keys, ids, scale, c = arguments("tiny")
    with pytest.raises(ValueError, match=r"keys is \[2, 8, 8\]; they must be"):
        bound("reference")(q, keys[..., 1:], ids, scale, c)
    with pytest.raises(ValueError, match=r"key_ids is torch.int32 \[2, 8, 3\] and must be int64"):
        bound("reference")(q, keys, ids.int(), scale, c)
    with pytest.raises(ValueError, match="num_value_dims is 10 and must be 1 to 9"):
        bound("reference")(q, keys, ids, scale, 10)
