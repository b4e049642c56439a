import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lanewise.measure.steps import StepRecorder, summarise

positive = st.floats(1e-6, 1e6)


def test_series_keeps_every_step_in_order_and_tags_by_index():
    recorder = StepRecorder()
    for index, tags in enumerate([("compile",), (), ("gc", "checkpoint"), ("gc",)]):
        recorder.record(
            step=100 + index,
            start_seconds=2.0 * index,
            duration_seconds=1.5,
            data_wait_seconds=0.25,
            loss=3.0 - index,
            grad_norm=1.0,
            tags=tags,
        )
    series = recorder.series()
    assert series.step == (100, 101, 102, 103)
    assert series.start_seconds == (0.0, 2.0, 4.0, 6.0)
    assert series.duration_seconds == recorder.durations_seconds == (1.5,) * 4
    assert series.loss == (3.0, 2.0, 1.0, 0.0)
    assert series.tags == {"checkpoint": (2,), "compile": (0,), "gc": (2, 3)}
    assert recorder.tag_counts() == {"checkpoint": 1, "compile": 1, "gc": 2}
    assert recorder.tagged("compile", "checkpoint", "eval") == {0, 2}
    assert len(recorder) == 4


def test_a_later_record_does_not_change_a_series_already_taken():
    recorder = StepRecorder()
    before = recorder.series()
    recorder.record(
        step=0, start_seconds=0, duration_seconds=1, data_wait_seconds=0, loss=1, grad_norm=1
    )
    assert before.step == ()


def test_summary_of_known_numbers():
    summary = summarise([1.0, 2.0, 3.0, 4.0, 10.0])
    assert (summary.count, summary.median, summary.mean, summary.mad) == (5, 3.0, 4.0, 1.0)
    assert summary.p10 == pytest.approx(1.4)
    assert summary.p90 == pytest.approx(7.6)


def test_summary_of_nothing_is_refused():
    with pytest.raises(ValueError, match="no step durations"):
        summarise([])


@settings(deadline=None)
@given(durations=st.lists(positive, min_size=1, max_size=40), factor=st.floats(0.01, 100))
def test_summary_scales_with_its_unit_and_ignores_order(durations: list[float], factor: float):
    one = summarise(durations)
    other = summarise([value * factor for value in reversed(durations)])
    for field in ("median", "mean", "p10", "p90", "mad"):
        assert math.isclose(
            getattr(other, field), getattr(one, field) * factor, rel_tol=1e-9, abs_tol=1e-9
        )
    assert min(durations) <= one.p10 <= one.median <= one.p90 <= max(durations)


def test_loss_parts_keep_their_place_among_the_steps() -> None:
    recorder = StepRecorder()
    for step, parts in enumerate([{"mtp_1": 1.5}, {"mtp_1": float("nan"), "stp": 0.25}, {}]):
        recorder.record(
            step=step,
            start_seconds=float(step),
            duration_seconds=1.0,
            data_wait_seconds=0.0,
            loss=5.0,
            grad_norm=1.0,
            loss_parts=parts,
        )
    assert recorder.series().loss_parts == {
        "mtp_1": (1.5, None, None),
        "stp": (None, 0.25, None),
    }
    assert recorder.loss_parts()["stp"] == (0.25,)
