"""Meters of a GPU run against a fake of `torch.cuda`, and of the host against a fake machine."""

import pytest

from lanewise.measure.host import SELF, HostReading, ProcessReading
from lanewise.train.meters import CudaMeters, HostWatch, with_huge_pages


class FakeCuda:
    """Counters of a caching allocator, moved by the test."""

    def __init__(self):
        self.reserved, self.retries, self.ooms, self.now_ms = 100, 2, 1, 0.0
        self.calls = []

    def synchronize(self):
        self.calls.append("synchronize")

    def reset_peak_memory_stats(self):
        self.calls.append("reset")

    def memory_stats_as_nested_dict(self):
        return {"reserved_bytes": {"all": {"current": self.reserved}}}

    def max_memory_reserved(self):
        return 900

    def max_memory_allocated(self):
        return 700

    def memory_stats(self):
        return {"num_alloc_retries": self.retries, "num_ooms": self.ooms}

    def Event(self, *, enable_timing):  # as torch has it
        assert enable_timing
        cuda = self

        class Event:
            def record(self):
                self.at = cuda.now_ms

            def synchronize(self):
                pass

            def elapsed_time(self, end):
                return end.at - self.at

        return Event()


@pytest.fixture(name="cuda")
def cuda_fixture():
    return FakeCuda()


def meters(cuda):
    found = CudaMeters("GPU-1", cuda=cuda, open_device=lambda uuid, now: "no NVML here")
    found.start()
    return found


def test_retries_and_ooms_count_from_the_first_step(cuda):
    watching = meters(cuda)
    cuda.retries += 3
    cuda.ooms += 1
    record, missing = watching.memory("not profiled")
    assert (record.alloc_retries, record.ooms) == (3, 1)
    assert (record.peak_allocated_bytes, record.peak_reserved_bytes) == (700, 900)
    assert record.peak_device_used_bytes is None
    assert set(missing) == {"memory.peak_device_used_bytes"}
    assert cuda.calls == ["synchronize", "reset"]


def test_a_step_that_takes_memory_from_the_driver_is_tagged(cuda):
    watching = meters(cuda)

    def step(reserved):
        watching.before_step()
        cuda.now_ms += 8.0
        cuda.reserved = reserved
        return watching.after_step()

    assert [step(200), step(200), step(250), step(240)] == [("reserve",), (), ("reserve",), ()]
    assert watching.step_seconds() == pytest.approx((0.008,) * 4)


def test_without_nvml_the_reason_stands(cuda):
    telemetry, missing = meters(cuda).telemetry()
    assert telemetry.power_watts is None
    assert missing == {"telemetry": "no NVML here"}


class Machine:
    """A host whose processor 3 is busy half of the time with this process alone."""

    def __init__(self):
        self.at = 0.0

    def usable_cores(self):
        return (3,)

    def siblings(self, core):
        return frozenset({core})

    def restrict(self, cores):
        raise AssertionError(cores)

    def read(self, cores, process_ids):
        assert (tuple(cores), tuple(process_ids)) == ((3,), (SELF,))
        self.at += 10.0
        half = self.at / 2
        return HostReading(
            at_seconds=self.at,
            cores=(3,),
            total_seconds=self.at,
            busy_seconds=half,
            steal_seconds=0.0,
            frequency_hertz=None,
            processes={
                SELF: ProcessReading(cpu_seconds=half, involuntary_switches=0, major_faults=0)
            },
        )


def test_a_plain_run_watches_itself():
    watch = HostWatch(Machine(), None)
    assert watch.window() == "the run took no step"
    watch.start()
    window, missing = with_huge_pages(watch.window())
    assert (window.foreign_load_ratio, window.cpu_seconds, window.pinned) == (0.0, 5.0, False)
    assert missing["host.frequency_hertz"] == "the system does not tell the processors' frequency"
    assert with_huge_pages("no window") == (None, {"host": "no window"})
