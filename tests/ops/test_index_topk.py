from functools import partial

import pytest
import torch
from torch import Tensor

from lanewise.ops.index_topk import SPEC, index_topk, reference
from lanewise.ops.shapes import SHAPES, TEST_SHAPES
from tests.ops import conformance
from tests.ops.watch import ShapeWatch

ALL = [b.name for b in SPEC.backends]
FAST = [b for b in ALL if b != "reference"]
SHAPES_HERE = (*TEST_SHAPES, "blocks")


def arguments(
    shape: str, dtype: torch.dtype = torch.float64, *, exact: bool = False
) -> tuple[Tensor, Tensor, Tensor, int]:
    """Random indexer tensors; exact ones are small integers, on which every dtype finds the same scores, many equal."""
    s = SHAPES["index_topk"][shape]
    rng = conformance.generator()

    def draw(*size: int) -> Tensor:
        if exact:
            return torch.randint(-2, 3, size, generator=rng).to(dtype)
        return torch.randn(*size, generator=rng, dtype=torch.float64).to(dtype)

    b, t, h, d = s["B"], s["T"], s["H_I"], s["D_I"]
    return draw(b, t, h, d), draw(b, t, d), draw(b, t, h), s["k"]


def documents(t: int, *starts: int) -> Tensor:
    ids = torch.zeros(1, t, dtype=torch.int64)
    for start in starts:
        ids[:, start:] += 1
    return ids


def oracle(
    q: Tensor, k: Tensor, weights: Tensor, top_k: int, document_ids: Tensor | None
) -> Tensor:
    """The formula in plain Python, key by key."""
    num_batch, t, num_heads, _ = q.shape
    rows = []
    for b in range(num_batch):
        for query in range(t):
            scored = []
            for key in range(query + 1):
                if document_ids is not None and document_ids[b, key] != document_ids[b, query]:
                    continue
                score = sum(
                    float(weights[b, query, h]) * max(0.0, float(q[b, query, h] @ k[b, key]))
                    for h in range(num_heads)
                )
                scored.append((-score, key))
            best = sorted(key for _, key in sorted(scored)[:top_k])
            rows.append(best + [-1] * (min(top_k, t) - len(best)))
    return torch.tensor(rows).view(num_batch, t, -1)


def bound(backend: str):
    run, _ = conformance.bind(SPEC, backend)
    return partial(index_topk, run)


@pytest.mark.parametrize("backend", ALL)
@pytest.mark.parametrize("shape", ["tiny", "single"])
@pytest.mark.parametrize("exact", [False, True])
def test_equals_plain_python(backend: str, shape: str, exact: bool) -> None:
    args = arguments(shape, exact=exact)
    found = bound(backend)(*args)
    assert found.dtype == torch.int64
    assert torch.equal(found, oracle(*args, None))


@pytest.mark.parametrize("backend", ALL)
def test_documents_are_masked_before_the_choice(backend: str) -> None:
    args = arguments("tiny", exact=True)
    ids = documents(8, 1, 2, 6).expand(2, -1)  # of lengths 1, 1, 4 and 2
    found = bound(backend)(*args, ids)
    assert torch.equal(found, oracle(*args, ids))
    assert (found[:, 0] == torch.tensor([0, -1, -1])).all()
    assert (found[:, 1] == torch.tensor([1, -1, -1])).all()
    # Nothing is lost to keys that may not be seen: as many are kept as the document has.
    kept = (found >= 0).sum(-1)
    assert kept[0].tolist() == [1, 1, 1, 2, 3, 3, 1, 2]


@pytest.mark.parametrize("dtype", ["fp64", "fp32", "bf16"])
@pytest.mark.parametrize("shape", SHAPES_HERE)
@pytest.mark.parametrize("backend", FAST)
def test_conforms_to_the_reference(backend: str, shape: str, dtype: str) -> None:
    args = arguments(shape, conformance.DTYPES[dtype], exact=True)
    with conformance.poisoned_memory():
        found = bound(backend)(*args)
        b, t = found.shape[:2]
        ids = documents(t, *range(0, t, 7)).expand(b, -1)
        in_documents = bound(backend)(*args, ids)
    assert torch.equal(found, reference(*args, None))
    assert torch.equal(in_documents, reference(*args, ids))


@pytest.mark.parametrize("shape", SHAPES_HERE)
@pytest.mark.parametrize("backend", FAST)
def test_real_scores_are_ranked_as_the_reference_ranks_them(backend: str, shape: str) -> None:
    args = arguments(shape)
    assert torch.equal(bound(backend)(*args), reference(*args, None))


@pytest.mark.parametrize("backend", ALL)
def test_of_equal_scores_the_lower_positions_are_kept(backend: str) -> None:
    q, k, weights, top_k = arguments("blocks")
    found = bound(backend)(q, k, torch.zeros_like(weights), top_k)
    expected = torch.arange(top_k).expand(2, 97, -1)
    seen = torch.arange(97).view(1, -1, 1) >= expected
    assert torch.equal(found, torch.where(seen, expected, -1))


@pytest.mark.parametrize("backend", ALL)
@pytest.mark.parametrize("top_k", [8, 100])
def test_all_visible_keys_are_kept_when_they_are_few(backend: str, top_k: int) -> None:
    q, k, weights, _ = arguments("tiny")
    found = bound(backend)(q, k, weights, top_k)
    positions = torch.arange(8)
    assert torch.equal(
        found, torch.where(positions <= positions.unsqueeze(1), positions, -1).expand(2, -1, -1)
    )


@pytest.mark.parametrize("backend", ALL)
def test_negative_weights_count(backend: str) -> None:
    q, k, _, _ = arguments("odd")
    liked = bound(backend)(q, k, torch.ones(1, 63, 2, dtype=torch.float64), 1)
    disliked = bound(backend)(q, k, -torch.ones(1, 63, 2, dtype=torch.float64), 1)
    assert not torch.equal(liked, disliked)


@pytest.mark.parametrize("backend", ALL)
@pytest.mark.parametrize("num_new", [1, 5, 40])
def test_queries_are_the_last_positions_of_the_keys(backend: str, num_new: int) -> None:
    q, k, weights, top_k = arguments("blocks")
    whole = bound(backend)(q, k, weights, top_k)
    last = bound(backend)(q[:, -num_new:], k, weights[:, -num_new:], top_k)
    assert torch.equal(last, whole[:, -num_new:])


@pytest.mark.parametrize("backend", ALL)
def test_a_later_key_changes_no_earlier_choice(backend: str) -> None:
    q, k, weights, top_k = arguments("odd")
    before = bound(backend)(q, k, weights, top_k)
    k[:, 30:] += 100.0
    assert torch.equal(bound(backend)(q, k, weights, top_k)[:, :30], before[:, :30])


@pytest.mark.parametrize("backend", FAST)
def test_accepts_strided_memory(backend: str) -> None:
    args = arguments("odd", exact=True)
    assert torch.equal(bound(backend)(*conformance.strided(args)), reference(*args, None))


@pytest.mark.parametrize("backend", FAST)
def test_is_not_differentiable(backend: str) -> None:
    q, k, weights, top_k = arguments("tiny")
    found = bound(backend)(q.requires_grad_(), k.requires_grad_(), weights, top_k)
    assert not found.requires_grad


@pytest.mark.parametrize("backend", FAST)
def test_compiles_whole(backend: str) -> None:
    args = arguments("blocks", torch.float32, exact=True)
    torch.compiler.reset()
    compiled = torch.compile(bound(backend), fullgraph=True, backend="aot_eager", dynamic=False)
    with conformance.compiler_warnings_ignored():
        assert torch.equal(compiled(*args), reference(*args, None))


@pytest.mark.parametrize("backend", FAST)
def test_holds_no_score_of_every_pair(backend: str) -> None:
    args = arguments("blocks")
    with ShapeWatch() as watch:
        bound(backend)(*args)
    assert watch.shapes
    assert watch.quadratic(97, 2) == []
    with ShapeWatch() as watch:
        reference(*args, None)
    assert watch.quadratic(97, 2)  # the watch does see them


def test_shapes_that_do_not_fit_are_named() -> None:
    q, k, weights, _ = arguments("tiny")
    with pytest.raises(
        ValueError, match=r"weights is \[2, 8, 2\]; they must be \[B, T, H_I, D_I\]"
    ):
        bound("reference")(q, k, weights[..., :2], 3)
    with pytest.raises(ValueError, match=r"k_index is \[2, 7, 5\] and must be .*at least 8"):
        bound("reference")(q, k[:, 1:], weights, 3)
    with pytest.raises(ValueError, match="top_k is 0"):
        bound("reference")(q, k, weights, 0)
    with pytest.raises(ValueError, match=r"document_ids is \[1, 8\] with 8 queries and 8 keys"):
        bound("reference")(q, k, weights, 3, documents(8))
    with pytest.raises(ValueError, match="with 7 queries and 8 keys"):
        bound("reference")(q[:, 1:], k, weights[:, 1:], 3, documents(7).expand(2, -1))
