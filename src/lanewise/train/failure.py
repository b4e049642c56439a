"""What went wrong in a run, told as the facts of one failure family. Torch-free: errors of torch are known by their names."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import psutil

from lanewise.errors import DataError, StoreError
from lanewise.measure.memory import peak_rss_bytes
from lanewise.receipts.failures import (
    AccountingFailure,
    AllocatorFailure,
    BackendFailure,
    CompileFailure,
    DataFailure,
    DefectFailure,
    DiskFailure,
    Failure,
    FailureFamily,
    NumericsFailure,
    OutOfMemoryFailure,
    ThermalFailure,
    UnsteadyFailure,
    first_family,
)
from lanewise.receipts.schema import (
    BackendRecord,
    CompileRecord,
    Goodput,
    Memory,
    StepSeries,
    Telemetry,
    Warmup,
)

COMPILER_MODULES: Final = ("torch._dynamo", "torch._inductor")
_DISK_ERRORS: Final = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EACCES, errno.EPERM}
)
_UNITS: Final[Mapping[str, int]] = {
    "bytes": 1,
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
    "TiB": 2**40,
}
_SIZE: Final = r"([0-9.]+) ([KMGT]iB|bytes)"
_CPU_REFUSAL: Final = re.compile(r"can't allocate memory: you tried to allocate ([0-9]+) bytes")
_CUDA_ASKED: Final = re.compile(rf"[Tt]ried to allocate {_SIZE}")
_CUDA_FREE: Final = re.compile(rf"of which {_SIZE} is free")
NO_COMPILE: Final = CompileRecord(
    enabled=False,
    cache_state="unused",
    compile_duration_seconds=None,
    graph_breaks=None,
    recompiles=None,
    graph_captures=None,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Circumstances:
    """What was known when an error struck.

    Attributes:
        step: optimizer step in progress; None while building.
        peak_bytes: most memory held so far; None where unknown.
        free_bytes: memory free now; None where unknown.
        compile: compile counts so far.
    """

    step: int | None = None
    peak_bytes: int | None = None
    free_bytes: int | None = None
    compile: CompileRecord = NO_COMPILE


UNKNOWN: Final = Circumstances()


def circumstances(*, step: int | None, compiled: CompileRecord) -> Circumstances:
    """What this process can tell of its memory now.

    Args:
        step: optimizer step in progress; None while building.
        compiled: compile counts so far.
    """
    return Circumstances(
        step=step,
        peak_bytes=peak_rss_bytes(),
        free_bytes=int(psutil.virtual_memory().available),
        compile=compiled,
    )


def failure_of(error: BaseException, known: Circumstances = UNKNOWN) -> Failure:
    """The family an error belongs to, with its facts; what belongs to none is a defect of lanewise."""
    if is_out_of_memory(error):
        on_cpu = not _is_named(error, "OutOfMemoryError")
        text = str(error)
        return OutOfMemoryFailure(
            device="cpu" if on_cpu else "cuda",
            asked_bytes=_cpu_bytes(text) if on_cpu else _cuda_bytes(_CUDA_ASKED, text),
            free_bytes=known.free_bytes if on_cpu else _cuda_bytes(_CUDA_FREE, text),
            peak_bytes=known.peak_bytes,
            step=known.step,
        )
    if is_compiler_error(error):
        record = known.compile
        return CompileFailure(
            cache_state=record.cache_state,
            compile_duration_seconds=record.compile_duration_seconds,
            graph_breaks=record.graph_breaks,
            recompiles=record.recompiles,
        )
    if isinstance(error, StoreError) or (
        isinstance(error, OSError) and error.errno in _DISK_ERRORS
    ):
        return DiskFailure(cause=_errno_name(error), step=known.step)
    if isinstance(error, DataError):
        return DataFailure(step=known.step)
    return DefectFailure(error_type=type(error).__name__)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation was refused: by CUDA, by torch's CPU allocator, or by Python."""
    if isinstance(error, MemoryError) or _is_named(error, "OutOfMemoryError"):
        return True
    return isinstance(error, RuntimeError) and _CPU_REFUSAL.search(str(error)) is not None


def is_compiler_error(error: BaseException) -> bool:
    """Whether torch's compiler raised it."""
    return any(kind.__module__.startswith(COMPILER_MODULES) for kind in type(error).__mro__)


def in_words(failure: Failure, error: BaseException) -> str:
    """One line for receipts and people: what failed, without paths, and what to do where there is something."""
    if isinstance(failure, OutOfMemoryFailure):
        asked = "" if failure.asked_bytes is None else f" for {failure.asked_bytes:,} bytes"
        return f"out of memory: an allocation{asked} was refused; lower batch.micro_batch_size, or set recompute"
    if isinstance(failure, CompileFailure):
        return (
            f"the compiler gave up ({type(error).__name__}); switch it off with "
            "--set features.regional_compile=off"
        )
    if isinstance(failure, DiskFailure):
        return f"the disk refused a file ({failure.cause or type(error).__name__})"
    if isinstance(failure, DataFailure):
        return "the training data failed in mid-run"
    return f"{type(error).__name__} in mid-run"


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """The parts of a receipt that failed checks speak of."""

    series: StepSeries
    warmup: Warmup
    goodput: Goodput | None
    memory: Memory
    telemetry: Telemetry
    backends: Sequence[BackendRecord]


def failure_of_checks(failed_checks: Sequence[str], measured: Measured) -> Failure | None:
    """The facts of the gravest failed check; None when none failed."""
    family = first_family(failed_checks)
    series, goodput = measured.series, measured.goodput
    if family is None:
        return None
    if family is FailureFamily.NUMERICS and None in series.loss:
        return numerics_failure(series)
    if family is FailureFamily.BACKEND:
        odd = next((b for b in measured.backends if b.observed != (b.chosen,)), None)
        wrong = odd or next((b for b in measured.backends if b.fallback_reason), None)
        if wrong is not None:
            return BackendFailure(op=wrong.op, requested=wrong.requested, observed=wrong.observed)
    if family is FailureFamily.ACCOUNTING and goodput is not None:
        wall, lost = goodput.wall_duration_seconds, goodput.badput_seconds
        return AccountingFailure(
            wall_duration_seconds=wall,
            missed_seconds=abs(goodput.step_seconds + sum(lost.values()) - wall),
            other_seconds=lost["other"],
        )
    if family is FailureFamily.ALLOCATOR:
        return AllocatorFailure(
            alloc_retries=measured.memory.alloc_retries,
            peak_reserved_bytes=measured.memory.peak_reserved_bytes,
        )
    if family is FailureFamily.THERMAL:
        return ThermalFailure(
            clock_event_reasons=measured.telemetry.clock_event_reasons,
            sm_clock_hertz=measured.telemetry.sm_clock_hertz,
            temperature_celsius=measured.telemetry.temperature_celsius,
        )
    if family is FailureFamily.UNSTEADY:
        return UnsteadyFailure(
            num_steps=len(series.step), rule=measured.warmup.rule, reason=measured.warmup.reason
        )
    return DefectFailure(error_type=f"check {' and '.join(failed_checks)}")


def numerics_failure(series: StepSeries) -> NumericsFailure:
    """The facts of the first loss of a series that is not finite."""
    index = series.loss.index(None)
    return NumericsFailure(
        step=series.step[index],
        loss=None,
        grad_norm=series.grad_norm[index],
        last_finite_loss=series.loss[index - 1] if index else None,
    )


def _is_named(error: BaseException, name: str) -> bool:
    return any(
        kind.__name__ == name and kind.__module__.startswith("torch")
        for kind in type(error).__mro__
    )


def _errno_name(error: BaseException) -> str | None:
    for each in (error, error.__cause__, *_wrapped(error.__cause__)):
        if isinstance(each, OSError) and each.errno is not None:
            return errno.errorcode.get(each.errno)
    return None


def _wrapped(error: BaseException | None) -> Iterator[object]:
    """What torch's checkpoint error holds of its ranks: exceptions, or pairs that begin with one."""
    failures = getattr(error, "failures", None)
    for each in failures.values() if isinstance(failures, dict) else ():
        yield each[0] if isinstance(each, tuple) else each


def _cpu_bytes(text: str) -> int | None:
    found = _CPU_REFUSAL.search(text)
    return None if found is None else int(found.group(1))


def _cuda_bytes(pattern: re.Pattern[str], text: str) -> int | None:
    found = pattern.search(text)
    return None if found is None else round(float(found.group(1)) * _UNITS[found.group(2)])
