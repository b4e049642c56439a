"""A delay planted into every step of one arm: a slow-down of known size that a campaign must find.

The delay is a ratio of the step's own time so far, taken inside the timed step after all of its work is done: a step of
100 ms with a ratio of 0.05 ends after 105 ms. The true effect is therefore exactly `log(1 + ratio)` on log step time,
whatever the machine does, and training computes the same numbers as without it. A receipt says so under
`io.lanewise.planted_delay`, and a plain training run refuses one.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from lanewise.errors import UsageError
from lanewise.receipts.instruments import PlantedRecord
from lanewise.train.request import RunRequest

WAKE_UP_NS: Final = 300_000
"""The end of a delay is waited for awake, because a sleeping process is woken some time after it asked to be."""


class PlantedDelay:
    """Prolongs a step by a share of its own time.

    Args:
        ratio: delay ÷ step time, above 0.
        clock: monotonic nanoseconds.
        sleep: waits for seconds.
    """

    def __init__(
        self, ratio: float, *, clock: Callable[[], int], sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self.ratio = ratio
        self._clock = clock
        self._sleep = sleep

    def __call__(self, start_ns: int) -> None:
        """Wait until the step that began at `start_ns` has taken 1 + ratio times what it has taken now."""
        now_ns = self._clock()
        end_ns = now_ns + round(self.ratio * (now_ns - start_ns))
        if end_ns - now_ns > WAKE_UP_NS:
            self._sleep((end_ns - now_ns - WAKE_UP_NS) / 1e9)
        while self._clock() < end_ns:
            pass


def planted_delay(request: RunRequest, clock: Callable[[], int]) -> PlantedDelay | None:
    """The delay that a request asks for, or None.

    Raises:
        UsageError: a run outside of a campaign asks for one.
    """
    if request.planted_delay_ratio is None:
        return None
    if request.experiment is None:
        raise UsageError(
            "planted_delay_ratio slows every step down on purpose, so only a campaign's positive control may set it; "
            "use `lanewise calibrate LANE --control 5%`"
        )
    return PlantedDelay(request.planted_delay_ratio, clock=clock)


def planted_record(request: RunRequest) -> PlantedRecord | None:
    """What the receipt says about it; None for a run without a delay."""
    if request.planted_delay_ratio is None:
        return None
    return PlantedRecord(step_time_ratio=1.0 + request.planted_delay_ratio)
