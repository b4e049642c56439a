"""The one suite every backend of every op passes, and its tolerance.

The truth is the op's reference in fp64 on the inputs as the tested dtype holds them. The tolerance of a dtype is not a
constant: it is the error that the same reference makes when it runs eagerly in that dtype, plus a margin of
`margin_eps` machine epsilons of the largest true value, tensor by tensor:

    max|candidate − truth|  ≤  max|reference in dtype − truth|  +  margin_eps · eps(dtype) · scale

so a backend may be as inexact as the obvious code and no more. In fp64 the first term is zero. The scale of a tensor
is its largest true value, or a tenth of the largest among all outputs (all gradients) where that is more: a gradient
that is zero because large terms cancel cannot be exact.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from lanewise.ops.dispatch import capabilities, load, rejection
from lanewise.ops.observe import Launch, LaunchCounters
from lanewise.ops.shapes import SHAPES, TEST_SHAPES
from lanewise.ops.spec import Choice, OpSpec, Problem

Arguments = tuple[Any, ...]
"""Arguments of an op without its `run`; floating tensors that require grad are differentiated."""

DTYPES = {"fp64": torch.float64, "fp32": torch.float32, "bf16": torch.bfloat16}
MARGIN_EPS = 16.0
"""Default margin. Sums over S rows in another order differ by some epsilons of the largest sum."""
TORCH_OWN_WARNINGS = (
    r".*should not be instantiated. Methods on autograd functions are all static.*",
    r".*torch.jit.script_method. is deprecated.*",
)
"""Dynamo instantiates the Function it traces; inductor imports a module that scripts itself."""
CANCELLED_SHARE = 0.1
"""Share of the largest tensor of its kind below which a tensor's own size is no scale for its error."""
UPSTREAM_SEED = 20_261_123


def generator(seed: int = 0) -> torch.Generator:
    """A seeded generator, so that every test sees the same numbers."""
    return torch.Generator().manual_seed(seed)


def bind(spec: OpSpec, backend: str) -> tuple[Launch, LaunchCounters]:
    """The `run` of an op with this backend, without dispatch, and its counters."""
    row = spec.backend(backend)
    assert row is not None, f"op {spec.name} has no backend {backend}"
    counters = LaunchCounters()
    choice = Choice(op=spec.name, requested=(backend,), chosen=backend, rejected=(), fallback=False)
    return Launch(choice, load(row.target), counters), counters


def cpu_problem(dtype: str, dims: Mapping[str, int]) -> Problem:
    """A problem on the CPU."""
    return Problem(device_type="cpu", dtype=dtype, dims=dims)


def cases(
    spec: OpSpec,
    shapes: Sequence[str] = TEST_SHAPES,
    dtypes: Sequence[str] = tuple(DTYPES),
) -> list[Any]:
    """`(backend, shape, dtype)` for every combination that the op's own table accepts on a CPU."""
    offers = capabilities("cpu")
    return [
        pytest.param(backend.name, shape, dtype, id=f"{backend.name}-{shape}-{dtype}")
        for backend in spec.backends
        for shape in shapes
        for dtype in dtypes
        if rejection(backend, cpu_problem(dtype, SHAPES[spec.name][shape]), offers) is None
    ]


def cast(arguments: Arguments, dtype: torch.dtype) -> Arguments:
    """Fresh leaves in another dtype; integers and plain values pass through."""
    return tuple(
        a.detach().to(dtype).clone().requires_grad_(a.requires_grad)
        if isinstance(a, Tensor) and a.is_floating_point()
        else a
        for a in arguments
    )


def strided(arguments: Arguments) -> Arguments:
    """The same values in memory where no dimension is contiguous (every other element of a wider tensor)."""

    def spread(a: Tensor) -> Tensor:
        wide = torch.zeros(*a.shape[:-1], 2 * a.shape[-1], dtype=a.dtype)
        wide[..., ::2] = a.detach()
        return wide[..., ::2].requires_grad_(a.requires_grad)

    return tuple(spread(a) if isinstance(a, Tensor) else a for a in arguments)


def evaluate(function: Callable[..., Any], arguments: Arguments) -> dict[str, Tensor]:
    """Outputs and the gradients of all inputs that require grad, for one fixed random upstream gradient.

    Returns:
        `output i` and `gradient i` (i counts arguments) → detached tensor. An input that the outputs do not depend on
        has no entry.
    """
    outputs = function(*arguments)
    outputs = (outputs,) if isinstance(outputs, Tensor) else outputs
    results = {f"output {i}": output.detach().clone() for i, output in enumerate(outputs)}
    leaves = {i: a for i, a in enumerate(arguments) if isinstance(a, Tensor) and a.requires_grad}
    if not leaves:
        return results
    rng = generator(UPSTREAM_SEED)
    upstream = [
        torch.randn(o.shape, generator=rng, dtype=torch.float64).to(torch.bfloat16).to(o.dtype)
        for o in outputs
    ]  # rounded to bf16 first, so that every dtype is given the same upstream gradient
    gradients = torch.autograd.grad(outputs, list(leaves.values()), upstream, allow_unused=True)
    for i, gradient in zip(leaves, gradients, strict=True):
        if gradient is not None:
            results[f"gradient {i}"] = gradient
    return results


def assert_conforms(
    candidate: Callable[..., Any],
    reference: Callable[..., Any],
    arguments: Arguments,
    dtype: torch.dtype,
    margin_eps: float = MARGIN_EPS,
    make: Callable[[Arguments], Arguments] = lambda arguments: arguments,
) -> None:
    """Compare outputs and all gradients of a backend with the fp64 reference.

    Args:
        candidate: the backend, called with the op's arguments.
        reference: the op's oracle, same signature.
        arguments: in fp64; rounded to `dtype` first, so that only the computation can differ.
        dtype: in which the candidate runs.
        margin_eps: allowed error beyond the reference's own, in machine epsilons of the largest true value.
        make: lays the candidate's arguments out in memory, e.g. `strided`.
    """
    rounded = cast(arguments, dtype)
    truth = evaluate(reference, cast(rounded, torch.float64))
    baseline = evaluate(reference, cast(rounded, dtype))
    found = evaluate(candidate, make(cast(rounded, dtype)))
    assert found.keys() == truth.keys()
    largest = {
        kind: max((_max(true) for name, true in truth.items() if name.startswith(kind)), default=0)
        for kind in ("output", "gradient")
    }
    for name, true in truth.items():
        scale = max(_max(true), CANCELLED_SHARE * largest[name.split()[0]])
        assert found[name].dtype == baseline[name].dtype, f"{name}: {found[name].dtype}"
        assert found[name].shape == true.shape, f"{name}: {list(found[name].shape)}"
        assert torch.isfinite(found[name]).all(), f"{name} is not finite"
        own = _max(baseline[name].double() - true)
        margin = margin_eps * torch.finfo(dtype).eps * scale
        error = _max(found[name].double() - true)
        assert error <= own + margin, (
            f"{name}: error {error:.3e}, reference's own {own:.3e} + margin {margin:.3e}"
        )


def assert_compiles(
    function: Callable[..., Any], arguments: Arguments, *, compiler: str = "aot_eager"
) -> None:
    """Compile without graph breaks, forward and backward, and expect the eager result.

    Args:
        function: the op's public function bound to a backend.
        arguments: in the dtype to run.
        compiler: `aot_eager` needs no C++ compiler; `inductor` generates code (slow: mark the test).
    """
    torch.compiler.reset()
    dtype = next(a.dtype for a in arguments if isinstance(a, Tensor) and a.is_floating_point())
    eager = evaluate(function, cast(arguments, dtype))
    compiled = torch.compile(function, fullgraph=True, backend=compiler, dynamic=False)
    with compiler_warnings_ignored():
        found = evaluate(compiled, cast(arguments, dtype))
    for name, expected in eager.items():
        tolerance = 64 * torch.finfo(dtype).eps * max(_max(expected), 1e-30)
        assert _max(found[name].double() - expected.double()) <= tolerance, name


@contextmanager
def compiler_warnings_ignored() -> Iterator[None]:
    """Let torch 2.13's compiler warn about torch's own code; warnings of ours stay errors."""
    with warnings.catch_warnings():
        for message in TORCH_OWN_WARNINGS:
            warnings.filterwarnings("ignore", message=message, category=DeprecationWarning)
        yield


def assert_gradcheck(function: Callable[..., Any], arguments: Arguments) -> None:
    """Compare the backward with finite differences, in fp64."""
    assert torch.autograd.gradcheck(function, cast(arguments, torch.float64))


@contextmanager
def poisoned_memory() -> Iterator[None]:
    """Fill what `torch.empty` returns with NaN, so that reading it before writing shows."""
    before = torch.are_deterministic_algorithms_enabled()
    filled = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
        torch.utils.deterministic.fill_uninitialized_memory = filled


def _max(tensor: Tensor) -> float:
    return float(tensor.abs().max()) if tensor.numel() else 0.0
