import math
from functools import partial

import pytest
import torch
from torch import Tensor

from lanewise.ops.indexer_loss import SPEC, indexer_loss, reference
from lanewise.ops.shapes import SHAPES, TEST_SHAPES
from tests.ops import conformance
from tests.ops.test_sparse_attention import selection
from tests.ops.watch import ShapeWatch

ALL = [b.name for b in SPEC.backends]
FAST = [b for b in ALL if b != "reference"]
SHAPES_HERE = (*TEST_SHAPES, "blocks")


def arguments(shape: str) -> conformance.Arguments:
    s = SHAPES["indexer_loss"][shape]
    rng = conformance.generator()

    def draw(*size: int) -> Tensor:
        return torch.randn(*size, generator=rng, dtype=torch.float64)

    b, t, h, d = s["B"], s["T"], s["H_I"], s["D_I"]
    leaves = (draw(b, t, h, d), draw(b, t, d), draw(b, t, h))
    ids = selection(b, t, s["k"])
    target = draw(b, t, s["k"]).masked_fill(ids < 0, float("-inf")).softmax(-1)
    return *(x.requires_grad_() for x in leaves), ids, target


def oracle(q: Tensor, k: Tensor, weights: Tensor, ids: Tensor, target: Tensor) -> Tensor:
    """Query by query, selected key by selected key; differentiable."""
    num_batch, t = q.shape[:2]
    total = q.new_zeros(())
    for b in range(num_batch):
        for query in range(t):
            chosen = [int(i) for i in ids[b, query] if i >= 0]
            scores = torch.stack(
                [weights[b, query] @ (q[b, query] @ k[b, key]).relu() for key in chosen]
            )
            p = target[b, query][ids[b, query] >= 0]
            q_log = scores - scores.exp().sum().log()
            total = total + (p * (p.log() - q_log)).sum()
    return total / (num_batch * t)


def bound(backend: str):
    run, _ = conformance.bind(SPEC, backend)
    return partial(indexer_loss, run)


@pytest.mark.parametrize("backend", ALL)
@pytest.mark.parametrize("shape", ["tiny", "single", "odd"])
def test_equals_the_formula_key_by_key(backend: str, shape: str) -> None:
    args = arguments(shape)
    found = conformance.evaluate(bound(backend), args)
    expected = conformance.evaluate(oracle, args)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize(("backend", "shape", "dtype"), conformance.cases(SPEC, SHAPES_HERE))
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
    conformance.assert_gradcheck(bound(backend), arguments("tiny"))


@pytest.mark.parametrize("backend", FAST)
def test_compiles_whole(backend: str) -> None:
    conformance.assert_compiles(
        bound(backend), conformance.cast(arguments("blocks"), torch.float32)
    )


@pytest.mark.parametrize("backend", ALL)
def test_an_indexer_that_agrees_costs_nothing(backend: str) -> None:
    q, k, weights, ids, _ = arguments("odd")
    scores = torch.einsum("bth,bths->bts", weights, torch.einsum("bthd,bsd->bths", q, k).relu())
    scores = scores.gather(-1, ids.clamp(min=0)).masked_fill(ids < 0, float("-inf"))
    loss = bound(backend)(q, k, weights, ids, scores.softmax(-1))
    assert abs(loss.item()) < 1e-14
    assert all(g.abs().max() < 1e-14 for g in torch.autograd.grad(loss, (q, k, weights)))


@pytest.mark.parametrize("backend", ALL)
def test_equal_scores_against_one_certain_key(backend: str) -> None:
    q, k, weights, ids, target = arguments("odd")
    certain = torch.zeros_like(target)
    certain[..., 0] = 1.0  # 0 log 0 is 0
    loss = bound(backend)(q, k, torch.zeros_like(weights), ids, certain)
    expected = (ids >= 0).sum(-1).double().log().mean()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-12)


@pytest.mark.parametrize("backend", ALL)
def test_a_single_key_leaves_nothing_to_learn(backend: str) -> None:
    loss = bound(backend)(*arguments("single"))
    assert loss.item() == 0.0


@pytest.mark.parametrize("backend", ALL)
def test_huge_scores_stay_finite(backend: str) -> None:
    q, k, weights, ids, target = conformance.cast(arguments("odd"), torch.float32)
    q = (q.detach() * 1e6).requires_grad_()
    loss = bound(backend)(q, k, weights, ids, target)
    assert math.isfinite(loss.item())
    assert all(torch.isfinite(g).all() for g in torch.autograd.grad(loss, (q, k, weights)))


@pytest.mark.parametrize("backend", ALL)
def test_the_target_gets_no_gradient(backend: str) -> None:
    *leaves, ids, target = arguments("tiny")
    target.requires_grad_()
    bound(backend)(*leaves, ids, target).backward()
    assert target.grad is None
    assert all(x.grad is not None and x.grad.any() for x in leaves)


@pytest.mark.parametrize("backend", FAST)
def test_without_gradients_the_loss_is_the_same(backend: str) -> None:
    args = arguments("blocks")
    with torch.no_grad():
        plain = bound(backend)(*args)
    assert not plain.requires_grad
    assert torch.equal(plain, bound(backend)(*args).detach())


@pytest.mark.parametrize("backend", FAST)
def test_holds_no_score_of_every_pair(backend: str) -> None:
    args = arguments("blocks")
    with ShapeWatch() as watch:
        bound(backend)(*args).backward()
    assert (2, 97, 2, 4) in watch.shapes
    assert watch.quadratic(97, 2) == []


def test_shapes_that_do_not_fit_are_named() -> None:
    q, k, weights, ids, target = arguments("tiny")
    with pytest.raises(ValueError, match=r"key_ids is \[2, 7, 3\] and must be \[B, T, k\]"):
        bound("reference")(q, k, weights, ids[:, 1:], target)
    with pytest.raises(
        ValueError, match=r"target is \[2, 8, 2\] and must have the shape of key_ids"
    ):
        bound("reference")(q, k, weights, ids, target[..., 1:])
    with pytest.raises(ValueError, match="indexer_loss: q_index is"):
        bound("reference")(q, k, weights[..., 1:], ids, target)
