import pytest

from lanewise.lab.gates.timing import (
    event_wall_closure,
    goodput_closure,
    host_bound,
    steady_state,
)
from tests.lab.gates.blocks import block


def test_goodput_that_closes():
    gate = goodput_closure(block())
    assert gate.ok
    assert gate.received == "largest gap 0.0000%"


@pytest.mark.parametrize(
    ("changes", "ok"),
    [
        ({"goodput.wall_duration_seconds": 4.504}, True),  # 0.09 %
        ({"goodput.wall_duration_seconds": 4.506}, False),  # 0.13 %
        ({"goodput.wall_duration_seconds": 4.0, "goodput.badput_seconds.other": -0.25}, False),
        ({"goodput": None}, True),
    ],
)
def test_goodput_is_added_up_again(changes, ok):
    assert goodput_closure(block(changes)).ok is ok


@pytest.mark.parametrize(
    ("gap_ms", "step_ms", "between_ms", "ok"),
    [
        (0.0, 1000.0, None, True),
        (5.0, 1000.0, None, True),
        (5.1, 1000.0, None, False),
        (5.1, 1000.0, 0.2, True),  # 4.9 ms that nobody named
        (0.26, 51.0, 0.26, True),  # an H100: read-out alone
        (0.8, 51.0, 0.8, True),
        (0.8, 51.0, 0.5, False),  # 0.3 ms unnamed, 0.255 allowed
        (0.5, 1.5, 0.1, False),  # a short step gets no half millisecond for nothing
        (0.5, 1.5, 0.46, True),
        (0.04, 1.0, None, True),  # an event lags some microseconds
        (0.06, 1.0, None, False),
    ],
)
def test_events_and_wall_time_agree_but_for_what_the_host_names(gap_ms, step_ms, between_ms, ok):
    changes = {
        "timing.event_wall_gap_ratio": gap_ms / step_ms,
        "timing.step_duration_seconds.mean": step_ms / 1e3,
        "timing.between_steps_seconds": between_ms and between_ms / 1e3,
    }
    gate = event_wall_closure(block(changes))
    assert gate.ok is ok
    assert all(fault.structural for fault in gate.faults)


def test_the_gate_names_what_the_host_does_between_steps():
    changes = {
        "timing.event_wall_gap_ratio": 0.012,
        "timing.step_duration_seconds.mean": 0.05,
        "timing.between_steps_seconds": 0.0005,
    }
    gate = event_wall_closure(block(both=changes))
    assert gate.received == "largest gap 0.200% of 1.200%; the host takes 1.000% between steps"


@pytest.mark.parametrize(
    ("busy", "text"),
    [
        (None, None),
        (0.0495, None),
        (0.0130, "host-bound: the device works 26% of arm B's step of 50.00 ms"),
    ],
)
def test_a_device_that_waits_for_its_host_is_said_to_and_no_fault(busy, text):
    changes = {
        "profile.device_busy_seconds": busy,
        "timing.step_duration_seconds.mean": 0.05,
    }
    assert host_bound(block(changes)) == text


def test_without_events_the_reason_is_shown():
    assert event_wall_closure(block()).received == "no device events on a CPU"


def test_steady_state():
    assert steady_state(block()).ok
    found = steady_state(block(steady=False, warmup_reason="no steady state: it drifts"))
    assert [fault.text for fault in found.faults] == ["no steady state: it drifts"]
    assert not found.faults[0].structural
    late = steady_state(block(warmup_steps=16))  # 2 lead steps and 7 of 8 quads
    assert late.faults[0].text == "1 quads left after 16 warm-up steps, 2 are needed"
