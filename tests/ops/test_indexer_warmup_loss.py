from functools import partial

import pytest
import torch
from torch import Tensor

from lanewise.ops.indexer_warmup_loss import SPEC, indexer_warmup_loss, reference
from lanewise.ops.shapes import SHAPES, TEST_SHAPES
from tests.ops import conformance
from tests.ops.test_index_topk import documents
from tests.ops.watch import ShapeWatch

SCALE = 0.3
ALL = [b.name for b in SPEC.backends]
FAST = [b for b in ALL if b != "reference"]
SHAPES_HERE = (*TEST_SHAPES, "blocks")


def arguments(shape: str, *starts: int) -> conformance.Arguments:
    s = SHAPES["indexer_warmup_loss"][shape]
    rng = conformance.generator()

    def draw(*size: int) -> Tensor:
        return torch.randn(*size, generator=rng, dtype=torch.float64)

    b, t, h, d = s["B"], s["T"], s["H_I"], s["D_I"]
    leaves = (draw(b, t, h, d), draw(b, t, d), draw(b, t, h))
    ids = documents(t, *starts).expand(b, -1) if starts else None
    attention = draw(b, t, s["H"], s["D"]), draw(b, t, s["D"])
    return *(x.requires_grad_() for x in leaves), *attention, SCALE, ids


def oracle(
    q_index: Tensor,
    k_index: Tensor,
    weights: Tensor,
    q: Tensor,
    keys: Tensor,
    scale: float,
    ids: Tensor | None,
) -> Tensor:
    """Query by query over the keys it sees; differentiable."""
    num_batch, t = q.shape[:2]
    total = q.new_zeros(())
    for b in range(num_batch):
        for query in range(t):
            first = 0 if ids is None else int((ids[b] == ids[b, query]).nonzero()[0])
            seen = slice(first, query + 1)
            p = (scale * q[b, query] @ keys[b, seen].T).softmax(-1).sum(0)
            p = p / p.abs().sum()
            scores = weights[b, query] @ (q_index[b, query] @ k_index[b, seen].T).relu()
            total = total + (p * (p.log() - scores.log_softmax(-1))).sum()
    return total / (num_batch * t)


def bound(backend: str):
    run, _ = conformance.bind(SPEC, backend)
    return partial(indexer_warmup_loss, run)


@pytest.mark.parametrize("backend", ALL)
@pytest.mark.parametrize(
    ("shape", "starts"), [("tiny", ()), ("single", ()), ("odd", ()), ("odd", (1, 2, 40))]
)
def test_equals_the_formula_query_by_query(
    backend: str, shape: str, starts: tuple[int, ...]
) -> None:
    args = arguments(shape, *starts)
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
def test_conforms_within_documents(backend: str) -> None:
    args = arguments("blocks", *range(1, 97, 9), 96)
    conformance.assert_conforms(bound(backend), reference, args, torch.float32)


@pytest.mark.parametrize("backend", FAST)
def test_gradients_match_finite_differences(backend: str) -> None:
    conformance.assert_gradcheck(bound(backend), arguments("tiny", 1, 5))


@pytest.mark.parametrize("backend", FAST)
def test_accepts_strided_memory(backend: str) -> None:
    conformance.assert_conforms(
        bound(backend), reference, arguments("odd"), torch.float32, make=conformance.strided
    )


@pytest.mark.parametrize("backend", FAST)
def test_compiles_whole(backend: str) -> None:
    conformance.assert_compiles(
        bound(backend), conformance.cast(arguments("blocks"), torch.float32)
    )


@pytest.mark.parametrize("backend", ALL)
def test_documents_of_one_token_leave_nothing_to_learn(backend: str) -> None:
    loss = bound(backend)(*arguments("tiny", *range(1, 8)))
    assert loss.item() == pytest.approx(0.0, abs=1e-15)


@pytest.mark.parametrize("backend", ALL)
def test_attention_gets_no_gradient(backend: str) -> None:
    *leaves, q, keys, scale, ids = arguments("tiny")
    bound(backend)(*leaves, q.requires_grad_(), keys.requires_grad_(), scale, ids).backward()
    assert q.grad is None
    assert keys.grad is None
    assert all(x.grad is not None and x.grad.any() for x in leaves)


@pytest.mark.parametrize("backend", FAST)
def test_holds_no_pair_of_positions_forward_or_backward(backend: str) -> None:
    args = arguments("blocks")
    with ShapeWatch() as watch:
        bound(backend)(*args).backward()
    assert (2, 97, 2, 4) in watch.shapes
    assert watch.quadratic(97, 2) == []


def test_shapes_that_do_not_fit_are_named() -> None:
    q_index, k_index, weights, q, keys, scale, _ = arguments("tiny")
    with pytest.raises(ValueError, match=r"keys is \[2, 8, 6\]; they must be"):
        bound("reference")(q_index, k_index, weights, q, keys[..., 1:], scale)
    with pytest.raises(ValueError, match=r"document_ids is \[1, 8\]"):
        bound("reference")(q_index, k_index, weights, q, keys, scale, documents(8))
