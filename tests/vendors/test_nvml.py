"""The adapter against a fake of pynvml that answers as the real one does: integers in MHz, mW, mJ, °C and bit masks."""

from types import SimpleNamespace

import pytest

from lanewise.vendors import nvml


class NVMLError(Exception):
    pass


class FakeNvml:
    """One card; functions named in `unsupported` raise as an old driver does."""

    NVMLError = NVMLError

    def __init__(self, *, unsupported=(), mask=0x4, init_error=None):
        self.unsupported, self.mask, self.init_error = unsupported, mask, init_error
        self.energy_mj, self.thermal_ns, self.sm_mhz = 1_000_000, 0, 1500

    def _check(self, name):
        if name in self.unsupported:
            raise NVMLError("Not Supported")

    def nvmlInit(self):
        if self.init_error:
            raise NVMLError(self.init_error)

    def nvmlDeviceGetHandleByUUID(self, uuid):
        assert uuid == "GPU-1"
        return "handle"

    def nvmlDeviceGetClockInfo(self, handle, kind):
        self._check("clock")
        return {1: self.sm_mhz, 2: 2619}[kind]

    def nvmlDeviceGetPowerUsage(self, handle):
        return 300_000

    def nvmlDeviceGetTotalEnergyConsumption(self, handle):
        self._check("energy")
        return self.energy_mj

    def nvmlDeviceGetTemperature(self, handle, sensor):
        return 60

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, handle):
        return self.mask

    def nvmlDeviceGetViolationStatus(self, handle, policy):
        self._check("violation")
        return SimpleNamespace(violationTime=self.thermal_ns if policy == 1 else 0)


def opened(fake, clock=lambda: 0.0):
    return nvml.open_device("GPU-1", now=clock, load=lambda name: fake)


def test_a_window_of_ten_seconds():
    fake, now = FakeNvml(), [0.0]
    device = opened(fake, lambda: now[0])
    start = device.read()
    now[0], fake.energy_mj, fake.sm_mhz, fake.mask, fake.thermal_ns = 10.0, 8_000_000, 1700, 0x40, 5
    telemetry, missing = nvml.window_telemetry(start, device.read())
    assert telemetry.energy_joules == pytest.approx(7000.0)
    assert telemetry.power_watts == pytest.approx(700.0), "the mean over the window, not an instant"
    assert telemetry.sm_clock_hertz == 1.6e9
    assert telemetry.memory_clock_hertz == 2.619e9
    assert telemetry.temperature_celsius == 60.0
    assert telemetry.clock_event_reasons == (
        "sw_power_cap",
        "hw_thermal_slowdown",
        "thermal_violation",
    )
    assert missing == {}


def test_the_newer_name_of_clock_events_is_preferred():
    fake = FakeNvml()
    fake.nvmlDeviceGetCurrentClocksEventReasons = lambda handle: 0x8
    assert opened(fake).read().clock_event_bits == 0x8


def test_what_a_driver_does_not_give_is_null_with_a_reason():
    device = opened(FakeNvml(unsupported=("clock", "energy", "violation")))
    telemetry, missing = nvml.window_telemetry(device.read(), device.read())
    assert telemetry.sm_clock_hertz is None
    assert telemetry.power_watts == 300.0, "without a counter the mean of both instants"
    assert set(missing) == {
        "telemetry.sm_clock_hertz",
        "telemetry.memory_clock_hertz",
        "telemetry.energy_joules",
    }


def test_a_missing_package_or_driver_is_a_reason():
    def absent(name):
        raise ImportError(name)

    reason = nvml.open_device("GPU-1", now=lambda: 0.0, load=absent)
    assert reason == "package nvidia-ml-py is not installed"
    refused = opened(FakeNvml(init_error="Driver Not Loaded"))
    assert refused == "NVML does not answer: Driver Not Loaded"
    telemetry, missing = nvml.window_telemetry(reason, reason)
    assert telemetry.model_dump(exclude_defaults=True) == {}
    assert missing == {"telemetry": reason}
