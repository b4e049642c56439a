"""Hyper-connections against loops over streams, and against one residual stream."""

import pytest
import torch

from lanewise.lane.taxes import HyperConnectionsSpec
from lanewise.models.hyper_connections import HyperConnections, sinkhorn
from lanewise.models.residual import ResidualStream
from tests.models.micro import micro_lane, reference_ops

LAYERS, HIDDEN, EPS = 5, 12, 1e-6


def streams(num_streams: int = 4, iterations: int = 5, *, is_start: bool = False):
    module = HyperConnections(
        HyperConnectionsSpec(num_streams=num_streams, sinkhorn_iterations=iterations),
        num_layers=LAYERS,
        hidden_size=HIDDEN,
        eps=EPS,
        compute_dtype=None,
        residual_dtype=None,
        ops=reference_ops(micro_lane()),
    )
    if not is_start:
        generator = torch.Generator().manual_seed(0)
        for parameter in module.parameters():
            torch.nn.init.normal_(parameter, generator=generator)
    return module.double()


def deltas(seed: int = 1) -> tuple[torch.Tensor, list[torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    made = torch.randn(LAYERS + 1, 2, 3, HIDDEN, generator=generator, dtype=torch.float64)
    return made[0], list(made[1:])


def run(module, x: torch.Tensor, outputs: list[torch.Tensor]) -> list[torch.Tensor]:
    """Everything the stream feeds to the sub-layers, and the final hidden state."""
    carried, normed = module.open(x)
    fed = [normed]
    for index, delta in enumerate(outputs, start=1):
        carried, normed = module.add(delta, carried, index)
        fed.append(normed)
    return fed


def norm(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return x / torch.sqrt(x.square().mean(-1, keepdim=True) + EPS) * weight


@pytest.mark.parametrize(("num_streams", "iterations"), [(1, 1), (2, 3), (4, 5)])
def test_it_is_the_formula_stream_by_stream(num_streams: int, iterations: int) -> None:
    module = streams(num_streams, iterations)
    x, outputs = deltas()
    h = [x] * num_streams
    expected = []
    for i in range(LAYERS):
        expected.append(
            norm(sum(module.read[i, n] * h[n] for n in range(num_streams)), module.norms[i])
        )
        mixing = module.mixing_logits[i].exp()
        for _ in range(iterations):
            mixing = mixing / mixing.sum(0, keepdim=True)
            mixing = mixing / mixing.sum(1, keepdim=True)
        h = [
            sum(mixing[n, m] * h[m] for m in range(num_streams)) + module.write[i, n] * outputs[i]
            for n in range(num_streams)
        ]
    expected.append(norm(sum(h) / num_streams, module.norms[LAYERS]))
    for found, wanted in zip(run(module, x, outputs), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-11, atol=1e-12)


def test_mixing_is_doubly_stochastic() -> None:
    logits = torch.randn(3, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    few, many = sinkhorn(logits, 5), sinkhorn(logits, 200)
    assert (few > 0).all()
    torch.testing.assert_close(few.sum(-1), torch.ones(3, 4).double(), rtol=1e-12, atol=0)
    torch.testing.assert_close(few.sum(-2), torch.ones(3, 4).double(), rtol=0.05, atol=0)
    torch.testing.assert_close(many.sum(-2), torch.ones(3, 4).double(), rtol=1e-9, atol=0)
    extreme = sinkhorn(torch.tensor([[2000.0, 0.0], [0.0, -2000.0]]), 5)
    assert extreme.isfinite().all()


@pytest.mark.parametrize("num_streams", [1, 2, 4])
def test_it_starts_as_one_residual_stream(num_streams: int) -> None:
    plain = ResidualStream(
        num_layers=LAYERS,
        hidden_size=HIDDEN,
        eps=EPS,
        compute_dtype=None,
        residual_dtype=None,
        ops=reference_ops(micro_lane()),
    ).double()
    module = streams(num_streams, is_start=True)
    x, outputs = deltas()
    for found, wanted in zip(run(module, x, outputs), run(plain, x, outputs), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-13, atol=1e-13)


def test_streams_part_after_the_first_step() -> None:
    module = streams(is_start=True)
    x, outputs = deltas()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    goal = torch.randn(2, 3, HIDDEN, generator=torch.Generator().manual_seed(3)).double()
    for _ in range(2):
        optimizer.zero_grad()
        sum((fed - goal).square().sum() for fed in run(module, x, outputs)).backward()
        optimizer.step()
    carried, _ = module.open(x)
    for index, delta in enumerate(outputs, start=1):
        carried, _ = module.add(delta, carried, index)
    assert (carried.values[0] - carried.values[1]).abs().max() > 1e-3
    torch.testing.assert_close(module.stream(carried), carried.values.mean(0))


def test_gradients_match_finite_differences() -> None:
    module = streams(num_streams=3, iterations=2)
    x, outputs = deltas()
    names = [name for name, _ in module.named_parameters()]

    class Whole(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = module

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.stack(run(self.inner, x, outputs))

    whole = Whole()

    def hidden(x: torch.Tensor, *values: torch.Tensor) -> torch.Tensor:
        named = {f"inner.{name}": value for name, value in zip(names, values, strict=True)}
        return torch.func.functional_call(whole, named, (x,))

    parameters = [p.detach().clone().requires_grad_() for p in module.parameters()]
    assert torch.autograd.gradcheck(hidden, (x.requires_grad_(), *parameters), fast_mode=True)


def test_precision_of_streams_and_of_what_is_fed() -> None:
    module = HyperConnections(
        HyperConnectionsSpec(),
        num_layers=LAYERS,
        hidden_size=HIDDEN,
        eps=EPS,
        compute_dtype=torch.bfloat16,
        residual_dtype=None,
        ops=reference_ops(micro_lane()),
    )
    x, outputs = deltas()
    carried, normed = module.open(x.float())
    carried, again = module.add(outputs[0].to(torch.bfloat16), carried, 1)
    assert carried.values.dtype == torch.float32
    assert carried.mixing.dtype == torch.float32
    assert normed.dtype == again.dtype == torch.bfloat16
