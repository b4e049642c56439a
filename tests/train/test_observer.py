"""What observing costs: counted, clocked, and written into the receipt."""

import itertools
from pathlib import Path

import pytest

from lanewise.measure.goodput import GoodputClock
from lanewise.ops.observe import Observation
from lanewise.receipts.instruments import OBSERVER_KEY, ObserverCost
from lanewise.receipts.store import Store
from lanewise.train.observer import observer_cost, with_observer
from lanewise.train.run import Run
from lanewise.train.step_log import StepLog
from tests.models.micro import micro_lane
from tests.train.runs import experiment, micro_request
from tests.train.test_loop import loop

MS = 1_000_000


def ticking():
    """A clock that moves by a millisecond whenever it is read."""
    return itertools.count(0, MS).__next__


def test_every_part_is_its_number_times_its_clocked_cost() -> None:
    """By a clock of 1 ms a read: an empty call takes 1 read, a span 2 more, a launch none, a step of two waits 10."""
    goodput = GoodputClock(ticking())
    training = loop(goodput=goodput, accumulation_steps=2)
    log = StepLog(ticking())
    for _ in range(3):
        log.take(training.step(), start_seconds=0.0)
    with log.protocol():
        pass
    seen = Observation(op="add_norm", backends=("fused.torch",), launches=12, proof="counter")
    cost = observer_cost(log, goodput, training, {"add_norm": seen})
    assert cost is not None
    assert cost.steps == 3
    # A step span and two waits for data in each of three steps, two reads of the clock a span.
    assert cost.spans_seconds == pytest.approx(9 * 0.002)
    assert cost.launch_counters_seconds == 0.0
    assert cost.clock_reads_seconds == pytest.approx(3 * (3 + 4) * 0.001)
    # The loop and the log each read the clock once more per step than where they began.
    assert cost.readout_seconds == pytest.approx(3 * (0.001 + 0.001))
    assert cost.protocol_seconds == pytest.approx(0.001)
    # Between the two reads around a step lie those around its two waits: five intervals.
    step_seconds = 3 * 0.005
    assert cost.in_step_ratio == pytest.approx((0.018 + 0.021) / step_seconds)
    assert cost.total_ratio == pytest.approx((0.018 + 0.021 + 0.006) / step_seconds)
    assert cost.total_seconds == pytest.approx(0.018 + 0.021 + 0.006 + 0.001)


def test_nothing_is_accounted_without_steps_or_with_goodput_off() -> None:
    log, training = StepLog(ticking()), loop()
    assert observer_cost(log, GoodputClock(), training, {}) is None
    log.take(training.step(), start_seconds=0.0)
    off = GoodputClock(enabled=False)
    assert observer_cost(log, off, training, {}) is None
    assert with_observer(None, None) is None


def test_a_run_says_what_observing_it_cost(tmp_path: Path) -> None:
    run = Run(micro_request(tmp_path, steps=None, experiment=experiment()))
    for _ in range(5):
        run.step()
    run.finish()
    (receipt,) = Store(str(tmp_path / "store")).iter_receipts()
    cost = ObserverCost.model_validate(receipt.extensions[OBSERVER_KEY])
    assert cost.steps == 5
    assert receipt.goodput is not None
    assert receipt.goodput.observer_seconds == pytest.approx(cost.total_seconds)
    assert "goodput.observer_seconds" not in receipt.missing
    assert cost.spans_seconds > 0
    assert cost.readout_seconds > 0
    assert 0 < cost.in_step_ratio < cost.total_ratio


def test_an_unobserved_run_has_no_partition_to_put_it_in(tmp_path: Path) -> None:
    lane = micro_lane()
    off = lane.observability.model_copy(update={"goodput": False, "measurements": False})
    run = Run(micro_request(tmp_path, lane=lane.model_copy(update={"observability": off})))
    run.step()
    run.finish()
    (receipt,) = Store(str(tmp_path / "store")).iter_receipts()
    assert receipt.goodput is None
    assert OBSERVER_KEY not in receipt.extensions


def test_opening_the_windows_is_no_part_of_a_step_and_of_what_lies_between_steps(
    tmp_path: Path,
) -> None:
    class SlowToOpen:
        """A machine whose counters take a whole second to open."""

        def __init__(self, clock: list[int]) -> None:
            self.clock = clock

        def usable_cores(self) -> tuple[int, ...]:
            return (0,)

        def read(self, cores: object, process_ids: object) -> str:
            self.clock[0] += 1000 * MS
            return "no counters"

    now = [0]

    def clock() -> int:
        now[0] += MS // 1000
        return now[0]

    run = Run(micro_request(tmp_path), clock=clock, host=SlowToOpen(now))  # type: ignore[arg-type]
    prepared = run.goodput.summary()
    for _ in range(3):
        run.step()
    total = run.goodput.summary()
    assert prepared is not None
    assert total is not None
    grown = total.badput_seconds["training_prep"] - prepared.badput_seconds["training_prep"]
    assert grown == pytest.approx(1.0, rel=0.01)
    assert run.log.watching_ns < 100 * MS
    assert len(run.log.between_seconds) == 3
    assert max(run.log.between_seconds) < 0.1
    accounted = run.log.watching_ns + run.log.writing_ns
    assert sum(run.log.between_seconds) > accounted / 1e9
