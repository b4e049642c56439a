"""NVML GPM: the share of cycles in which a Hopper or newer GPU's tensor pipes were busy, from its own counters.

Two samples bracket the steps and the driver gives the mean between them, so nothing runs while steps do. Needs the
package `nvidia-ml-py` and a driver that lets this user read GPM; where either is missing the reason is kept.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, Final

from lanewise.receipts.utilization import TensorActivity

PACKAGE: Final = "pynvml"
"""Module of the package `nvidia-ml-py`."""


class TensorPipeWatch:
    """Counters of one GPU between `start` and `stop`; every failure becomes the reason that `stop` returns.

    Args:
        device_index: as the driver numbers GPUs; the first visible one in a process with one GPU.
        load: imports NVML; tests pass a fake.
    """

    def __init__(
        self,
        device_index: int = 0,
        *,
        load: Callable[[], Any] = lambda: importlib.import_module(PACKAGE),
    ) -> None:
        self._device_index = device_index
        self._load = load
        self._nvml: Any = None
        self._device: Any = None
        self._first: Any = None
        self._first_clock: float | None = None
        self._reason = "the counters were not started"

    def start(self) -> None:
        """Take the first sample, after warm-up and before the steps."""
        try:
            nvml = self._load()
        except ImportError:
            self._reason = "package nvidia-ml-py is not installed"
            return
        try:
            nvml.nvmlInit()
            device = nvml.nvmlDeviceGetHandleByIndex(self._device_index)
            if not nvml.nvmlGpmQueryDeviceSupport(device).isSupportedDevice:
                self._reason = "this GPU has no GPM counters (Hopper and newer have)"
                nvml.nvmlShutdown()
                return
            self._first = nvml.nvmlGpmSampleAlloc()
            nvml.nvmlGpmSampleGet(device, self._first)
            self._nvml, self._device = nvml, device
            self._first_clock = self._clock_ratio()
        except nvml.NVMLError as error:
            self._reason = f"NVML GPM: {error}"

    def stop(self) -> TensorActivity | str:
        """The mean between `start` and now, or why there is none. The clock is the mean of both ends."""
        if self._nvml is None:
            return self._reason
        nvml = self._nvml
        try:
            last = nvml.nvmlGpmSampleAlloc()
            nvml.nvmlGpmSampleGet(self._device, last)
            asked = nvml.c_nvmlGpmMetricsGet_t()
            asked.version = nvml.NVML_GPM_METRICS_GET_VERSION
            asked.numMetrics = 1
            asked.sample1, asked.sample2 = self._first, last
            asked.metrics[0].metricId = nvml.NVML_GPM_METRIC_ANY_TENSOR_UTIL
            nvml.nvmlGpmMetricsGet(asked)
            metric = asked.metrics[0]
            if metric.nvmlReturn != nvml.NVML_SUCCESS:
                return f"NVML GPM gave no tensor activity (code {metric.nvmlReturn})"
            percent = float(metric.value)
            clocks = [c for c in (self._first_clock, self._clock_ratio()) if c is not None]
            return TensorActivity(
                source="nvml_gpm",
                tensor_active_ratio=percent / 100.0,
                sm_clock_ratio=sum(clocks) / len(clocks) if clocks else None,
            )
        except nvml.NVMLError as error:
            return f"NVML GPM: {error}"
        finally:
            self._nvml = None
            nvml.nvmlShutdown()

    def _clock_ratio(self) -> float | None:
        nvml = self._nvml
        try:
            now = nvml.nvmlDeviceGetClockInfo(self._device, nvml.NVML_CLOCK_SM)
            highest = nvml.nvmlDeviceGetMaxClockInfo(self._device, nvml.NVML_CLOCK_SM)
        except nvml.NVMLError:
            return None
        return now / highest if highest else None
