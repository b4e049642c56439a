"""A plain training run: steps until the end or a signal, checkpoints on the way, one receipt in every case."""

from __future__ import annotations

import contextlib
import math
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from lanewise.errors import UsageError
from lanewise.receipts.failures import InterruptedFailure
from lanewise.train.finished import Finished
from lanewise.train.loop import StepResult, manual_gc
from lanewise.train.run import Run


class StopRequest:
    """Set by a signal, looked at between steps.

    Attributes:
        reason: `Ctrl-C` or `SIGTERM`; None while nothing was asked.
    """

    def __init__(self) -> None:
        self.reason: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class SessionResult:
    """How a training run ended.

    Attributes:
        finished: its receipt.
        last: the last step of this part; None when none was taken.
        interrupted: `Ctrl-C` or `SIGTERM`, or None.
        diverged: why training could not go on, or None.
        checkpoint: folder of the last checkpoint written, or None.
    """

    finished: Finished
    last: StepResult | None
    interrupted: str | None
    diverged: str | None
    checkpoint: Path | None


def train_to(
    run: Run, steps: int, *, stop: StopRequest, on_step: Callable[[StepResult], None]
) -> SessionResult:
    """Train until `steps` optimizer steps have been taken since step 0, then write the receipt.

    A stop request takes effect after the step in progress: a checkpoint is written if the run has a directory, and
    the receipt says `aborted`. So it does when the loss is no longer finite; then no checkpoint is written. An error in a
    step or a checkpoint is written down in a receipt, then raised.

    Args:
        run: built, possibly resumed.
        steps: where to stop, counted from step 0.
        stop: looked at between steps.
        on_step: called after every step, outside its timing.

    Raises:
        UsageError: the checkpoint it resumed from is already that far.
        StoreError: a checkpoint or the receipt cannot be written.
        RunFailed: memory ran out, or the compiler gave up.
    """
    if run.next_step >= steps:
        raise UsageError(
            f"the checkpoint is at step {run.next_step} and --steps is {steps}; nothing is left to do, "
            "give a larger --steps"
        )
    last: StepResult | None = None
    diverged: str | None = None
    saved: Path | None = None
    interval = run.request.checkpoint_interval_steps
    with manual_gc():
        try:
            while run.next_step < steps and stop.reason is None:
                last = run.step()
                on_step(last)
                if not math.isfinite(last.loss):
                    diverged = f"the loss is {last.loss} at step {last.step}"
                    break
                if interval is not None and run.next_step % interval == 0 and run.next_step < steps:
                    saved = run.save_checkpoint()
            if diverged is None:
                saved = run.save_checkpoint() or saved
        except Exception as error:
            raise run.give_up(error) from error
        interrupted = stop.reason if diverged is None and run.next_step < steps else None
        aborted = diverged or (
            f"stopped by {interrupted} after {run.next_step} of {steps} steps"
            if interrupted
            else None
        )
        stopped = None
        if interrupted is not None:
            stopped = InterruptedFailure(
                signal=interrupted, steps_taken=run.next_step, steps_asked=steps
            )
        finished = run.finish(aborted=aborted, failure=stopped)
    return SessionResult(
        finished=finished, last=last, interrupted=interrupted, diverged=diverged, checkpoint=saved
    )


@contextlib.contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Turn the first Ctrl-C or SIGTERM into a stop request; a second one acts as if nobody had caught it."""
    stop = StopRequest()
    names = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"}
    before = {number: signal.getsignal(number) for number in names}

    def handle(number: int, _frame: FrameType | None) -> None:
        stop.reason = names[signal.Signals(number)]
        for each, handler in before.items():
            signal.signal(each, handler)

    for number in names:
        signal.signal(number, handle)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
