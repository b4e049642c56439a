"""The dense MLP against its formula, token by token."""

import math

import pytest
import torch
from torch import Tensor

from lanewise.models.mlp import Mlp
from tests.models.micro import block_of, inputs


def mlp_block(activation: str) -> Mlp:
    block = block_of("D", model__mlp__activation=activation)
    assert isinstance(block, Mlp)
    return block


def gelu(x: float) -> float:
    return 0.5 * x * (1 + math.erf(x / math.sqrt(2)))


def silu(x: float) -> float:
    return x / (1 + math.exp(-x))


def oracle(block: Mlp, x: Tensor) -> Tensor:
    size = block.spec.mlp_hidden_size
    rows = []
    for token in x[0]:
        pre = (block.w_in.weight @ token).tolist()
        if block.spec.activation == "swiglu":
            hidden = [silu(g) * u for g, u in zip(pre[:size], pre[size:], strict=True)]
        else:
            act = gelu if block.spec.activation == "gelu" else lambda u: max(u, 0.0) ** 2
            hidden = [act(u) for u in pre]
        rows.append(block.w_out.weight @ torch.tensor(hidden, dtype=torch.float64))
    return torch.stack(rows)[None]


@pytest.mark.parametrize("length", [1, 63])
@pytest.mark.parametrize("activation", ["gelu", "swiglu", "relu2"])
def test_is_the_formula(activation: str, length: int) -> None:
    block, x = mlp_block(activation), inputs(length)
    with torch.no_grad():
        torch.testing.assert_close(block(x).delta, oracle(block, x), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("activation", ["gelu", "swiglu", "relu2"])
def test_gradients_match_finite_differences(activation: str) -> None:
    block = mlp_block(activation)
    names = [name for name, _ in block.named_parameters()]
    values = tuple(p.detach().clone().requires_grad_() for p in block.parameters())

    def delta(x: Tensor, *values: Tensor) -> Tensor:
        return torch.func.functional_call(block, dict(zip(names, values, strict=True)), (x,)).delta

    assert torch.autograd.gradcheck(delta, (inputs(3).requires_grad_(), *values), fast_mode=True)


def test_nothing_is_carried_in_decoding() -> None:
    block, x = mlp_block("swiglu"), inputs(5)
    output, state = block.extend(x, None)
    assert state == ()
    assert torch.equal(output.delta, block(x).delta)
