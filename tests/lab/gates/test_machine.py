"""Every gate on the machine passes on good evidence, fails on bad, and says so where nothing was recorded."""

import pytest

from lanewise.lab.gates.machine import (
    clock_events,
    compile_cache,
    contention_ratio,
    host_quiet,
    memory_pressure,
)
from tests.lab.gates.blocks import block

COMPILED = {"compile.enabled": True}


def cached(state_a: str, state_b: str):
    return block(
        {"compile.cache_state": state_b}, control={"compile.cache_state": state_a}, both=COMPILED
    )


@pytest.mark.parametrize(
    ("states", "planned", "said"),
    [
        (("warm", "warm"), "warm", None),
        (("warm", "warm"), None, None),
        (("cold", "cold"), "cold", None),
        (("unused", "unused"), "warm", None),
        (("warm", "mixed"), None, "arm B: the compile cache was mixed"),
        (("warm", "cold"), None, "one compile cache was warm and another cold"),
        (("cold", "warm"), "warm", "arm A: the compile cache was cold, warm was planned"),
        (("cold", "warm"), "cold", "arm B: the compile cache was warm, cold was planned"),
    ],
)
def test_caches_are_all_warm_or_all_cold(states, planned, said):
    gate = compile_cache(cached(*states), planned)
    assert gate.ok is (said is None)
    if said is not None:
        assert said in gate.faults[0].text
        assert gate.faults[0].structural


def test_eager_runs_have_no_cache():
    gate = compile_cache(block(), "warm")
    assert gate.ok
    assert gate.received == "nothing is compiled"


@pytest.mark.parametrize(
    ("ooms", "retries", "ok"), [(0, 0, True), (None, None, True), (1, 0, False), (0, 3, False)]
)
def test_memory_pressure(ooms, retries, ok):
    gate = memory_pressure(block({"memory.ooms": ooms, "memory.alloc_retries": retries}))
    assert gate.ok is ok
    assert all(fault.structural for fault in gate.faults)


@pytest.mark.parametrize(
    ("events", "ok"),
    [
        ([], True),
        (["sw_power_cap", "sw_thermal_slowdown", "gpu_idle"], True),
        (["hw_thermal_slowdown"], False),
        (["hw_slowdown", "sw_power_cap"], False),
        (["hw_power_brake_slowdown"], False),
        (["sw_power_cap", "power_violation"], True),
        (["thermal_violation"], False),
    ],
)
def test_only_hardware_slowdowns_invalidate(events, ok):
    gate = clock_events(block({"telemetry.clock_event_reasons": events}))
    assert gate.ok is ok
    if events:
        assert events[0] in gate.check().detail or not ok


def test_without_telemetry_the_reason_is_shown():
    assert clock_events(block()).received == "no GPU"


@pytest.mark.parametrize(
    ("field", "value", "ok"),
    [
        ("foreign_load_ratio", 0.24, True),
        ("foreign_load_ratio", 0.26, False),
        ("steal_ratio", 0.09, True),
        ("steal_ratio", 0.11, False),
        ("foreign_load_ratio", None, True),
        ("steal_ratio", None, True),
    ],
)
def test_a_disturbed_block_costs_itself_and_no_more(field, value, ok):
    gate = host_quiet(block(both={f"host.{field}": value}))
    assert gate.ok is ok
    for fault in gate.faults:
        assert fault.disturbed
        assert not fault.structural
        assert fault.text.startswith("disturbed: ")


def test_both_arms_are_held_to_the_same_limit_and_said_once():
    one = host_quiet(block({"host.foreign_load_ratio": 0.9}))
    both = host_quiet(block(both={"host.foreign_load_ratio": 0.9}))
    assert len(one.faults) == len(both.faults) == 1


def test_the_busiest_visit_is_shown_and_what_was_not_recorded_is_said():
    busier = host_quiet(block({"host.foreign_load_ratio": 0.2, "host.steal_ratio": 0.09}))
    assert busier.received == "others 20.0%, hypervisor 9.0%"
    partly = host_quiet(block({"host": None}, control={"host.foreign_load_ratio": 0.1}))
    assert partly.received.startswith("others 10.0% (unknown in 1 of 2 visits), hypervisor ")


def test_durations_do_not_matter_to_the_limit():
    slow = {"timing.step_duration_seconds.median": 50.0, "host.foreign_load_ratio": 0.1}
    assert host_quiet(block(slow)).ok


@pytest.mark.parametrize(
    ("cores", "threads", "load", "expected"),
    [
        ([1], 1, 0.3, 0.3),  # pinned: no spare processor
        ([0, 1], 1, 0.5, 0.0),  # a neighbour fits on the other one
        ([0, 1], 1, 0.9, 0.8),  # 1.8 processors wanted beside ours, 1 is spare
        ([0, 1], 2, 0.25, 0.25),  # both are ours
        ([0], 4, 0.5, 0.5),
    ],
)
def test_load_that_spare_processors_take_disturbs_nobody(cores, threads, load, expected):
    evidence = block(
        {
            "host.cores": cores,
            "host.foreign_load_ratio": load,
            "environment.num_threads": threads,
        }
    )
    (receipt,) = evidence.receipts["B"]
    assert contention_ratio(receipt.host, receipt) == pytest.approx(expected)


def test_an_old_receipt_without_a_window_passes_and_says_so():
    gate = host_quiet(block(both={"host": None}))
    assert gate.ok
    assert gate.received == "not recorded"
