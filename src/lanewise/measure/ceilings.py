"""What this machine can do at best: memory copy and matrix multiply, measured in under three seconds."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from lanewise.errors import NotBuiltError

MIB: Final = 2**20
COPY_BYTES: Final = 64 * MIB
COPY_PAIRS: Final = 4
"""Source and target buffers taken in turn: 512 MiB in all, more than the last-level cache of nearly every machine."""
MATMUL_SIZE: Final = 1024
MATMUL_SETS: Final = 3
MIN_SAMPLES: Final = 3
MAX_SAMPLES: Final = 15
SECONDS_PER_CEILING: Final = 0.7


@dataclass(frozen=True, kw_only=True, slots=True)
class Ceilings:
    """Medians over a few repetitions.

    Attributes:
        copy_bytes_per_second: bytes read plus bytes written, as STREAM's Copy counts them.
        matmul_flops_per_second: 2·n³ per square product.
        dtype: of the matmul operands.
        num_threads: intra-op threads used.
        copy_buffer_bytes: size of one buffer.
        matmul_size: n.
        num_samples: repetitions behind each median, `copy` and `matmul`.
    """

    copy_bytes_per_second: float
    matmul_flops_per_second: float
    dtype: str
    num_threads: int
    copy_buffer_bytes: int
    matmul_size: int
    num_samples: dict[str, int]


def measure_ceilings(
    device_type: str,
    num_threads: int,
    *,
    clock: Callable[[], int],
    copy_bytes: int = COPY_BYTES,
    matmul_size: int = MATMUL_SIZE,
) -> Ceilings:
    """Copy and multiply random data, several times each, and take medians.

    Args:
        device_type: only `cpu`.
        num_threads: intra-op threads for the measurement; the process's own number is restored.
        clock: monotonic nanoseconds.
        copy_bytes: size of one copy buffer, a multiple of 4.
        matmul_size: n of the square matrices.

    Raises:
        NotBuiltError: another device than a CPU.
    """
    if device_type != "cpu":
        raise NotBuiltError(
            f"ceilings of device {device_type!r} are not measured by this version; use 'cpu'"
        )
    import torch

    threads_before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        copy_seconds = _sample(_copy_work(copy_bytes), clock)
        matmul_seconds = _sample(_matmul_work(matmul_size), clock)
    finally:
        torch.set_num_threads(threads_before)
    return Ceilings(
        copy_bytes_per_second=2 * copy_bytes / statistics.median(copy_seconds),
        matmul_flops_per_second=2 * matmul_size**3 / statistics.median(matmul_seconds),
        dtype="fp32",
        num_threads=num_threads,
        copy_buffer_bytes=copy_bytes,
        matmul_size=matmul_size,
        num_samples={"copy": len(copy_seconds), "matmul": len(matmul_seconds)},
    )


def _copy_work(num_bytes: int) -> Callable[[int], None]:
    import torch

    random = torch.rand(num_bytes // 4, generator=torch.Generator().manual_seed(0))
    sources = [random.clone() for _ in range(COPY_PAIRS)]
    targets = [random.clone() for _ in range(COPY_PAIRS)]

    def copy(index: int) -> None:
        targets[index % COPY_PAIRS].copy_(sources[index % COPY_PAIRS])

    return copy


def _matmul_work(size: int) -> Callable[[int], None]:
    import torch

    generator = torch.Generator().manual_seed(0)
    left, right = (
        [torch.randn(size, size, generator=generator) for _ in range(MATMUL_SETS)] for _ in "ab"
    )
    out = torch.empty(size, size)

    def multiply(index: int) -> None:
        torch.mm(left[index % MATMUL_SETS], right[index % MATMUL_SETS], out=out)

    return multiply


def _sample(work: Callable[[int], None], clock: Callable[[], int]) -> list[float]:
    """Seconds of repeated calls after one that warms up; at least three, then until time or count runs out."""
    work(0)
    seconds: list[float] = []
    while len(seconds) < MIN_SAMPLES or (
        len(seconds) < MAX_SAMPLES and sum(seconds) < SECONDS_PER_CEILING
    ):
        start_ns = clock()
        work(len(seconds) + 1)
        seconds.append((clock() - start_ns) / 1e9)
    return seconds
