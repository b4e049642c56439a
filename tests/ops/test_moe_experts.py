from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lanewise.errors import UsageError
from lanewise.ops.moe_experts import ACTIVATIONS, SPEC, moe_experts, reference
from lanewise.ops.shapes import SHAPES
from tests.ops import conformance

FAST = [b.name for b in SPEC.backends if b.name != "reference"]
ROUTINGS = [
    "mixed",
    "all_to_last",
    "one_empty",
    "every_expert",
    "twice_the_same",
    "half_null",
    "null_token",
]


def route(kind: str, num_tokens: int, num_experts: int, k: int, rng: torch.Generator) -> Tensor:
    """Expert ids [S, k]; see `ROUTINGS`."""
    scores = torch.rand(num_tokens, num_experts, generator=rng)
    if kind == "all_to_last":
        return torch.full((num_tokens, 1), num_experts - 1)
    if kind == "one_empty":
        scores[:, 1] = -1
        return scores.topk(min(k, num_experts - 1)).indices
    if kind == "every_expert":
        return scores.argsort(dim=1)
    if kind == "twice_the_same":
        return scores.topk(1).indices.expand(num_tokens, 2).contiguous()
    ids = scores.topk(k).indices
    if kind == "half_null":
        ids = torch.cat([ids, ids.flip(0)], dim=1)  # more choices than any token has experts
        return ids.masked_fill(torch.rand(ids.shape, generator=rng) < 0.5, -1)
    if kind == "null_token":
        ids[num_tokens // 2] = -1
    return ids


def arguments(shape: str, activation: str = "gelu", routing: str = "mixed"):
    dims = SHAPES["moe_experts"][shape]
    rng = conformance.generator()
    num_experts, width, hidden = dims["E"], dims["d"], dims["F"]
    columns = 2 * hidden if activation == "swiglu" else hidden

    def draw(*size: int) -> Tensor:
        return torch.randn(*size, generator=rng, dtype=torch.float64).requires_grad_()

    ids = route(routing, dims["S"], num_experts, dims["k"], rng)
    gates = torch.rand(ids.shape, generator=rng, dtype=torch.float64).requires_grad_()
    return (
        draw(dims["S"], width),
        ids,
        gates,
        draw(num_experts, width, columns),
        draw(num_experts, hidden, width),
        activation,
    )


def bound(backend: str):
    run, _ = conformance.bind(SPEC, backend)
    return partial(moe_experts, run)


@pytest.mark.parametrize(("backend", "shape", "dtype"), conformance.cases(SPEC))
def test_conforms_to_the_reference(backend: str, shape: str, dtype: str) -> None:
    with conformance.poisoned_memory():
        conformance.assert_conforms(
            bound(backend), reference, arguments(shape), conformance.DTYPES[dtype]
        )


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("routing", ROUTINGS)
def test_every_activation_and_load(backend: str, activation: str, routing: str) -> None:
    with conformance.poisoned_memory():
        conformance.assert_conforms(
            bound(backend), reference, arguments("tiny", activation, routing), torch.float64
        )


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("routing", ["mixed", "half_null"])
def test_gradients_match_finite_differences(backend: str, activation: str, routing: str) -> None:
    conformance.assert_gradcheck(bound(backend), arguments("single", activation, routing))


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("shape", ["tiny", "single"])
def test_without_a_single_expert_everything_is_zero(backend: str, shape: str) -> None:
    args = list(arguments(shape))
    args[1] = torch.full_like(args[1], -1)
    with conformance.poisoned_memory():
        y = bound(backend)(*args)
        y.sum().backward()
        assert not reference(*args).any()
    assert not y.any()
    for tensor in (args[0], *args[2:5]):
        assert tensor.grad is not None
        assert not tensor.grad.any()


@pytest.mark.parametrize("backend", [*FAST, "reference"])
def test_the_gate_of_a_null_choice_is_not_read(backend: str) -> None:
    args = list(arguments("odd", routing="half_null"))
    expected = bound(backend)(*args)
    args[2] = args[2].detach().masked_fill(args[1] < 0, torch.nan)
    assert torch.equal(bound(backend)(*args), expected)


@pytest.mark.parametrize("backend", FAST)
def test_accepts_strided_memory(backend: str) -> None:
    conformance.assert_conforms(
        bound(backend), reference, arguments("odd"), torch.float32, make=conformance.strided
    )


@pytest.mark.parametrize("routing", ["mixed", "half_null"])
def test_the_sorted_path_compiles_whole(routing: str) -> None:
    args = conformance.cast(arguments("tiny", routing=routing), torch.float32)
    conformance.assert_compiles(bound("sorted.torch"), args)


@pytest.mark.parametrize("backend", FAST)
def test_the_expanded_gradient_of_a_sum_is_accepted(backend: str) -> None:
    args, expected = arguments("tiny"), arguments("tiny")
    bound(backend)(*args).sum().backward()
    reference(*expected).sum().backward()
    torch.testing.assert_close(args[0].grad, expected[0].grad)
    torch.testing.assert_close(args[2].grad, expected[2].grad)


@pytest.mark.parametrize("backend", FAST)
def test_an_expert_without_tokens_gets_a_zero_gradient(backend: str) -> None:
    args = arguments("tiny", routing="one_empty")
    with conformance.poisoned_memory():
        bound(backend)(*args).square().sum().backward()
    assert not (args[1] == 1).any()
    for weight in args[3:5]:
        assert torch.equal(weight.grad[1], torch.zeros_like(weight.grad[1]))
        assert weight.grad[0].abs().sum() > 0


def test_the_gelu_is_the_exact_one() -> None:
    one = torch.ones(1, 1, dtype=torch.float64)
    y = reference(one, torch.zeros(1, 1, dtype=torch.int64), one, one[None], one[None], "gelu")
    torch.testing.assert_close(y.item(), 0.8413447460685429, rtol=0, atol=1e-15)  # Φ(1)


@given(data=st.data())
@settings(max_examples=25, deadline=None)
@pytest.mark.parametrize("backend", FAST)
def test_routing_laws(backend: str, data: st.DataObject) -> None:
    """Permuted tokens give permuted outputs; the order of a token's choices and whole experts' names do not matter."""
    num_tokens = data.draw(st.integers(1, 9), label="S")
    num_experts = data.draw(st.integers(1, 5), label="E")
    k = data.draw(st.integers(1, num_experts), label="k")
    rng = conformance.generator(data.draw(st.integers(0, 1000), label="seed"))
    ids = torch.rand(num_tokens, num_experts, generator=rng).topk(k).indices
    gates = torch.rand(num_tokens, k, generator=rng, dtype=torch.float64)
    x, w_in, w_out = (
        torch.randn(size, generator=rng, dtype=torch.float64)
        for size in ((num_tokens, 3), (num_experts, 3, 4), (num_experts, 4, 3))
    )
    run = bound(backend)
    y = run(x, ids, gates, w_in, w_out, "relu2")

    tokens = torch.randperm(num_tokens, generator=rng)
    torch.testing.assert_close(
        run(x[tokens], ids[tokens], gates[tokens], w_in, w_out, "relu2"), y[tokens]
    )
    choices = torch.randperm(k, generator=rng)
    torch.testing.assert_close(run(x, ids[:, choices], gates[:, choices], w_in, w_out, "relu2"), y)
    names = torch.randperm(num_experts, generator=rng)
    renamed = torch.empty_like(names)
    renamed[names] = torch.arange(num_experts)
    torch.testing.assert_close(run(x, renamed[ids], gates, w_in[names], w_out[names], "relu2"), y)

    dense = torch.zeros(num_tokens, num_experts, dtype=torch.float64).scatter_(1, ids, gates)
    each = torch.einsum("se,sef->sef", dense, torch.relu(torch.einsum("sd,edf->sef", x, w_in)) ** 2)
    torch.testing.assert_close(y, torch.einsum("sef,efd->sd", each, w_out))


def test_what_does_not_fit_is_named() -> None:
    x, ids, gates, w_in, w_out, _ = arguments("tiny")
    run = bound("reference")
    with pytest.raises(UsageError, match="activation 'silu' is unknown; use one of gelu"):
        run(x, ids, gates, w_in, w_out, "silu")
    with pytest.raises(ValueError, match="for swiglu they are"):
        run(x, ids, gates, w_in, w_out, "swiglu")
    with pytest.raises(ValueError, match=r"must both be \[S, k\] with S = 32"):
        run(x, ids[:3], gates, w_in, w_out, "gelu")
    with pytest.raises(ValueError, match="give int64"):
        run(x, ids.int(), gates, w_in, w_out, "gelu")
