import pytest

from lanewise.measure.device_events import StepEvents, event_wall_gap_ratio


class FakeEvent:
    """Records the time of a fake device."""

    now_ms = 0.0
    waits = 0

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


def test_the_gap_is_relative_to_the_wall():
    assert event_wall_gap_ratio([0.9, 1.0], [1.0, 1.0]) == pytest.approx(0.05)
    assert event_wall_gap_ratio([1.1, 1.0], [1.0, 1.0]) == pytest.approx(0.05)
    assert event_wall_gap_ratio([], []) is None
    with pytest.raises(ValueError, match="1 steps by events, 2"):
        event_wall_gap_ratio([1.0], [1.0, 1.0])
