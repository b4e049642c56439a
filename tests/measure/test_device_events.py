import pytest

from lanewise.measure.device_events import StepEvents, event_wall_gap_ratio


class FakeEvent:
    """Records the time of a fake device."""

    now_ms = 0.0
    waits = 0
    made = 0

    def __init__(self):
        FakeEvent.made += 1

    def record(self):
        self.at = FakeEvent.now_ms

    def synchronize(self):
        FakeEvent.waits += 1

    def elapsed_time(self, end):
        return end.at - self.at


def test_time_between_steps_does_not_count_and_nothing_waits_until_the_end():
    events = StepEvents(FakeEvent)
    for length in (10.0, 20.0):
        events.before_step()
        FakeEvent.now_ms += length
        events.after_step()
        FakeEvent.now_ms += 1000.0  # the other arm's turn
    assert FakeEvent.waits == 0
    assert events.seconds() == pytest.approx((0.010, 0.020))
    assert FakeEvent.waits == 1
    assert StepEvents(FakeEvent).seconds() == ()


def test_a_long_run_makes_few_events_and_reads_every_step():
    before = FakeEvent.made
    events = StepEvents(FakeEvent)
    for length in range(1, 101):
        events.before_step()
        FakeEvent.now_ms += length
        events.after_step()
        FakeEvent.now_ms += 1000.0
    assert events.seconds() == pytest.approx([length / 1e3 for length in range(1, 101)])
    assert events.seconds() == events.seconds()
    assert FakeEvent.made - before == 4


def test_a_step_that_failed_leaves_nothing_behind():
    events = StepEvents(FakeEvent)
    events.before_step()
    FakeEvent.now_ms += 5.0
    events.before_step()
    FakeEvent.now_ms += 2.0
    events.after_step()
    assert events.seconds() == pytest.approx((0.002,))


def test_the_gap_is_relative_to_the_wall():
    assert event_wall_gap_ratio([0.9, 1.0], [1.0, 1.0]) == pytest.approx(0.05)
    assert event_wall_gap_ratio([1.1, 1.0], [1.0, 1.0]) == pytest.approx(0.05)
    assert event_wall_gap_ratio([], []) is None
    with pytest.raises(ValueError, match="1 steps by events, 2"):
        event_wall_gap_ratio([1.0], [1.0, 1.0])
