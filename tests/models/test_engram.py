"""The engram branch against its formula, position by position."""

import math

import pytest
import torch

from lanewise.lane.taxes import EngramSpec
from lanewise.models.engram import EngramBlock
from lanewise.models.layers import Context
from tests.models.simple_blocks import RunningSum, extend_in_pieces, pieces

HIDDEN, EPS = 8, 1e-6
SPECS = (
    EngramSpec(),
    EngramSpec(gated=True, orders=(3, 1)),
    EngramSpec(conv_kernel_size=3, bottleneck_ratio=2),
    EngramSpec(gated=True, conv_kernel_size=1, orders=(5,)),
    EngramSpec(gated=True, conv_kernel_size=4),
)
DOCUMENTS = torch.tensor([[0, 0, 0, 1, 2, 2, 2, 2, 2, 3, 3], [0] * 11])


def engram(spec: EngramSpec, *, is_start: bool = False) -> EngramBlock:
    generator = torch.Generator().manual_seed(0)
    block = EngramBlock(RunningSum(HIDDEN), spec, hidden_size=HIDDEN, eps=EPS)
    block.reset_parameters(std=0.5, output_std=0.5, generator=generator)
    if not is_start:
        torch.nn.init.normal_(block.out.weight, generator=generator)
    return block.double()


def inputs(length: int = 11, rows: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(rows, length, HIDDEN, generator=generator, dtype=torch.float64)


def oracle(
    block: EngramBlock, x: torch.Tensor, documents: torch.Tensor | None = None
) -> torch.Tensor:
    """The formula for one row and one position after the other; the branch alone."""
    spec = block.spec
    if documents is None:
        documents = torch.zeros(x.shape[:2])
    out = torch.zeros_like(x)
    for row in range(len(x)):
        z = [block.in_proj.weight @ x_t for x_t in x[row]]

        def earlier(values, t, back, row=row):
            is_same = t >= back and documents[row, t - back] == documents[row, t]
            return values[t - back] if is_same else torch.zeros_like(values[0])

        y = []
        for t in range(len(z)):
            per_order = [
                mix @ (sum(earlier(z, t, back) for back in range(order)) / order)
                for order, mix in zip(spec.orders, block.mix, strict=True)
            ]
            y.append(sum(per_order) / len(spec.orders))
        for t, x_t in enumerate(x[row]):
            y_t = y[t]
            if spec.conv_kernel_size:
                taps = block.conv_weight
                total = sum(
                    taps[:, -1 - back] * earlier(y, t, back)
                    for back in range(spec.conv_kernel_size)
                )
                y_t = total * torch.sigmoid(total)
            value = block.out.weight @ y_t
            if spec.gated:
                k = block.key.weight @ y_t
                x_n = x_t / torch.sqrt(x_t.square().mean() + EPS)
                k_n = k / torch.sqrt(k.square().mean() + EPS)
                value = value / (1 + torch.exp(-(x_n @ k_n) / math.sqrt(HIDDEN)))
            out[row, t] = value
    return out


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("length", [1, 2, 11])
def test_it_adds_the_formula_to_the_block(spec: EngramSpec, length: int) -> None:
    block, x = engram(spec), inputs(length)
    expected = block.block(x).delta + oracle(block, x)
    torch.testing.assert_close(block(x).delta, expected, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("spec", SPECS)
def test_documents_do_not_meet(spec: EngramSpec) -> None:
    block, x = engram(spec), inputs()
    context = Context(document_ids=DOCUMENTS)
    found = block(x, context).delta
    expected = block.block(x, context).delta + oracle(block, x, DOCUMENTS)
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-12)
    alone = [block(x[:1, a:b]).delta for a, b in ((0, 3), (3, 4), (4, 9), (9, 11))]
    torch.testing.assert_close(found[:1], torch.cat(alone, dim=1), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("spec", SPECS)
def test_extend_in_any_pieces_is_forward(spec: EngramSpec) -> None:
    block, x = engram(spec), inputs()
    for lengths in pieces(11):
        found = extend_in_pieces(block, x, lengths)
        torch.testing.assert_close(found, block(x).delta, rtol=1e-11, atol=1e-12)


def test_an_earlier_state_can_be_taken_up_again() -> None:
    block, x = engram(SPECS[-1]), inputs()
    _, state = block.extend(x[:, :6], None)
    first, _ = block.extend(x[:, 6:], state)
    again, _ = block.extend(x[:, 6:], state)
    torch.testing.assert_close(again.delta, first.delta, rtol=0, atol=0)


@pytest.mark.parametrize("spec", SPECS)
def test_it_starts_as_the_block_without_it_and_learns(spec: EngramSpec) -> None:
    block, x = engram(spec, is_start=True), inputs()
    plain = RunningSum(HIDDEN)
    plain.reset_parameters(std=0.5, output_std=0.5, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(block(x).delta, plain.double()(x).delta, rtol=0, atol=0)
    block(x).delta.square().sum().backward()
    assert block.out.weight.grad is not None
    assert block.out.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("spec", SPECS)
def test_gradients_match_finite_differences_and_none_is_missing(spec: EngramSpec) -> None:
    block, x = engram(spec), inputs(4, rows=1).requires_grad_()
    names = [name for name, _ in block.named_parameters()]

    def delta(x: torch.Tensor, *values: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(block, dict(zip(names, values, strict=True)), (x,)).delta

    parameters = [p.detach().clone().requires_grad_() for p in block.parameters()]
    assert torch.autograd.gradcheck(delta, (x, *parameters), fast_mode=True)
    block(inputs()).delta.square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in block.parameters())


@pytest.mark.parametrize("changed", [0, 5, 10])
def test_a_token_changes_nothing_before_it(changed: int) -> None:
    block, x = engram(SPECS[-1]), inputs()
    other = x.clone()
    other[:, changed] += 1.0
    before, after = block(x).delta, block(other).delta
    torch.testing.assert_close(after[:, :changed], before[:, :changed], rtol=1e-13, atol=1e-13)
    assert not torch.allclose(after[:, changed], before[:, changed])
