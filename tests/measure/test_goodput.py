import contextlib
import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lanewise.measure.goodput import CATEGORIES, GoodputClock
from lanewise.receipts.schema import BADPUT_CATEGORIES, Goodput


class FakeClock:
    """Nanoseconds that move only when told, or by fixed ticks on every reading."""

    def __init__(self, ticks: int = 0) -> None:
        self.now_ns = 1_000
        self.ticks = ticks

    def __call__(self) -> int:
        self.now_ns += self.ticks
        return self.now_ns

    def advance(self, seconds: float) -> None:
        self.now_ns += round(seconds * 1e9)


def summary(clock: GoodputClock) -> Goodput:
    result = clock.summary()
    assert result is not None
    return result


def test_step_and_badput_are_separate_parts_of_wall_time():
    time = FakeClock()
    clock = GoodputClock(time)
    time.advance(1)
    with clock.span("step"):
        time.advance(4)
    with clock.span("eval"):
        time.advance(3)
    result = summary(clock)
    assert result.wall_duration_seconds == 8
    assert result.step_seconds == 4
    assert result.goodput_ratio == 0.5
    assert result.badput_seconds["eval"] == 3
    assert result.badput_seconds["other"] == 1


def test_a_nested_span_pauses_the_outer_one():
    time = FakeClock()
    clock = GoodputClock(time)
    with clock.span("step"):
        time.advance(2)
        with clock.span("data_wait"):
            time.advance(5)
        time.advance(1)
    result = summary(clock)
    assert (result.step_seconds, result.badput_seconds["data_wait"]) == (3, 5)
    assert result.badput_seconds["other"] == 0


def test_a_step_that_raised_is_disruption_and_its_data_wait_stays_data_wait():
    time = FakeClock()
    clock = GoodputClock(time)

    def failing_step() -> None:
        with clock.span("step"):
            with clock.span("data_wait"):
                time.advance(2)
            time.advance(7)
            raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        failing_step()
    with clock.span("step"):
        time.advance(1)
    result = summary(clock)
    assert result.step_seconds == 1
    assert result.badput_seconds["disruption"] == 7
    assert result.badput_seconds["data_wait"] == 2


def test_a_raising_badput_span_keeps_its_category():
    time = FakeClock()
    clock = GoodputClock(time)

    def failing_save() -> None:
        with clock.span("checkpoint_save"):
            time.advance(2)
            raise OSError("no space left")

    with pytest.raises(OSError, match="no space left"):
        failing_save()
    assert summary(clock).badput_seconds["checkpoint_save"] == 2


def test_waiting_for_the_other_arm_does_not_lower_goodput():
    time = FakeClock()
    clock = GoodputClock(time)
    with clock.span("turn_wait"):
        time.advance(5)
    with clock.span("step"):
        time.advance(4)
    time.advance(1)
    assert summary(clock).goodput_ratio == 0.8


def test_goodput_is_zero_without_a_step_or_without_time():
    time = FakeClock()
    clock = GoodputClock(time)
    assert summary(clock).goodput_ratio == 0
    with clock.span("turn_wait"):
        time.advance(5)
    assert summary(clock).goodput_ratio == 0


def test_open_spans_count_up_to_now_and_stay_open():
    time = FakeClock()
    clock = GoodputClock(time)
    with clock.span("step"):
        time.advance(1)
        with clock.span("eval"):
            time.advance(2)
            result = summary(clock)
            assert (result.step_seconds, result.badput_seconds["eval"]) == (1, 2)
            time.advance(3)
    assert summary(clock).badput_seconds["eval"] == 5


def test_other_is_never_clamped():
    time = FakeClock()
    clock = GoodputClock(time)
    with clock.span("eval"):
        time.advance(3)
    time.advance(-1)
    assert summary(clock).badput_seconds["other"] == -1


def test_every_category_of_the_receipt_is_a_span_and_is_reported():
    clock = GoodputClock(FakeClock())
    for category in BADPUT_CATEGORIES:
        with clock.span(category):
            pass
    assert set(summary(clock).badput_seconds) == {*BADPUT_CATEGORIES, "other"}


@pytest.mark.parametrize("enabled", [True, False])
def test_an_unknown_category_names_the_nearest(enabled: bool):
    with pytest.raises(ValueError, match=r"'data_wiat'.*Did you mean 'data_wait'"):
        GoodputClock(FakeClock(), enabled=enabled).span("data_wiat")


def test_a_disabled_clock_hands_out_one_shared_no_op():
    clock = GoodputClock(FakeClock(), enabled=False)
    assert len({id(clock.span(category)) for category in CATEGORIES}) == 1
    with clock.span("step"), clock.span("data_wait"):
        pass
    assert clock.summary() is None


node_heads = st.tuples(
    st.sampled_from(CATEGORIES), st.integers(0, 10**12), st.integers(0, 10**12), st.booleans()
)
trees = st.recursive(
    st.just([]), lambda below: st.lists(st.tuples(node_heads, below), max_size=4), max_leaves=20
)


def walk(clock: GoodputClock, time: FakeClock, tree: list) -> None:
    for (category, before_ns, after_ns, fails), below in tree:
        with contextlib.suppress(LookupError), clock.span(category):
            time.now_ns += before_ns
            walk(clock, time, below)
            if fails:
                raise LookupError
        time.now_ns += after_ns


def own_time(tree: list) -> dict[str, int]:
    """Oracle: a span's own time is `before_ns`; `after_ns` belongs to whatever encloses it."""
    totals = dict.fromkeys((*CATEGORIES, "other"), 0)

    def visit(nodes: list, enclosing: str) -> None:
        for (category, before_ns, after_ns, fails), below in nodes:
            owner = "disruption" if category == "step" and fails else category
            totals[owner] += before_ns
            totals[enclosing] += after_ns
            visit(below, owner)

    visit(tree, "other")
    return totals


@settings(deadline=None)
@given(tree=trees)
def test_any_nesting_closes_exactly_to_wall_and_matches_the_oracle(tree: list):
    time = FakeClock()
    clock = GoodputClock(time)
    walk(clock, time, tree)
    result = summary(clock)
    expected = own_time(tree)
    got = {name: round(s * 1e9) for name, s in result.badput_seconds.items()}
    got["step"] = round(result.step_seconds * 1e9)
    assert got == expected
    assert sum(got.values()) == round(result.wall_duration_seconds * 1e9)


def test_time_inside_the_accounting_itself_is_not_lost():
    clock = GoodputClock(FakeClock(ticks=3))
    for category in itertools.islice(itertools.cycle(("step", "gc")), 10):
        with clock.span(category), clock.span("eval"):
            pass
    result = summary(clock)
    parts = result.step_seconds + sum(result.badput_seconds.values())
    assert parts == pytest.approx(result.wall_duration_seconds, abs=1e-15)
