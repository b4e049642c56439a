"""Tensor-pipe counters over a fake NVML: two samples, one ratio, and a reason for everything that can be missing."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from lanewise.vendors.gpm import TensorPipeWatch


class NVMLError(Exception):
    """NVML's own error."""


class FakeNvml:
    """The few functions the adapter calls; `broken` names those that raise."""

    NVMLError = NVMLError
    NVML_GPM_METRICS_GET_VERSION = 1
    NVML_GPM_METRIC_ANY_TENSOR_UTIL = 5
    NVML_SUCCESS = 0
    NVML_CLOCK_SM = 1

    def __init__(self, *, broken: str = "", supported: bool = True, code: int = 0) -> None:
        self.broken, self.supported, self.code = broken, supported, code
        self.calls: list[str] = []
        self.clocks = [1000, 1980]

    def _call(self, name: str) -> None:
        self.calls.append(name)
        if name == self.broken:
            raise NVMLError(f"{name} is not allowed")

    def nvmlInit(self) -> None:
        self._call("nvmlInit")

    def nvmlShutdown(self) -> None:
        self._call("nvmlShutdown")

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        self._call("nvmlDeviceGetHandleByIndex")
        return index

    def nvmlGpmQueryDeviceSupport(self, _device: int) -> Any:
        return SimpleNamespace(isSupportedDevice=self.supported)

    def nvmlGpmSampleAlloc(self) -> Any:
        return SimpleNamespace(taken=False)

    def nvmlGpmSampleGet(self, _device: int, sample: Any) -> None:
        self._call("nvmlGpmSampleGet")
        sample.taken = True

    def c_nvmlGpmMetricsGet_t(self) -> Any:
        return SimpleNamespace(metrics=[SimpleNamespace()])

    def nvmlGpmMetricsGet(self, asked: Any) -> None:
        assert asked.sample1.taken
        assert asked.sample2.taken
        assert asked.sample1 is not asked.sample2
        assert (asked.version, asked.numMetrics, asked.metrics[0].metricId) == (1, 1, 5)
        asked.metrics[0].value, asked.metrics[0].nvmlReturn = 42.5, self.code

    def nvmlDeviceGetClockInfo(self, _device: int, _kind: int) -> int:
        self._call("nvmlDeviceGetClockInfo")
        return self.clocks.pop(0)

    def nvmlDeviceGetMaxClockInfo(self, _device: int, _kind: int) -> int:
        return 1980


def watched(nvml: FakeNvml) -> Any:
    watch = TensorPipeWatch(load=lambda: nvml)
    watch.start()
    return watch.stop()


def test_activity_is_a_share_and_the_clock_the_mean_of_both_ends() -> None:
    nvml = FakeNvml()
    found = watched(nvml)
    assert (found.source, found.tensor_active_ratio) == ("nvml_gpm", 0.425)
    assert found.sm_clock_ratio == pytest.approx((1000 / 1980 + 1.0) / 2)
    assert nvml.calls[-1] == "nvmlShutdown"


def test_a_clock_that_is_not_told_leaves_the_activity() -> None:
    found = watched(FakeNvml(broken="nvmlDeviceGetClockInfo"))
    assert (found.tensor_active_ratio, found.sm_clock_ratio) == (0.425, None)


@pytest.mark.parametrize(
    ("nvml", "reason"),
    [
        (FakeNvml(supported=False), "this GPU has no GPM counters (Hopper and newer have)"),
        (FakeNvml(broken="nvmlInit"), "NVML GPM: nvmlInit is not allowed"),
        (FakeNvml(broken="nvmlGpmSampleGet"), "NVML GPM: nvmlGpmSampleGet is not allowed"),
        (FakeNvml(code=3), "NVML GPM gave no tensor activity (code 3)"),
    ],
)
def test_everything_that_is_missing_is_a_reason(nvml: FakeNvml, reason: str) -> None:
    assert watched(nvml) == reason


def test_a_missing_package_is_a_reason() -> None:
    def absent() -> Any:
        raise ImportError

    watch = TensorPipeWatch(load=absent)
    assert watch.stop() == "the counters were not started"
    watch.start()
    assert watch.stop() == "package nvidia-ml-py is not installed"
