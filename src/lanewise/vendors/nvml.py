"""NVIDIA's management library (`nvidia-ml-py`, imported as `pynvml`): clocks, power, temperature, why clocks fell.

Optional: without the package, the driver or a field, the answer is a reason. Nothing here changes a setting of the card.
Instant values are read at both ends of a window; energy and throttling times are counters, so nothing in between is missed.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from statistics import fmean
from types import MappingProxyType
from typing import Any, Final

from lanewise.receipts.telemetry import Telemetry

PACKAGE: Final = "nvidia-ml-py"

CLOCK_EVENT_BITS: Final[Mapping[int, str]] = MappingProxyType(
    {
        0x001: "gpu_idle",
        0x002: "applications_clocks_setting",
        0x004: "sw_power_cap",
        0x008: "hw_slowdown",
        0x010: "sync_boost",
        0x020: "sw_thermal_slowdown",
        0x040: "hw_thermal_slowdown",
        0x080: "hw_power_brake_slowdown",
        0x100: "display_clock_setting",
    }
)
"""Bits of nvmlDeviceGetCurrentClocksEventReasons (NVML API reference, "NvmlClocksEventReasons")."""

_GRAPHICS_SM_CLOCK, _MEMORY_CLOCK, _TEMPERATURE_GPU = 1, 2, 0
_VIOLATIONS: Final[Mapping[int, str]] = MappingProxyType(
    {0: "power_violation", 1: "thermal_violation"}
)
"""NVML_PERF_POLICY_POWER and _THERMAL: nanoseconds for which they held clocks down."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DeviceReading:
    """One look at a card; a value its driver does not give is None.

    Attributes:
        at_seconds: monotonic.
        clock_event_bits: mask of `CLOCK_EVENT_BITS`.
        energy_joules: since the driver was loaded.
        violation_ns: policy → time it held clocks down since then.
    """

    at_seconds: float
    sm_clock_hertz: float | None
    memory_clock_hertz: float | None
    power_watts: float | None
    energy_joules: float | None
    temperature_celsius: float | None
    clock_event_bits: int | None
    violation_ns: Mapping[str, int] = field(default_factory=dict)


class Device:
    """One card, by its UUID."""

    def __init__(self, library: Any, handle: Any, now: Callable[[], float]) -> None:
        """Hold a handle of an initialised library; `open_device` makes these."""
        self._library = library
        self._handle = handle
        self._now = now

    def read(self) -> DeviceReading:
        """Everything once; about a millisecond."""
        handle = self._handle
        reasons = self._ask("nvmlDeviceGetCurrentClocksEventReasons", handle)
        if reasons is None:  # the name before driver 535
            reasons = self._ask("nvmlDeviceGetCurrentClocksThrottleReasons", handle)
        violations = {}
        for policy, name in _VIOLATIONS.items():
            status = self._ask("nvmlDeviceGetViolationStatus", handle, policy)
            if status is not None:
                violations[name] = int(status.violationTime)
        return DeviceReading(
            at_seconds=self._now(),
            sm_clock_hertz=_scaled(
                self._ask("nvmlDeviceGetClockInfo", handle, _GRAPHICS_SM_CLOCK), 1e6
            ),
            memory_clock_hertz=_scaled(
                self._ask("nvmlDeviceGetClockInfo", handle, _MEMORY_CLOCK), 1e6
            ),
            power_watts=_scaled(self._ask("nvmlDeviceGetPowerUsage", handle), 1e-3),
            energy_joules=_scaled(self._ask("nvmlDeviceGetTotalEnergyConsumption", handle), 1e-3),
            temperature_celsius=_scaled(
                self._ask("nvmlDeviceGetTemperature", handle, _TEMPERATURE_GPU), 1.0
            ),
            clock_event_bits=None if reasons is None else int(reasons),
            violation_ns=violations,
        )

    def _ask(self, function: str, *arguments: Any) -> Any:
        """The answer of one function, or None where the driver or the binding has none."""
        call = getattr(self._library, function, None)
        if call is None:
            return None
        try:
            return call(*arguments)
        except self._library.NVMLError:
            return None


def open_device(
    uuid: str,
    *,
    now: Callable[[], float],
    load: Callable[[str], Any] = importlib.import_module,
) -> Device | str:
    """The card with this UUID, or why it cannot be watched.

    Args:
        uuid: as `nvidia-smi` prints it, e.g. `GPU-…`; visible-device settings do not move it.
        now: monotonic seconds.
        load: imports `pynvml`.
    """
    try:
        library = load("pynvml")
    except ImportError:
        return f"package {PACKAGE} is not installed"
    try:
        library.nvmlInit()
        return Device(library, library.nvmlDeviceGetHandleByUUID(uuid), now)
    except library.NVMLError as error:
        return f"NVML does not answer: {error}"


def window_telemetry(
    start: DeviceReading | str, end: DeviceReading | str
) -> tuple[Telemetry, dict[str, str]]:
    """Telemetry of a window, and a reason by dotted path for what is not known.

    Clocks and temperature are means of both ends; power is the mean over the window where the card counts energy.
    """
    if isinstance(start, str) or isinstance(end, str):
        return Telemetry(), {"telemetry": start if isinstance(start, str) else str(end)}
    energy = _difference(start.energy_joules, end.energy_joules)
    seconds = end.at_seconds - start.at_seconds
    values = {
        name: _mean(getattr(start, name), getattr(end, name))
        for name in ("sm_clock_hertz", "memory_clock_hertz", "temperature_celsius", "power_watts")
    }
    if energy is not None and seconds > 0:
        values["power_watts"] = energy / seconds
    values["energy_joules"] = energy
    bits = (start.clock_event_bits or 0) | (end.clock_event_bits or 0)
    reasons = [name for bit, name in CLOCK_EVENT_BITS.items() if bits & bit]
    reasons += [
        name
        for name, before in start.violation_ns.items()
        if end.violation_ns.get(name, before) > before
    ]
    telemetry = Telemetry(**values, clock_event_reasons=tuple(reasons))
    return telemetry, {
        f"telemetry.{name}": "the driver does not give it"
        for name, value in values.items()
        if value is None
    }


def _scaled(value: float | None, factor: float) -> float | None:
    return None if value is None else float(value) * factor


def _difference(start: float | None, end: float | None) -> float | None:
    return None if start is None or end is None else end - start


def _mean(start: float | None, end: float | None) -> float | None:
    known = [value for value in (start, end) if value is not None]
    return fmean(known) if known else None
