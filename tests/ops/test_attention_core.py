from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lanewise.ops.attention_core import SPEC, attention_core, reference
from lanewise.ops.dispatch import capabilities, choose
from lanewise.ops.shapes import SHAPES, TEST_SHAPES
from tests.ops import conformance

SCALE = 0.3
FAST = [b.name for b in SPEC.backends if b.name != "reference"]
LONG = (*TEST_SHAPES, "wide_v", "equal", "blocks", "documents", "grouped", "one_kv_head")


def arguments(shape: str) -> conformance.Arguments:
    s = SHAPES["attention_core"][shape]
    rng = conformance.generator()

    def draw(heads: int, d: int) -> Tensor:
        size = (s["B"], heads, s["T"], d)
        return torch.randn(*size, generator=rng, dtype=torch.float64).requires_grad_()

    documents = document_ids(s["B"], s["T"]) if s["documents"] else None
    return (
        draw(s["H"], s["D_qk"]),
        draw(s["H_kv"], s["D_qk"]),
        draw(s["H_kv"], s["D_v"]),
        SCALE,
        documents,
    )


def document_ids(rows: int, length: int) -> Tensor:
    """Documents of random lengths from 1 on; row 0 begins and ends with documents of one token."""
    starts = torch.rand(rows, length, generator=conformance.generator(7)) < 0.2
    starts[0, 1] = starts[0, -1] = True
    return starts.to(torch.int64).cumsum(dim=1)


def bound(backend: str):
    run, _ = conformance.bind(SPEC, backend)
    return partial(attention_core, run)


@pytest.mark.parametrize(("backend", "shape", "dtype"), conformance.cases(SPEC, LONG))
def test_conforms_to_the_reference(backend: str, shape: str, dtype: str) -> None:
    with conformance.poisoned_memory():
        conformance.assert_conforms(
            bound(backend), reference, arguments(shape), conformance.DTYPES[dtype]
        )


@pytest.mark.parametrize("shape", ["odd", "grouped"])
@pytest.mark.parametrize("backend", FAST)
def test_accepts_strided_memory(backend: str, shape: str) -> None:
    conformance.assert_conforms(
        bound(backend), reference, arguments(shape), torch.float32, make=conformance.strided
    )


def by_position(arguments: conformance.Arguments) -> conformance.Arguments:
    """q, k and v as transposed views of [B, T, H, D], as linear maps leave them."""
    return tuple(
        a.detach().transpose(1, 2).contiguous().transpose(1, 2).requires_grad_(a.requires_grad)
        if isinstance(a, Tensor) and a.dim() == 4
        else a
        for a in arguments
    )


@pytest.mark.parametrize("shape", ["documents", "grouped", "one_kv_head"])
@pytest.mark.parametrize("backend", FAST)
def test_accepts_the_layout_of_linear_maps(backend: str, shape: str) -> None:
    conformance.assert_conforms(
        bound(backend), reference, arguments(shape), torch.float32, make=by_position
    )


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize(("num_heads", "num_kv_heads"), [(1, 1), (4, 2), (2, 1)])
@pytest.mark.parametrize("documents", [False, True])
def test_gradients_match_finite_differences(
    backend: str, num_heads: int, num_kv_heads: int, documents: bool
) -> None:
    rng = conformance.generator()
    q, k, v = (
        torch.randn(1, heads, 5, d, generator=rng, dtype=torch.float64).requires_grad_()
        for heads, d in ((num_heads, 4), (num_kv_heads, 4), (num_kv_heads, 3))
    )
    ids = torch.tensor([[0, 1, 1, 1, 2]]) if documents else None
    conformance.assert_gradcheck(bound(backend), (q, k, v, SCALE, ids))


@pytest.mark.parametrize("shape", ["tiny", "grouped"])
@pytest.mark.parametrize("backend", FAST)
def test_compiles_whole(backend: str, shape: str) -> None:
    args = conformance.cast(arguments(shape), torch.float32)
    conformance.assert_compiles(bound(backend), args)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["blocked.torch", "padded.torch"])
def test_compiles_to_machine_code(backend: str) -> None:
    args = conformance.cast(arguments("tiny"), torch.float32)
    conformance.assert_compiles(bound(backend), args, compiler="inductor")


@pytest.mark.parametrize("backend", FAST)
def test_no_position_sees_the_future(backend: str) -> None:
    q, k, v, scale, _ = conformance.cast(arguments("blocks"), torch.float32)
    before = bound(backend)(q, k, v, scale)
    t = q.shape[2] // 2
    with torch.no_grad():
        k[:, :, t:] += 100.0
        v[:, :, t:] -= 100.0
    torch.testing.assert_close(bound(backend)(q, k, v, scale)[:, :, :t], before[:, :, :t])


@pytest.mark.parametrize("backend", [b.name for b in SPEC.backends])
@pytest.mark.parametrize("shape", ["documents", "grouped"])
def test_a_document_beside_others_is_the_document_alone(backend: str, shape: str) -> None:
    q, k, v, scale, ids = (a.detach() if isinstance(a, Tensor) else a for a in arguments(shape))
    together = bound(backend)(q, k, v, scale, ids)
    for row in range(len(ids)):
        for document in ids[row].unique().tolist():
            (at,) = torch.where(ids[row] == document)
            alone = bound("reference")(*(x[row : row + 1, :, at] for x in (q, k, v)), scale)
            torch.testing.assert_close(together[row, :, at], alone[0], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("documents", [0, 1])
@pytest.mark.parametrize("num_kv_heads", [1, 2, 4])
def test_the_reference_is_torchs_attention_with_grouped_heads(
    num_kv_heads: int, documents: int
) -> None:
    rng = conformance.generator()
    q, k, v = (
        torch.randn(2, heads, 9, 6, generator=rng, dtype=torch.float64)
        for heads in (4, num_kv_heads, num_kv_heads)
    )
    ids = document_ids(2, 9) if documents else torch.zeros(2, 9, dtype=torch.int64)
    mask = torch.tensor(
        [[[[s <= t and r[s] == r[t] for s in range(9)] for t in range(9)]] for r in ids.tolist()]
    )
    expected = F.scaled_dot_product_attention(q, k, v, mask, scale=SCALE, enable_gqa=True)
    found = reference(q, k, v, SCALE, ids if documents else None)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("dims", "chosen"),
    [
        ({"T": 64, "D_qk": 48, "D_v": 32}, "blocked.torch"),
        ({"T": 4_096, "D_qk": 128, "D_v": 64}, "padded.torch"),
        ({"T": 4_096, "D_qk": 64, "D_v": 64}, "sdpa.torch"),
        ({"T": 64, "D_qk": 32, "D_v": 32}, "sdpa.torch"),
        ({"T": 512, "D_qk": 64, "D_v": 64}, "blocked.torch"),
    ],
)
def test_the_default_order_follows_the_shape(dims: dict[str, int], chosen: str) -> None:
    problem = conformance.cpu_problem("fp32", {"B": 1, "H": 1, **dims})
    choice = choose(SPEC, (), problem, capabilities("cpu"))
    assert choice.chosen == chosen
    assert not choice.fallback


def test_shapes_that_do_not_fit_are_named() -> None:
    q, k, v, scale, _ = arguments("tiny")
    with pytest.raises(ValueError, match=r"q is .*, k is .*; they must be \[B, H, T, D_qk\] and"):
        bound("reference")(q, k[:, :, 1:], v, scale)
    with pytest.raises(ValueError, match=r"v is \[2, 3, 7, 5\] and must be"):
        bound("reference")(q, k, v[:, :, 1:], scale)
    with pytest.raises(ValueError, match=r"2 key heads \(H_kv\) do not divide 3 query heads"):
        bound("reference")(q, k[:, :2], v[:, :2], scale)
    with pytest.raises(ValueError, match=r"document_ids is torch.int32 \[2, 8\] and must be int64"):
        bound("reference")(q, k, v, scale, torch.zeros(2, 8, dtype=torch.int32))
    with pytest.raises(
        ValueError, match=r"document_ids is torch.int64 \[8\] and must be int64 \[B"
    ):
        bound("reference")(q, k, v, scale, torch.zeros(8, dtype=torch.int64))
