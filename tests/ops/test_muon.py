"""Muon groups of the op `optimizer_step`."""

import copy

import pytest
import torch

from lanewise.kernels import muon_torch
from lanewise.ops.optimizer_step import COEFFICIENTS, SPEC, newton_schulz, optimizer_step
from tests.ops import conformance

ALL = [b.name for b in SPEC.backends]
LR, BETAS, EPS = 1e-2, (0.9, 0.95), 1e-8
MUON = {"algorithm": "muon", "momentum": 0.95, "num_iterations": 5, "weight_decay": 0.1}
SHAPES = [(6, 4), (4, 6), (5, 5), (4, 6), (3, 6, 4), (1, 5, 5), (1, 7), (7, 1)]
"""Wide, tall, square, one shape twice, stacks, rows and columns alone."""


def polynomial(values: torch.Tensor, num_iterations: int) -> torch.Tensor:
    a, b, c = COEFFICIENTS
    for _ in range(num_iterations):
        values = a * values + b * values**3 + c * values**5
    return values


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    rng = conformance.generator(seed)
    return torch.randn(*shape, generator=rng).bfloat16().double()


def muon_alone(backend: str, param: torch.nn.Parameter, **changes: float) -> torch.optim.Optimizer:
    run, _ = conformance.bind(SPEC, backend)
    return optimizer_step(run, [{"params": [param], **MUON, **changes}], LR, BETAS, EPS)


@pytest.mark.parametrize("num_iterations", [1, 5])
@pytest.mark.parametrize("shape", [(6, 4), (4, 6), (5, 5), (1, 7)])
def test_the_iteration_turns_each_singular_value_by_the_polynomial(
    shape: tuple[int, int], num_iterations: int
) -> None:
    u = normal(*shape)
    left, values, right = torch.linalg.svd(u, full_matrices=False)
    turned = polynomial(values / values.square().sum().sqrt(), num_iterations)
    torch.testing.assert_close(
        newton_schulz(u, num_iterations), left * turned @ right, rtol=1e-12, atol=1e-12
    )


def test_five_iterations_are_near_the_orthogonal_factor() -> None:
    u = normal(12, 8)
    left, values, right = torch.linalg.svd(u, full_matrices=False)
    assert values.min() > 0.01 * values.square().sum().sqrt()
    found = newton_schulz(u, 5)
    assert torch.linalg.matrix_norm(found - left @ right, ord=2) < 0.33
    assert torch.linalg.svdvals(found).min() > 0.67
    assert torch.linalg.svdvals(found).max() < 1.15


@pytest.mark.parametrize("backend", ALL)
@pytest.mark.parametrize("shape", [(6, 4), (4, 6)])
def test_one_step_by_hand(backend: str, shape: tuple[int, int]) -> None:
    start, gradient = normal(*shape), normal(*shape, seed=1)
    p = torch.nn.Parameter(start.clone())
    p.grad = gradient.clone()
    muon_alone(backend, p).step()
    # Of the first step, M = G, so that U = 1.95 G, whose length does not matter.
    update = 0.2 * 6**0.5 * newton_schulz(gradient, 5)
    torch.testing.assert_close(
        p.detach(), start * (1 - LR * 0.1) - LR * update, rtol=1e-12, atol=1e-12
    )
    assert torch.equal(p.grad, gradient)


@pytest.mark.parametrize("backend", ALL)
def test_momentum_is_nesterov(backend: str) -> None:
    """Two orthogonal gradients: the second update is orthogonalised(G₂ + μ (μ G₁ + G₂))."""
    first, second = normal(4, 4, seed=1), normal(4, 4, seed=2)
    p = torch.nn.Parameter(torch.zeros(4, 4, dtype=torch.float64))
    optimizer = muon_alone(backend, p, weight_decay=0.0, momentum=0.5)
    p.grad = first
    optimizer.step()
    before = p.detach().clone()
    p.grad = second
    optimizer.step()
    expected = newton_schulz(second + 0.5 * (0.5 * first + second), 5)
    torch.testing.assert_close(p.detach() - before, -LR * 0.2 * 2 * expected)


def trained(backend: str, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Parameters of both algorithms after five steps; one gradient is missing once, one expert's is zero."""
    run, _ = conformance.bind(SPEC, backend)
    matrices = [torch.nn.Parameter(normal(*shape).to(dtype)) for shape in SHAPES]
    vectors = [torch.nn.Parameter(normal(n, seed=n).to(dtype)) for n in (3, 9)]
    groups = [
        {"params": matrices, **MUON},
        {"params": vectors[:1], "weight_decay": 0.1},
        {"params": vectors[1:]},
    ]
    optimizer = optimizer_step(run, groups, LR, BETAS, EPS)
    for step in range(5):
        for index, p in enumerate([*matrices, *vectors]):
            gradient = normal(*p.shape, seed=100 * step + index).to(dtype)
            if p.dim() == 3 and len(p) > 1:
                gradient[1] = 0  # an expert that got no token
            p.grad = None if (step, index) == (2, 1) else gradient
        optimizer.step()
    return {str(i): p.detach() for i, p in enumerate([*matrices, *vectors])}


@pytest.mark.parametrize("dtype", ["fp64", "fp32"])
@pytest.mark.parametrize("backend", ALL)
def test_conforms_to_the_reference(backend: str, dtype: str) -> None:
    kind = conformance.DTYPES[dtype]
    truth, own = trained("reference", torch.float64), trained("reference", kind)
    with conformance.poisoned_memory():
        found = trained(backend, kind)
    for name, true in truth.items():
        margin = conformance.MARGIN_EPS * torch.finfo(kind).eps * true.abs().max()
        tolerance = (own[name].double() - true).abs().max() + margin
        assert (found[name].double() - true).abs().max() <= tolerance, name


@pytest.mark.parametrize("backend", ALL)
def test_a_stack_is_its_matrices(backend: str) -> None:
    stack = torch.nn.Parameter(normal(3, 4, 6))
    alone = [torch.nn.Parameter(matrix.clone()) for matrix in stack.detach()]
    stack.grad = normal(3, 4, 6, seed=1)
    muon_alone(backend, stack).step()
    for p, gradient, expected in zip(alone, stack.grad, stack, strict=True):
        p.grad = gradient.clone()
        muon_alone(backend, p).step()
        torch.testing.assert_close(p.detach(), expected.detach(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("backend", ALL)
def test_state_survives_a_round_trip(backend: str) -> None:
    def build(
        p: torch.nn.Parameter, v: torch.nn.Parameter
    ) -> tuple[torch.optim.Optimizer, list[torch.nn.Parameter]]:
        run, _ = conformance.bind(SPEC, backend)
        return optimizer_step(run, [{"params": [p], **MUON}, {"params": [v]}], LR, BETAS, EPS), [
            p,
            v,
        ]

    def step(optimizer: torch.optim.Optimizer, params: list[torch.nn.Parameter]) -> None:
        for p in params:
            p.grad = p.detach() * 0.5 + 1.0
        optimizer.step()

    first = build(*(torch.nn.Parameter(normal(*shape)) for shape in ((4, 6), (5,))))
    step(*first)
    second = build(*(torch.nn.Parameter(p.detach().clone()) for p in first[1]))
    second[0].load_state_dict(copy.deepcopy(first[0].state_dict()))
    step(*first)
    step(*second)
    assert all(torch.equal(p, q) for p, q in zip(first[1], second[1], strict=True))


@pytest.mark.parametrize("backend", ALL)
def test_a_step_of_both_algorithms_is_one_counted_launch(backend: str) -> None:
    run, counters = conformance.bind(SPEC, backend)
    params = [torch.nn.Parameter(torch.ones(2, 2)), torch.nn.Parameter(torch.ones(3))]
    optimizer = optimizer_step(
        run, [{"params": params[:1], **MUON}, {"params": params[1:]}], LR, BETAS, EPS
    )
    for p in params:
        p.grad = torch.ones_like(p)
    optimizer.step()
    seen = counters.observation("optimizer_step")
    assert (seen.backends, seen.launches, seen.proof) == ((backend,), 1, "counter")


@pytest.mark.parametrize("backend", ALL)
def test_no_gradient_no_change(backend: str) -> None:
    p = torch.nn.Parameter(torch.ones(2, 2))
    muon_alone(backend, p).step()
    assert torch.equal(p, torch.ones(2, 2))


def test_agrees_with_torch_muon_to_its_bf16_iteration() -> None:
    """torch.optim.Muon iterates in bf16 and takes 2-D parameters only; its scale is set to ours."""
    ours, theirs = (torch.nn.Parameter(normal(8, 12).float()) for _ in range(2))
    start = ours.detach().clone()
    optimizer = muon_alone("fused.torch", ours)
    torch_muon = torch.optim.Muon(
        [theirs], lr=LR, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw"
    )
    for step in range(3):
        ours.grad = normal(8, 12, seed=step + 1).float()
        theirs.grad = ours.grad.clone()
        optimizer.step()
        torch_muon.step()
    moved = (ours - start).detach().abs().max()
    assert (ours - theirs).detach().abs().max() < 0.05 * moved


@pytest.mark.parametrize("shape", [(4,), (2, 2, 2, 2)])
def test_what_is_no_matrix_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="group 0 gives Muon a parameter"):
        muon_alone("fused.torch", torch.nn.Parameter(torch.ones(shape)))


def test_batches_are_cut_to_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Five matrices in batches of two give what one batch gives."""
    results = []
    for elements in (2**16, 2 * 24, 1):
        monkeypatch.setitem(muon_torch.BATCH_ELEMENTS, "cpu", elements)
        stack = torch.nn.Parameter(normal(5, 4, 6))
        stack.grad = normal(5, 4, 6, seed=1)
        muon_alone("fused.torch", stack).step()
        results.append(stack.detach())
    for cut in results[1:]:
        torch.testing.assert_close(cut, results[0], rtol=1e-12, atol=1e-12)
