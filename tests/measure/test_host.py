"""Windows between two readings, by hand; and the real counters of this system, where it has them."""

import os
import sys

import pytest

from lanewise.measure.host import (
    SELF,
    HostReading,
    ProcessReading,
    SystemHost,
    host_window,
    huge_page_bytes,
    missing_host_reasons,
    parse_cpu_list,
)

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc is Linux")


def reading(at, *, total, busy, steal=0.0, processes=None, frequency=None, cores=(1,)):
    return HostReading(
        at_seconds=at,
        cores=cores,
        total_seconds=total,
        busy_seconds=busy,
        steal_seconds=steal,
        frequency_hertz=frequency,
        processes=processes or {},
    )


def process(cpu, switches=0, faults=0):
    return ProcessReading(cpu_seconds=cpu, involuntary_switches=switches, major_faults=faults)


def test_foreign_load_is_what_neither_arm_nor_the_lab_used():
    start = reading(
        0,
        total=100,
        busy=50,
        steal=1,
        frequency=2e9,
        processes={7: process(1), 8: process(1), SELF: process(3)},
    )
    end = reading(
        10,
        total=110,
        busy=59,
        steal=1.5,
        frequency=3e9,
        processes={7: process(5, 4, 2), 8: process(4, 1, 0), SELF: process(3.5)},
    )
    window = host_window(start, end, own=7, pinned=True)
    # busy 9 s = 4 (arm A) + 3 (arm B) + 0.5 (lab) + 1.5 of others, in 10 s of one processor
    assert window.foreign_load_ratio == pytest.approx(0.15)
    assert window.steal_ratio == pytest.approx(0.05)
    assert (window.cpu_seconds, window.involuntary_switches, window.major_faults) == (4.0, 4, 2)
    assert window.frequency_hertz == 2.5e9
    assert (window.window_seconds, window.cores, window.pinned) == (10, (1,), True)


def test_a_clock_tick_never_makes_load_negative():
    start = reading(0, total=10, busy=5, processes={7: process(0)})
    end = reading(1, total=11, busy=5.99, processes={7: process(1.0)})
    assert host_window(start, end, own=7, pinned=True).foreign_load_ratio == 0.0


def test_a_process_that_is_gone_leaves_the_load_unknown_with_a_reason():
    start = reading(0, total=10, busy=5, processes={7: process(0), 8: process(0)})
    end = reading(1, total=11, busy=6, processes={7: process(1.0)})
    window = host_window(start, end, own=8, pinned=False)
    assert (window.foreign_load_ratio, window.cpu_seconds) == (None, None)
    reasons = missing_host_reasons(window, "")
    assert reasons["host.foreign_load_ratio"] == "a process of the window ended before it"
    assert {path.removeprefix("host.") for path in reasons} == {
        name for name, value in window.model_dump().items() if value is None
    }


def test_counters_that_stand_still_or_cannot_be_read_become_a_reason():
    still = reading(0, total=10, busy=5)
    later = reading(1, total=10, busy=5)
    assert "stood still" in host_window(still, later, own=7, pinned=True)
    assert host_window("no counters", later, own=7, pinned=True) == "no counters"
    assert host_window(still, "gone", own=7, pinned=True) == "gone"
    assert missing_host_reasons(None, "why") == {"host": "why"}


@pytest.mark.parametrize(("text", "cores"), [("0-3,8\n", {0, 1, 2, 3, 8}), ("5", {5})])
def test_lists_of_processors(text, cores):
    assert parse_cpu_list(text) == cores


def test_huge_pages_of_a_process(tmp_path):
    rollup = tmp_path / "rollup"
    rollup.write_text("Rss:  100 kB\nAnonHugePages:     4096 kB\n")
    assert huge_page_bytes(rollup) == 4096 * 1024
    assert huge_page_bytes(tmp_path / "none") is None


@linux
def test_the_real_counters_of_this_process():
    host = SystemHost()
    cores = host.usable_cores()
    found = host.read(cores, (SELF, 2**22 + 1))
    assert not isinstance(found, str)
    assert found.total_seconds >= found.busy_seconds > 0
    assert set(found.processes) == {SELF}, "a process that does not exist is left out"
    assert found.processes[SELF].cpu_seconds > 0
    assert found.processes[SELF].involuntary_switches >= 0
    assert found.processes[SELF].major_faults >= 0
    assert cores[0] in host.siblings(cores[0])
    assert "other processors" in host.read((10**6,), ())


@linux
def test_a_processor_is_found_by_its_number_where_others_are_switched_off(tmp_path, monkeypatch):
    monkeypatch.setattr("lanewise.measure.host.PROC", tmp_path)
    ticks = os.sysconf("SC_CLK_TCK")
    lines = {
        0: (1, 0, 0, 99, 0, 0, 0, 0),
        2: (40, 1, 2, 30, 5, 3, 4, 15),
        4: (2, 0, 0, 98, 0, 0, 0, 0),
    }
    listed = [
        f"cpu{core} " + " ".join(str(seconds * ticks) for seconds in row) + " 7 0"
        for core, row in lines.items()
    ]
    (tmp_path / "stat").write_text("\n".join(["cpu  1 2 3", *listed, "intr 5"]))
    found = SystemHost().read((2,), ())
    assert (found.total_seconds, found.busy_seconds, found.steal_seconds) == (100.0, 50.0, 15.0)
    assert found.frequency_hertz is None, "its list has no numbers"
    assert "other processors" in SystemHost().read((1,), ()), "it is switched off"
    (tmp_path / "stat").write_text("cpu0 odd")
    assert "cannot be read" in SystemHost().read((0,), ())


@linux
def test_all_threads_of_a_process_are_moved():
    import threading

    host, before, moved, go_on = SystemHost(), os.sched_getaffinity(0), [], threading.Event()

    def wait():
        go_on.wait(10)
        moved.append(os.sched_getaffinity(0))

    thread = threading.Thread(target=wait)
    thread.start()
    try:
        host.restrict({min(before)})
        go_on.set()
        thread.join()
        assert moved == [{min(before)}]
        assert os.sched_getaffinity(0) == {min(before)}
    finally:
        host.restrict(before)


def test_elsewhere_the_reason_is_said(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    assert SystemHost().read((0,), ()) == "darwin keeps no such counters per processor"
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    assert SystemHost().usable_cores() is None
