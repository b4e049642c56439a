"""What can go wrong with a run, one name per kind, and one narrow record of facts for each.

The name is set where the failure happens: by the run (`train`), by the lab for a process that could not tell any more
(`lab.children`), or by the gate that refuses a block (`lab.gates`). A check of a receipt that fails names its kind through
`CHECK_FAMILIES`, the first in order of that table.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Annotated, Literal

from pydantic import Field

from lanewise.receipts.record import FiniteOrNull, NonNegativeInt, Record, Seconds


class FailureFamily(enum.StrEnum):
    """Kinds of failure. Bad input that is refused before anything runs is no failure of a run and has none."""

    COMPILE = "compile"
    """The compiler gave up on a graph."""
    OUT_OF_MEMORY = "out_of_memory"
    """An allocation was refused."""
    BACKEND = "backend"
    """Another backend ran than the one asked for, or the one asked for failed."""
    NUMERICS = "numerics"
    """A loss or gradient is no longer finite, or arms of equal mathematics have other losses."""
    DATA = "data"
    """Training data vanished, changed or ended in mid-run."""
    DISK = "disk"
    """A checkpoint or a record could not be written or read."""
    PROCESS = "process"
    """A training process died without a word."""
    TIMEOUT = "timeout"
    """A training process stayed silent and was stopped."""
    INTERRUPTED = "interrupted"
    """Ctrl-C or SIGTERM."""
    ALLOCATOR = "allocator"
    """The allocator had to retry, so step times hold its work."""
    THERMAL = "thermal"
    """The device slowed itself down for heat or a power brake."""
    DISTURBED = "disturbed"
    """Others used the processors of a block."""
    COMPARABILITY = "comparability"
    """Two arms are not the same lane, data, environment or machine."""
    UNSTEADY = "unsteady"
    """No steady state was found in the steps taken."""
    ACCOUNTING = "accounting"
    """Parts of the wall time do not add up to it."""
    DEFECT = "defect"
    """lanewise itself is wrong."""


class CompileFailure(Record):
    """Facts of a failed compilation."""

    family: Literal[FailureFamily.COMPILE] = FailureFamily.COMPILE
    cache_state: Literal["cold", "warm", "mixed", "unused"]
    compile_duration_seconds: Seconds | None
    graph_breaks: NonNegativeInt | None
    recompiles: NonNegativeInt | None


class OutOfMemoryFailure(Record):
    """Facts of a refused allocation; what the allocator did not say is null."""

    family: Literal[FailureFamily.OUT_OF_MEMORY] = FailureFamily.OUT_OF_MEMORY
    device: Literal["cpu", "cuda"]
    asked_bytes: Annotated[float, Field(ge=0.0)] | None
    """Not a whole number of JSON: what a fault asks for can exceed 2^53."""
    free_bytes: NonNegativeInt | None
    peak_bytes: NonNegativeInt | None
    """Most that was held before: tensors on a device, resident set on a CPU."""
    step: NonNegativeInt | None
    """Optimizer step in which it happened; null while building."""


class BackendFailure(Record):
    """Facts of an op that ran on something else."""

    family: Literal[FailureFamily.BACKEND] = FailureFamily.BACKEND
    op: str
    requested: tuple[str, ...]
    observed: tuple[str, ...]


class NumericsFailure(Record):
    """Facts of a divergence."""

    family: Literal[FailureFamily.NUMERICS] = FailureFamily.NUMERICS
    step: NonNegativeInt
    """First step whose loss is not finite."""
    loss: FiniteOrNull
    """Null when it is no finite number."""
    grad_norm: FiniteOrNull
    """Global norm before clipping; null when it is no finite number or was not measured."""
    last_finite_loss: FiniteOrNull
    """Loss of the step before; null when there is none."""


class DataFailure(Record):
    """Facts of data that failed in mid-run."""

    family: Literal[FailureFamily.DATA] = FailureFamily.DATA
    step: NonNegativeInt | None


class DiskFailure(Record):
    """Facts of a write or read that the disk refused."""

    family: Literal[FailureFamily.DISK] = FailureFamily.DISK
    cause: str | None
    """Name of the system's error, e.g. `ENOSPC`; null when it gave none."""
    step: NonNegativeInt | None


class ProcessFailure(Record):
    """Facts of a process that died."""

    family: Literal[FailureFamily.PROCESS] = FailureFamily.PROCESS
    exit_code: int | None
    """Negative: killed by that signal."""
    signal: str | None


class TimeoutFailure(Record):
    """Facts of a process that was given up."""

    family: Literal[FailureFamily.TIMEOUT] = FailureFamily.TIMEOUT
    waited_seconds: Seconds


class InterruptedFailure(Record):
    """Facts of a stop from outside."""

    family: Literal[FailureFamily.INTERRUPTED] = FailureFamily.INTERRUPTED
    signal: str
    steps_taken: NonNegativeInt
    steps_asked: NonNegativeInt


class AllocatorFailure(Record):
    """Facts of an allocator under pressure."""

    family: Literal[FailureFamily.ALLOCATOR] = FailureFamily.ALLOCATOR
    alloc_retries: NonNegativeInt | None
    peak_reserved_bytes: NonNegativeInt | None


class ThermalFailure(Record):
    """Facts of a device that slowed itself down."""

    family: Literal[FailureFamily.THERMAL] = FailureFamily.THERMAL
    clock_event_reasons: tuple[str, ...]
    sm_clock_hertz: float | None
    temperature_celsius: float | None


class DisturbedFailure(Record):
    """Facts of processors that others used; the largest of the block's visits."""

    family: Literal[FailureFamily.DISTURBED] = FailureFamily.DISTURBED
    foreign_load_ratio: Annotated[float, Field(ge=0.0)] | None
    """Time that other programs took ÷ time that the threads of a run could have."""
    steal_ratio: Annotated[float, Field(ge=0.0)] | None
    """Time that the hypervisor took ÷ all time of the processors used."""


class ComparabilityFailure(Record):
    """Facts of arms that may not meet."""

    family: Literal[FailureFamily.COMPARABILITY] = FailureFamily.COMPARABILITY
    fields: tuple[str, ...]
    """Dotted paths in which the receipts differ."""


class UnsteadyFailure(Record):
    """Facts of steps that never settled."""

    family: Literal[FailureFamily.UNSTEADY] = FailureFamily.UNSTEADY
    num_steps: NonNegativeInt
    rule: str
    reason: str


class AccountingFailure(Record):
    """Facts of a partition of wall time that does not close."""

    family: Literal[FailureFamily.ACCOUNTING] = FailureFamily.ACCOUNTING
    wall_duration_seconds: Seconds
    missed_seconds: Seconds
    other_seconds: float
    """Negative when spans overlap."""


class DefectFailure(Record):
    """Facts of a fault of lanewise."""

    family: Literal[FailureFamily.DEFECT] = FailureFamily.DEFECT
    error_type: str


Failure = Annotated[
    CompileFailure
    | OutOfMemoryFailure
    | BackendFailure
    | NumericsFailure
    | DataFailure
    | DiskFailure
    | ProcessFailure
    | TimeoutFailure
    | InterruptedFailure
    | AllocatorFailure
    | ThermalFailure
    | DisturbedFailure
    | ComparabilityFailure
    | UnsteadyFailure
    | AccountingFailure
    | DefectFailure,
    Field(discriminator="family"),
]
"""The facts of a failure, told apart by `family`."""

CHECK_FAMILIES: Mapping[str, FailureFamily] = MappingProxyType(
    {
        "losses_finite": FailureFamily.NUMERICS,
        "observed_backends": FailureFamily.BACKEND,
        "goodput_closes": FailureFamily.ACCOUNTING,
        "steps_present": FailureFamily.UNSTEADY,
        "steady_state": FailureFamily.UNSTEADY,
    }
)
"""Check of a receipt → kind of its failure, the gravest first."""


def first_family(failed_checks: Iterable[str]) -> FailureFamily | None:
    """Kind of the gravest of these checks; None when there are none."""
    failed = set(failed_checks)
    if not failed:
        return None
    # A check without a place in the table is an omission of ours, and no reason to lose a receipt over.
    return next((f for name, f in CHECK_FAMILIES.items() if name in failed), FailureFamily.DEFECT)
