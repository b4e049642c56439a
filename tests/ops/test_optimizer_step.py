import copy

import pytest
import torch

from lanewise.ops.optimizer_step import SPEC, optimizer_step
from lanewise.ops.shapes import SHAPES, TEST_SHAPES
from tests.ops import conformance

ALL = [b.name for b in SPEC.backends]
FAST = [b for b in ALL if b != "reference"]
NUM_STEPS = 5
LR, BETAS, EPS = 1e-2, (0.9, 0.95), 1e-8


def parameters(shape: str, dtype: torch.dtype) -> list[torch.nn.Parameter]:
    dims = SHAPES["optimizer_step"][shape]
    rng = conformance.generator()
    size = dims["numel"] // dims["num_tensors"]
    # Through bf16, so that every dtype starts at the same values.
    return [
        torch.nn.Parameter(torch.randn(size, generator=rng).bfloat16().to(dtype))
        for _ in range(dims["num_tensors"])
    ]


def trained(backend: str, shape: str, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Parameters after some steps; one gradient is missing once, one group decays and one does not."""
    run, _ = conformance.bind(SPEC, backend)
    params = parameters(shape, dtype)
    groups = [{"params": params[:1], "weight_decay": 0.1}]
    if params[1:]:
        groups.append({"params": params[1:]})
    optimizer = optimizer_step(run, groups, LR, BETAS, EPS)
    rng = conformance.generator(1)
    for step in range(NUM_STEPS):
        for index, p in enumerate(params):
            gradient = torch.randn(p.shape, generator=rng).bfloat16().to(dtype)
            p.grad = None if (step, index) == (2, 1) else gradient
        optimizer.step()
    return {f"parameter {i}": p.detach() for i, p in enumerate(params)}


@pytest.mark.parametrize(("backend", "shape", "dtype"), conformance.cases(SPEC, TEST_SHAPES))
def test_conforms_to_the_reference(backend: str, shape: str, dtype: str) -> None:
    kind = conformance.DTYPES[dtype]
    truth = trained("reference", shape, torch.float64)
    own = trained("reference", shape, kind)
    with conformance.poisoned_memory():
        found = trained(backend, shape, kind)
    for name, true in truth.items():
        margin = conformance.MARGIN_EPS * torch.finfo(kind).eps * true.abs().max()
        tolerance = (own[name].double() - true).abs().max() + margin
        assert (found[name].double() - true).abs().max() <= tolerance, name


@pytest.mark.parametrize("backend", ALL)
def test_one_step_by_hand(backend: str) -> None:
    run, _ = conformance.bind(SPEC, backend)
    p = torch.nn.Parameter(torch.tensor([2.0], dtype=torch.float64))
    p.grad = torch.tensor([-0.5], dtype=torch.float64)
    optimizer_step(run, [{"params": [p], "weight_decay": 0.1}], 0.01, BETAS, 0.0).step()
    # The first bias-corrected step has size lr whatever the gradient's size.
    assert p.item() == pytest.approx(2.0 * (1 - 0.01 * 0.1) + 0.01, abs=1e-12)


@pytest.mark.parametrize("backend", ALL)
def test_the_step_is_the_counted_launch(backend: str) -> None:
    run, counters = conformance.bind(SPEC, backend)
    (p,) = parameters("single", torch.float32)
    optimizer = optimizer_step(run, [{"params": [p]}], LR, BETAS, EPS)
    assert counters.observation("optimizer_step").launches == 0
    p.grad = torch.ones_like(p)
    optimizer.step()
    optimizer.step()
    seen = counters.observation("optimizer_step")
    assert (seen.backends, seen.launches, seen.proof) == ((backend,), 2, "counter")


@pytest.mark.parametrize("backend", ALL)
def test_state_survives_a_round_trip(backend: str) -> None:
    run, _ = conformance.bind(SPEC, backend)

    def one(p: torch.nn.Parameter, optimizer: torch.optim.Optimizer) -> None:
        p.grad = p.detach() * 0.5 + 1.0
        optimizer.step()

    (first,) = parameters("single", torch.float32)
    optimizer = optimizer_step(run, [{"params": [first]}], LR, BETAS, EPS)
    one(first, optimizer)
    second = torch.nn.Parameter(first.detach().clone())
    resumed = optimizer_step(run, [{"params": [second]}], LR, BETAS, EPS)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    one(first, optimizer)
    one(second, resumed)
    assert torch.equal(first, second)


@pytest.mark.parametrize(
    ("backend", "foreach", "fused"),
    [
        ("per_tensor.torch", False, False),
        ("foreach.torch", True, None),
        ("fused.torch", None, True),
    ],
)
def test_each_backend_is_the_torch_path_it_names(
    backend: str, foreach: bool | None, fused: bool | None
) -> None:
    run, _ = conformance.bind(SPEC, backend)
    optimizer = optimizer_step(
        run, [{"params": parameters("single", torch.float32)}], LR, BETAS, EPS
    )
    assert (optimizer.defaults["foreach"], optimizer.defaults["fused"]) == (foreach, fused)


def test_an_empty_group_is_named() -> None:
    run, _ = conformance.bind(SPEC, "fused.torch")
    with pytest.raises(ValueError, match="group 1 of 2 has no parameters; leave it out"):
        optimizer_step(
            run, [{"params": parameters("single", torch.float32)}, {"params": []}], LR, BETAS, EPS
        )
