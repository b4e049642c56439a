import time
from collections.abc import Callable

import pytest
import torch

from lanewise.measure.ceilings import MAX_SAMPLES, MIN_SAMPLES, Ceilings, measure_ceilings


def ticking(step_ns: int) -> Callable[[], int]:
    """A clock that advances by the same amount on every reading."""
    now_ns = 0

    def clock() -> int:
        nonlocal now_ns
        now_ns += step_ns
        return now_ns

    return clock


def measure(clock: Callable[[], int], num_threads: int = 1) -> Ceilings:
    return measure_ceilings("cpu", num_threads, clock=clock, copy_bytes=4096, matmul_size=16)


def test_rates_are_work_over_time():
    ceilings = measure(ticking(1_000_000))
    assert ceilings.copy_bytes_per_second == pytest.approx(2 * 4096 / 1e-3)
    assert ceilings.matmul_flops_per_second == pytest.approx(2 * 16**3 / 1e-3)
    assert (ceilings.copy_buffer_bytes, ceilings.matmul_size, ceilings.dtype) == (4096, 16, "fp32")
    assert ceilings.num_samples == {"copy": MAX_SAMPLES, "matmul": MAX_SAMPLES}


def test_a_slow_machine_stops_after_the_least_number_of_samples():
    assert measure(ticking(10**9)).num_samples == {"copy": MIN_SAMPLES, "matmul": MIN_SAMPLES}


def test_real_numbers_are_plausible():
    ceilings = measure(time.perf_counter_ns)
    assert 1e6 < ceilings.copy_bytes_per_second < 1e14
    assert 1e5 < ceilings.matmul_flops_per_second < 1e16


def test_the_number_of_threads_is_used_and_restored():
    before = torch.get_num_threads()
    seen: list[int] = []
    tick = ticking(1_000)

    def clock() -> int:
        seen.append(torch.get_num_threads())
        return tick()

    assert measure(clock, num_threads=before + 1).num_threads == before + 1
    assert set(seen) == {before + 1}
    assert torch.get_num_threads() == before
