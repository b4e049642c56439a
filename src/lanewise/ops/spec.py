"""What an op is: a name, a reference, and one visible table of backends with their needs as data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

ShapeRule = Callable[[Mapping[str, int]], str | None]
"""Given an op's named dims, the reason it cannot run, or None."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """The shapes and dtype the call sites of an op will see, known when the model is built.

    Attributes:
        device_type: `cpu` or `cuda`.
        dtype: `fp64`, `fp32` or `bf16`, of the op's main input.
        dims: named sizes from the op's shape legend, e.g. `{"T": 64, "H": 4, "P": 32}`.
        also: the same of further call sites of other sizes; a backend must run them all.
    """

    device_type: str
    dtype: str
    dims: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))
    also: tuple[Mapping[str, int], ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Capabilities:
    """What this machine and installation offer to backends; gathered once by `ops.dispatch.capabilities`.

    Attributes:
        device_type: `cpu` or `cuda`.
        compute_capability: e.g. `(9, 0)`; None without a GPU.
        packages: installed version by distribution name, only packages that some backend asks for.
        has_cxx_compiler: whether torch.compile can build C++ for the CPU.
    """

    device_type: str
    compute_capability: tuple[int, int] | None
    packages: Mapping[str, str]
    has_cxx_compiler: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Needs:
    """What a backend requires, as data, so that a rejection can name the rule.

    Attributes:
        device_types: where it runs.
        dtypes: input dtypes it computes in.
        packages: distribution → PEP 440 specifier, e.g. `{"triton": ">=3.6,<3.7"}`.
        min_capability: least CUDA compute capability.
        cxx_compiler: whether it builds C++ at run time.
        shape_rule: reason why dims do not fit, or None.
    """

    device_types: frozenset[str] = frozenset({"cpu", "cuda"})
    dtypes: frozenset[str] = frozenset({"fp64", "fp32", "bf16"})
    packages: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    min_capability: tuple[int, int] | None = None
    cxx_compiler: bool = False
    shape_rule: ShapeRule | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Backend:
    """One implementation of an op.

    Attributes:
        name: `<algorithm>.<implementation>`, e.g. `chunked.torch`.
        target: `module:function`, imported only when chosen.
        needs: what it requires.
        note: one line for tables.
    """

    name: str
    target: str
    needs: Needs = Needs()
    note: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class OpSpec:
    """An op: its reference (the oracle) and its backends in the default order, fastest first.

    Attributes:
        name: key used in receipts, features and `--set ops.<name>=`.
        reference: name of the backend that is the oracle.
        backends: every implementation, in the order `auto` tries them.
    """

    name: str
    reference: str
    backends: tuple[Backend, ...]

    def backend(self, name: str) -> Backend | None:
        """The backend of this name, or None."""
        return next((backend for backend in self.backends if backend.name == name), None)


@dataclass(frozen=True, kw_only=True, slots=True)
class Rejection:
    """Why a backend was passed over."""

    backend: str
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """The outcome of one request, made once when the model is built.

    Attributes:
        op: op name.
        requested: backends asked for, in order; empty means the op's own order.
        chosen: backend that will run.
        rejected: those tried before it, each with its reason.
        fallback: whether the first backend of a request of several could not run.
    """

    op: str
    requested: tuple[str, ...]
    chosen: str
    rejected: tuple[Rejection, ...]
    fallback: bool
