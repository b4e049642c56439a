import pytest

from lanewise.lab.gates.timing import event_wall_closure, goodput_closure, steady_state
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
    ("gap", "step_seconds", "ok"),
    [
        (0.0, 1.0, True),
        (0.005, 1.0, True),
        (0.0051, 1.0, False),
        (0.0099, 0.05, True),  # half a millisecond of 50 ms is 1 %
        (0.0101, 0.05, False),
    ],
)
def test_events_and_wall_time_agree_within_half_a_percent_or_half_a_millisecond(
    gap, step_seconds, ok
):
    changes = {
        "timing.event_wall_gap_ratio": gap,
        "timing.step_duration_seconds.mean": step_seconds,
    }
    gate = event_wall_closure(block(changes))
    assert gate.ok is ok
    assert all(fault.structural for fault in gate.faults)


def test_without_events_the_reason_is_shown():
    assert event_wall_closure(block()).received == "no device events on a CPU"


def test_steady_state():
    assert steady_state(block()).ok
    found = steady_state(block(steady=False, warmup_reason="no steady state: it drifts"))
    assert [fault.text for fault in found.faults] == ["no steady state: it drifts"]
    assert not found.faults[0].structural
    late = steady_state(block(warmup_steps=16))  # 2 lead steps and 7 of 8 quads
    assert late.faults[0].text == "1 quads left after 16 warm-up steps, 2 are needed"
