import pytest

from lanewise.measure.loss_curve import WINDOW_STEPS, compare_losses, loss_curve
from lanewise.receipts.schema import StepSeries


def series(durations: list[float], losses: list[float | None]) -> StepSeries:
    count = len(durations)
    return StepSeries(
        step=tuple(range(count)),
        start_seconds=tuple(
            10.0 * step for step in range(count)
        ),  # with gaps: the other arm's turns
        duration_seconds=tuple(durations),
        data_wait_seconds=(0.0,) * count,
        loss=tuple(losses),
        grad_norm=(1.0,) * count,
    )


def falling(step_seconds: float, *, gain: float = 0.0, count: int = 40) -> StepSeries:
    return series([step_seconds] * count, [5.0 - 0.1 * step - gain for step in range(count)])


def test_a_curve_is_the_mean_of_the_last_steps_over_cumulated_step_time() -> None:
    curve = loss_curve(series([1.0, 2.0, 3.0], [6.0, 4.0, 2.0]))
    assert curve is not None
    assert curve.seconds == (1.0, 3.0, 6.0)
    assert curve.loss == (6.0, 5.0, 4.0)
    long = loss_curve(falling(1.0))
    assert long is not None
    middle = 39 - (WINDOW_STEPS - 1) / 2
    assert long.loss[-1] == pytest.approx(5.0 - 0.1 * middle)


def test_between_steps_it_is_linear_and_outside_it_stays() -> None:
    curve = loss_curve(series([1.0, 2.0], [6.0, 4.0]))
    assert curve is not None
    assert [curve.at(t) for t in (0.0, 1.0, 2.0, 3.0, 9.0)] == [6.0, 6.0, 5.5, 5.0, 5.0]


def test_a_slower_arm_of_equal_losses_loses_at_equal_time_only() -> None:
    """25 % slower: at the control's end it is 8 of 40 steps behind, 0.1 nats each."""
    found = compare_losses(falling(1.0), falling(1.25))
    assert found is not None
    assert (found.num_steps, found.seconds) == (40, 40.0)
    assert found.equal_steps.delta == 0.0
    assert found.equal_time.delta == pytest.approx(0.8)


def test_a_gain_at_equal_steps_can_be_a_loss_at_equal_time() -> None:
    found = compare_losses(falling(1.0), falling(1.25, gain=0.5))
    assert found is not None
    assert found.equal_steps.delta == pytest.approx(-0.5)
    assert found.equal_time.delta == pytest.approx(0.3)


def test_a_faster_arm_is_read_where_it_ends() -> None:
    found = compare_losses(falling(1.0), falling(0.8))
    assert found is not None
    assert found.seconds == pytest.approx(32.0)
    assert found.equal_time.delta == pytest.approx(-0.8)


def test_a_diverged_run_counts_up_to_there_and_not_at_all_without_a_step() -> None:
    broken = series([1.0] * 4, [5.0, 4.0, None, 3.0])
    found = compare_losses(falling(1.0), broken)
    assert found is not None
    assert (found.num_steps, found.seconds) == (2, 2.0)
    assert compare_losses(falling(1.0), series([1.0], [None])) is None
    assert compare_losses(series([], []), falling(1.0)) is None
