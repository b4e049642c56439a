"""What this machine can do at best: memory copy and matrix multiply, measured in under three seconds."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from lanewise.lane.machine import DeviceType

if TYPE_CHECKING:
    import torch

MIB: Final = 2**20
COPY_BYTES: Final = 64 * MIB
COPY_PAIRS: Final = 4
"""Source and target buffers taken in turn: 512 MiB in all, more than the last-level cache of nearly every machine."""
MATMUL_SIZE: Final = 1024
MATMUL_SETS: Final = 3
GPU_COPY_BYTES: Final = 512 * MIB
"""Well above the L2 of any GPU (50 MiB on Hopper)."""
GPU_MATMUL_SIZE: Final = 8192
"""Large enough that the product is bound by the tensor cores alone."""
GPU_SAMPLES: Final = 20
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
    device_type: DeviceType,
    num_threads: int,
    *,
    clock: Callable[[], int],
    copy_bytes: int | None = None,
    matmul_size: int | None = None,
) -> Ceilings:
    """Copy and multiply random data, several times each, and take medians.

    On a CPU in fp32, on a GPU in bf16 with fp32 accumulation, what the lanes of each compute in.

    Args:
        device_type: device to measure.
        num_threads: intra-op threads for the measurement; the process's own number is restored.
        clock: monotonic nanoseconds.
        copy_bytes: size of one copy buffer, a multiple of 4; None takes the device's own.
        matmul_size: n of the square matrices; None takes the device's own.
    """
    import torch

    on_gpu = device_type == "cuda"
    copy_bytes = copy_bytes or (GPU_COPY_BYTES if on_gpu else COPY_BYTES)
    matmul_size = matmul_size or (GPU_MATMUL_SIZE if on_gpu else MATMUL_SIZE)
    dtype = torch.bfloat16 if on_gpu else torch.float32
    threads_before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    sample = _sample_on_gpu if on_gpu else _sample
    try:
        copy_seconds = sample(_copy_work(copy_bytes, device_type), clock)
        matmul_seconds = sample(_matmul_work(matmul_size, device_type, dtype), clock)
    finally:
        torch.set_num_threads(threads_before)
    return Ceilings(
        copy_bytes_per_second=2 * copy_bytes / statistics.median(copy_seconds),
        matmul_flops_per_second=2 * matmul_size**3 / statistics.median(matmul_seconds),
        dtype="bf16" if on_gpu else "fp32",
        num_threads=num_threads,
        copy_buffer_bytes=copy_bytes,
        matmul_size=matmul_size,
        num_samples={"copy": len(copy_seconds), "matmul": len(matmul_seconds)},
    )


def _copy_work(num_bytes: int, device_type: DeviceType) -> Callable[[int], None]:
    import torch

    generator = torch.Generator(device_type).manual_seed(0)
    random = torch.rand(num_bytes // 4, generator=generator, device=device_type)
    sources = [random.clone() for _ in range(COPY_PAIRS)]
    targets = [random.clone() for _ in range(COPY_PAIRS)]

    def copy(index: int) -> None:
        targets[index % COPY_PAIRS].copy_(sources[index % COPY_PAIRS])

    return copy


def _matmul_work(size: int, device_type: DeviceType, dtype: torch.dtype) -> Callable[[int], None]:
    import torch

    generator = torch.Generator(device_type).manual_seed(0)
    left, right = (
        [
            torch.randn(size, size, generator=generator, device=device_type).to(dtype)
            for _ in range(MATMUL_SETS)
        ]
        for _ in "ab"
    )
    out = torch.empty(size, size, device=device_type, dtype=dtype)

    def multiply(index: int) -> None:
        torch.mm(left[index % MATMUL_SETS], right[index % MATMUL_SETS], out=out)

    return multiply


def _sample_on_gpu(work: Callable[[int], None], clock: Callable[[], int]) -> list[float]:
    """Seconds of repeated calls between device events, after as many that warm up; the host clock plays no part."""
    import torch

    del clock
    for index in range(GPU_SAMPLES):
        work(index)
    new_event: Callable[..., Any] = torch.cuda.Event
    marks = [new_event(enable_timing=True) for _ in range(GPU_SAMPLES + 1)]
    marks[0].record()
    for index in range(GPU_SAMPLES):
        work(index)
        marks[index + 1].record()
    torch.cuda.synchronize()
    return [before.elapsed_time(after) / 1e3 for before, after in itertools.pairwise(marks)]


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
