"""All that a run reads off its machine around the steps: started before the first, closed before the receipt."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lanewise.lane.gpu import Gpu
from lanewise.measure.host import Host
from lanewise.receipts.telemetry import HostWindow, Telemetry
from lanewise.receipts.utilization import TensorActivity
from lanewise.train.memory_receipt import SHARED
from lanewise.train.meters import (
    NO_GPU,
    CpuMeters,
    CudaMeters,
    HostWatch,
    Meters,
    with_huge_pages,
)
from lanewise.train.request import RunRequest
from lanewise.vendors.gpm import TensorPipeWatch


@dataclass(frozen=True, kw_only=True, slots=True)
class Readings:
    """What a receipt says about the machine over the steps.

    Attributes:
        telemetry: clocks and power.
        host: the host's window, None with a reason.
        device_step_seconds: every step by the device's own clock, or why there is none.
        tensor_activity: hardware counters, or why there are none.
        missing: reasons by dotted path.
    """

    telemetry: Telemetry
    host: HostWindow | None
    device_step_seconds: tuple[float, ...] | str
    tensor_activity: TensorActivity | str
    missing: dict[str, str]


class MachineWatch:
    """Meters of the device, its tensor pipes, and the host where no campaign watches it.

    Attributes:
        meters: of the device.
        is_alone: whether the process holds no other run, so that what the process counts is this run's.
        is_started: whether the windows are open.
    """

    def __init__(self, gpu: Gpu | None, host: Host, request: RunRequest) -> None:
        """Choose the meters; nothing is read yet.

        Args:
            gpu: the accelerator; None on a CPU.
            host: the machine.
            request: the run; in a campaign the lab watches the host and sends what it saw.
        """
        self.meters: Meters = CpuMeters() if gpu is None else CudaMeters(gpu.uuid)
        place = request.experiment
        self.is_alone = place is None or place.design != "toggle"
        self._tensor_pipes = None if gpu is None else TensorPipeWatch()
        self._host = HostWatch(host, request.cores) if request.experiment is None else None
        self.is_started = False

    def start(self) -> None:
        """The first step is next: open every window. Once a run, and long beside what a step costs: it loads NVML."""
        self.is_started = True
        if self._tensor_pipes is not None:
            self._tensor_pipes.start()
        self.meters.start()
        if self._host is not None:
            self._host.start()

    def before_step(self) -> None:
        """A step begins."""
        self.meters.before_step()

    def after_step(self) -> tuple[str, ...]:
        """It has ended; returns tags for it."""
        return self.meters.after_step()

    def close(self, told: Mapping[str, Any] | None) -> Readings:
        """Read the other end of every window.

        Args:
            told: what a campaign saw of the host (`train.request`), or None.
        """
        host, missing = with_huge_pages(self._host_window(told))
        telemetry, reasons = self.meters.telemetry()
        return Readings(
            telemetry=telemetry,
            host=host,
            device_step_seconds=self.meters.step_seconds(),
            tensor_activity=self._tensor_activity(),
            missing=missing | reasons,
        )

    def _tensor_activity(self) -> TensorActivity | str:
        if self._tensor_pipes is None:
            return NO_GPU
        activity = self._tensor_pipes.stop()
        return activity if self.is_alone else SHARED

    def _host_window(self, told: Mapping[str, Any] | None) -> HostWindow | str:
        if told is not None:
            return str(told["missing"]) if "missing" in told else HostWindow.model_validate(told)
        if self._host is None:
            return "the campaign did not watch the host"
        return self._host.window()
