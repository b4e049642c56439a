import pytest
import torch
from torch import Tensor

from lanewise.models.causal_conv import causal_depthwise_conv, extend_causal_conv
from tests.ops.conformance import assert_compiles, cast
from tests.ops.test_ssd_scan import DOCUMENTS, ids_of, random_ids


def arguments(length: int, num_taps: int = 4, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = ((2, length, 3), (3, num_taps), (3,))
    x, weight, bias = (
        torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes
    )
    return x.requires_grad_(), weight.requires_grad_(), bias.requires_grad_()


def by_definition(x: Tensor, weight: Tensor, bias: Tensor, ids: Tensor | None = None) -> Tensor:
    expected = bias.expand_as(x).clone()
    num_taps = weight.shape[1]
    for row in range(len(x)):
        for t in range(x.shape[1]):
            for tap in range(num_taps):
                s = t - (num_taps - 1) + tap
                if s >= 0 and (ids is None or ids[row, s] == ids[row, t]):
                    expected[row, t] += weight[:, tap] * x[row, s]
    return expected


@pytest.mark.parametrize("num_taps", [1, 2, 4])
@pytest.mark.parametrize("length", [1, 2, 3, 16])
@pytest.mark.parametrize("with_documents", [False, True], ids=["one_document", "documents"])
def test_is_its_definition(length: int, num_taps: int, with_documents: bool) -> None:
    args = arguments(length, num_taps)
    ids = random_ids(2, length, seed=length) if with_documents else None
    torch.testing.assert_close(causal_depthwise_conv(*args, ids), by_definition(*args, ids))
    assert torch.autograd.gradcheck(lambda *a: causal_depthwise_conv(*a, ids), args)


@pytest.mark.parametrize("documents", DOCUMENTS)
def test_a_document_in_a_row_equals_the_document_alone(documents: str) -> None:
    lengths = DOCUMENTS[documents]
    x, weight, bias = (a.detach() for a in arguments(16))
    together = causal_depthwise_conv(x, weight, bias, ids_of(lengths).expand(2, -1))
    alone = [causal_depthwise_conv(piece, weight, bias) for piece in x.split(lengths, dim=1)]
    torch.testing.assert_close(together, torch.cat(alone, dim=1))


def test_not_even_an_infinity_crosses_a_boundary() -> None:
    x, weight, bias = (a.detach() for a in arguments(16))
    ids = ids_of([6, 10]).expand(2, -1)
    expected = causal_depthwise_conv(x, weight, bias, ids)
    x[:, :6] = torch.inf
    x.requires_grad_()
    found = causal_depthwise_conv(x, weight, bias, ids)
    assert torch.equal(found[:, 6:], expected[:, 6:])
    found[:, 6:].sum().backward()
    assert not x.grad[:, :6].any()


@pytest.mark.parametrize("pieces", [[16], [1] * 16, [3, 1, 4, 8], [2, 1, 13]])
@pytest.mark.parametrize("num_taps", [1, 2, 4])
def test_extends_in_any_pieces(pieces: list[int], num_taps: int) -> None:
    x, weight, bias = (a.detach() for a in arguments(16, num_taps))
    state, outputs = None, []
    for piece in x.split(pieces, dim=1):
        y, state = extend_causal_conv(piece, weight, bias, state)
        assert state.shape == (2, num_taps - 1, 3)
        outputs.append(y)
    torch.testing.assert_close(torch.cat(outputs, dim=1), causal_depthwise_conv(x, weight, bias))
    padded = torch.cat([torch.zeros(2, num_taps - 1, 3, dtype=x.dtype), x], dim=1)
    assert torch.equal(state, padded[:, 16:])


@pytest.mark.parametrize("with_documents", [False, True], ids=["one_document", "documents"])
def test_compiles_whole(with_documents: bool) -> None:
    args = cast(arguments(5), torch.float32)
    assert_compiles(
        causal_depthwise_conv, (*args, random_ids(2, 5, seed=1) if with_documents else None)
    )


@pytest.mark.parametrize("with_documents", [False, True], ids=["one_document", "documents"])
def test_the_result_has_the_dtype_of_the_input(with_documents: bool) -> None:
    x, weight, bias = cast(arguments(5), torch.float32)
    ids = random_ids(2, 5, seed=1) if with_documents else None
    assert causal_depthwise_conv(x.bfloat16(), weight, bias, ids).dtype == torch.bfloat16


@pytest.mark.parametrize("with_documents", [False, True], ids=["one_document", "documents"])
def test_bf16_is_rounded_once(with_documents: bool) -> None:
    rounded = [a.detach().bfloat16() for a in arguments(63)]
    ids = random_ids(2, 63, seed=1) if with_documents else None
    y = causal_depthwise_conv(*rounded, ids).double()
    truth = causal_depthwise_conv(*(a.double() for a in rounded), ids)
    assert ((y - truth).abs() <= 1.01 * 2**-8 * truth.abs() + 1e-6).all()
