"""A planted delay is exact in time, absent from the numbers, and said in the receipt."""

from pathlib import Path

import pytest

from lanewise.errors import UsageError
from lanewise.receipts.instruments import PLANTED_KEY
from lanewise.receipts.store import Store
from lanewise.train.planted import WAKE_UP_NS, PlantedDelay
from lanewise.train.run import Run
from tests.train.runs import experiment, micro_request


class Clock:
    """Moves by a microsecond when it is read; a sleep oversleeps by a tenth of a millisecond."""

    def __init__(self) -> None:
        self.now_ns = 0

    def __call__(self) -> int:
        self.now_ns += 1_000
        return self.now_ns

    def sleep(self, seconds: float) -> None:
        self.now_ns += round(seconds * 1e9) + 100_000


@pytest.mark.parametrize("ratio", [0.0005, 0.02, 0.05, 1.0])
def test_a_step_takes_exactly_its_share_longer(ratio: float) -> None:
    clock = Clock()
    start_ns = clock()
    clock.now_ns += 100_000_000
    PlantedDelay(ratio, clock=clock, sleep=clock.sleep)(start_ns)
    took_ns = clock.now_ns - start_ns
    # One read of the clock may come after the end.
    assert took_ns == pytest.approx(100_000_000 * (1 + ratio), abs=5_000)


def test_short_delays_are_not_slept_through() -> None:
    clock = Clock()
    slept: list[float] = []
    PlantedDelay(0.1, clock=clock, sleep=slept.append)(clock.now_ns - WAKE_UP_NS)
    assert slept == []


def finished(folder: Path, ratio: float | None) -> tuple[Run, Store]:
    run = Run(micro_request(folder, steps=None, experiment=experiment(), planted_delay_ratio=ratio))
    for _ in range(4):
        run.step()
    run.finish()
    return run, Store(str(folder / "store"))


def test_training_computes_the_same_and_the_receipt_says_what_was_done(tmp_path: Path) -> None:
    losses = {}
    for ratio in (None, 0.5):
        folder = tmp_path / str(ratio)
        folder.mkdir()
        _, store = finished(folder, ratio)
        (receipt,) = store.iter_receipts()
        steps = store.read_steps(receipt.receipt_id)
        assert steps is not None
        losses[ratio] = steps.loss
        if ratio is None:
            assert PLANTED_KEY not in receipt.extensions
        else:
            delay = receipt.extensions[PLANTED_KEY]
            assert delay["step_time_ratio"] == 1.5
            assert "on purpose" in delay["note"]
    assert losses[None] == losses[0.5]


def test_plain_training_refuses_it(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="only a campaign's positive control"):
        Run(micro_request(tmp_path, planted_delay_ratio=0.05))
