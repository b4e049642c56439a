"""From a request to a `Choice`: what this machine offers, why a backend cannot run, and which one will.

Every decision is made once, when the model is built. A backend asked for alone must run or the run fails; a list falls
back and warns; an empty request follows the op's own order in silence, since that order is meant to be walked.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.metadata
import shutil
import sys
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast

import torch
from packaging.specifiers import SpecifierSet

from lanewise.errors import BackendError, UsageError
from lanewise.ops.spec import Backend, Capabilities, Choice, OpSpec, Problem, Rejection
from lanewise.receipts import environment


class BackendFallbackWarning(UserWarning):
    """The first of several requested backends cannot run and another one was taken."""


def capabilities(device_type: str, packages: Iterable[str] | None = None) -> Capabilities:
    """Gather what this machine and installation offer.

    Args:
        device_type: `cpu` or `cuda`.
        packages: distributions whose versions matter; None takes every package that some backend asks for.

    Raises:
        UsageError: `cuda` was asked for and torch has no GPU.
    """
    if device_type == "cuda" and not torch.cuda.is_available():
        raise UsageError(
            f"device cuda was asked for, and torch {torch.__version__} finds no GPU it can use; "
            "use --device cpu, or install a torch built for this GPU's driver"
        )
    if packages is None:
        from lanewise.ops import registry  # registry.availability needs this module

        packages = registry.packages()
    return Capabilities(
        device_type=device_type,
        compute_capability=torch.cuda.get_device_capability() if device_type == "cuda" else None,
        packages={
            name: version for name in packages if (version := _installed_version(name)) is not None
        },
        has_cxx_compiler=_cxx_compiler() is not None,
    )


def _installed_version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cxx_compiler() -> str | None:
    """Path of the compiler torch.compile would call for CPU code (its own rule: $CXX, else the platform's)."""
    default = "clang++" if sys.platform == "darwin" else "g++"
    return shutil.which(environment.variable("CXX") or default)


def installation_rejection(backend: Backend, capabilities: Capabilities) -> str | None:
    """Why a backend cannot run on this machine whatever the problem, or None."""
    needs = backend.needs
    if capabilities.device_type not in needs.device_types:
        return f"it runs on {_either(needs.device_types)}, not on {capabilities.device_type}"
    for package, specifier in needs.packages.items():
        version = capabilities.packages.get(package)
        if version is None:
            return f"package '{package}' is not installed"
        if not SpecifierSet(specifier).contains(version, prereleases=True):
            return f"package '{package}' is {version} and must be {specifier}"
    if needs.min_capability is not None:
        found = capabilities.compute_capability
        if found is None or found < needs.min_capability:
            return (
                f"it needs compute capability {_dotted(needs.min_capability)}, "
                f"this device has {_dotted(found) if found else 'none'}"
            )
    if needs.cxx_compiler and not capabilities.has_cxx_compiler:
        return "it compiles C++ and no compiler was found (set CXX or install g++)"
    return None


def rejection(backend: Backend, problem: Problem, capabilities: Capabilities) -> str | None:
    """Why a backend cannot run this problem on this machine, or None when it can.

    Args:
        backend: row of an op's table.
        problem: shapes and dtype of the call sites; must name every dim of the op's legend.
        capabilities: of the machine, for the problem's device type.
    """
    if problem.device_type != capabilities.device_type:
        raise ValueError(
            f"the problem is for {problem.device_type} and the capabilities for "
            f"{capabilities.device_type}; gather capabilities({problem.device_type!r})"
        )
    needs = backend.needs
    reason = installation_rejection(backend, capabilities)
    if reason is None and problem.dtype not in needs.dtypes:
        reason = f"it computes in {_either(needs.dtypes)}, not in {problem.dtype}"
    if reason is None and needs.shape_rule is not None:
        reasons = (needs.shape_rule(dims) for dims in (problem.dims, *problem.also))
        reason = next((found for found in reasons if found is not None), None)
    return reason


def choose(
    spec: OpSpec, requested: Sequence[str], problem: Problem, capabilities: Capabilities
) -> Choice:
    """Decide which backend of an op runs.

    Args:
        spec: the op.
        requested: backends in the order to try; empty is the op's own order, one alone must run.
        problem: shapes and dtype of the call sites.
        capabilities: of the machine.

    Raises:
        BackendError: a name is unknown, or nothing that was asked for can run.

    Warns:
        BackendFallbackWarning: the first of several requested backends cannot run.
    """
    candidates = [_known(spec, name) for name in requested] or list(spec.backends)
    rejected: list[Rejection] = []
    for backend in candidates:
        reason = rejection(backend, problem, capabilities)
        if reason is not None:
            rejected.append(Rejection(backend=backend.name, reason=reason))
            continue
        fallback = bool(requested and rejected)
        if fallback:
            warnings.warn(
                f"op {spec.name} falls back to '{backend.name}': {_reasons(rejected)}",
                BackendFallbackWarning,
                stacklevel=2,
            )
        return Choice(
            op=spec.name,
            requested=tuple(requested),
            chosen=backend.name,
            rejected=tuple(rejected),
            fallback=fallback,
        )
    raise BackendError(_cannot_run(spec, rejected, problem, capabilities))


def load(target: str) -> Callable[..., Any]:
    """Import `module:function`.

    Raises:
        BackendError: the module or one of its own imports fails.
    """
    module_name, _, function_name = target.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise BackendError(
            f"backend code '{target}' cannot be imported: {error}. "
            "Repair that package or choose another backend."
        ) from error
    return cast("Callable[..., Any]", getattr(module, function_name))


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """` Did you mean 'x'?` for the closest known name, or nothing."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" Did you mean '{close[0]}'?" if close else ""


def _known(spec: OpSpec, name: str) -> Backend:
    backend = spec.backend(name)
    if backend is None:
        names = [b.name for b in spec.backends]
        raise BackendError(
            f"op {spec.name} has no backend '{name}'.{did_you_mean(name, names)} "
            f"It has {', '.join(names)}."
        )
    return backend


def _cannot_run(
    spec: OpSpec, rejected: Sequence[Rejection], problem: Problem, capabilities: Capabilities
) -> str:
    available = [b.name for b in spec.backends if rejection(b, problem, capabilities) is None]
    if len(rejected) == 1:
        what = (
            f"backend '{rejected[0].backend}' was asked for op {spec.name} and cannot run: "
            f"{rejected[0].reason}."
        )
    else:
        what = f"no backend of op {spec.name} that was tried can run: {_reasons(rejected)}."
    if not available:
        return f"{what} None is available here."
    return (
        f"{what} Available here: {', '.join(available)}. "
        f"Remove the setting to let the dispatcher choose {available[0]}."
    )


def _reasons(rejected: Sequence[Rejection]) -> str:
    return "; ".join(f"'{r.backend}' cannot run: {r.reason}" for r in rejected)


def _either(names: Iterable[str]) -> str:
    return " or ".join(sorted(names))


def _dotted(capability: tuple[int, int]) -> str:
    return f"{capability[0]}.{capability[1]}"
