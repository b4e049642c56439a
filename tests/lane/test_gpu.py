"""The GPU of a machine, from what nvidia-smi answers."""

import pytest

from lanewise.errors import UsageError
from lanewise.lane.gpu import Gpu, find_gpu, free_gpu_bytes


def test_a_gpu_is_read_off_one_line() -> None:
    line = "NVIDIA H100 80GB HBM3, 81559, 580.95.05, GPU-1f2e"
    assert find_gpu(lambda _fields: line) == Gpu(
        name="NVIDIA H100 80GB HBM3", memory_mib=81559, driver_version="580.95.05", uuid="GPU-1f2e"
    )


@pytest.mark.parametrize("line", ["", "NVIDIA H100", "a, b, c, d", "x, 1, y"])
def test_an_answer_that_is_no_gpu_is_refused(line: str) -> None:
    with pytest.raises(UsageError, match="use --device cpu"):
        find_gpu(lambda _fields: line)


def test_free_memory_is_bytes_or_unknown() -> None:
    assert free_gpu_bytes(lambda _fields: "80000") == 80000 * 2**20
    assert free_gpu_bytes(lambda _fields: "[N/A]") is None

    def no_driver(_fields: str) -> str:
        raise UsageError("no driver")

    assert free_gpu_bytes(no_driver) is None
