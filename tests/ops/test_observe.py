import pytest
import torch

from lanewise.ops.observe import Launch, LaunchCounters
from lanewise.ops.spec import Choice
from tests.ops import conformance


def launch(counters: LaunchCounters, backend: str = "doubled.torch") -> Launch:
    choice = Choice(op="twice", requested=(), chosen=backend, rejected=(), fallback=False)
    return Launch(choice, lambda x: 2 * x, counters)


class Block(torch.nn.Module):
    """A block as models write them: it holds the launch and calls it."""

    def __init__(self, run: Launch) -> None:
        super().__init__()
        self.run = run
        self.weight = torch.nn.Parameter(torch.ones(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.run(x * self.weight)


def test_nothing_ran_is_its_own_answer() -> None:
    seen = LaunchCounters().observation("twice")
    assert (seen.backends, seen.launches, seen.proof) == ((), 0, "none")


def test_eager_launches_are_counted() -> None:
    counters = LaunchCounters()
    run = launch(counters)
    assert torch.equal(run(torch.ones(2)), torch.full((2,), 2.0))
    run(torch.ones(2))
    seen = counters.observation("twice")
    assert (seen.backends, seen.launches, seen.proof) == (("doubled.torch",), 2, "counter")


def test_a_launch_that_raises_is_not_counted() -> None:
    counters = LaunchCounters()
    choice = Choice(op="twice", requested=(), chosen="broken", rejected=(), fallback=False)

    def broken() -> None:
        raise ArithmeticError

    run = Launch(choice, broken, counters)
    with pytest.raises(ArithmeticError):
        run()
    assert counters.observation("twice").proof == "none"


def test_another_backend_of_the_op_shows() -> None:
    counters = LaunchCounters()
    launch(counters)(torch.ones(2))
    launch(counters, "intruder.torch")(torch.ones(2))
    assert counters.observation("twice").backends == ("doubled.torch", "intruder.torch")


def test_compiled_blocks_are_observed_by_their_trace_without_recompiling() -> None:
    torch.compiler.reset()
    counters = LaunchCounters()
    run = launch(counters)
    blocks = [Block(run) for _ in range(2)]
    graphs: list[torch.fx.GraphModule] = []

    def compiler(graph: torch.fx.GraphModule, _: list[torch.Tensor]):
        graphs.append(graph)
        return graph.forward

    with conformance.compiler_warnings_ignored():
        for block in blocks:
            block.compile(fullgraph=True, backend=compiler)
        for _ in range(4):
            for block in blocks:
                block(torch.ones(3)).sum().backward()
    assert len(graphs) == 1, "the counter made Dynamo compile again"
    seen = counters.observation("twice")
    assert (seen.backends, seen.launches, seen.proof) == (("doubled.torch",), 1, "trace")


def test_a_reset_forgets_launches_and_keeps_traces() -> None:
    torch.compiler.reset()
    counters = LaunchCounters()
    run = launch(counters)
    run(torch.ones(2))
    counters.reset()
    assert counters.observation("twice").proof == "none"
    compiled = torch.compile(lambda x: run(x), fullgraph=True, backend="eager")
    compiled(torch.ones(2))
    counters.reset()
    compiled(torch.ones(2))
    seen = counters.observation("twice")
    assert (seen.backends, seen.proof) == (("doubled.torch",), "trace")
