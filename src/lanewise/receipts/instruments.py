"""Extensions of a receipt about the measuring itself: what observing cost, and a delay that was planted on purpose."""

from __future__ import annotations

from typing import Final

from lanewise.receipts.record import Record, Seconds

OBSERVER_KEY: Final = "io.lanewise.observer"
"""Key in a receipt's `extensions` under which an `ObserverCost` stands."""

PLANTED_KEY: Final = "io.lanewise.planted_delay"
"""Key under which a `PlantedRecord` stands; only receipts of a positive control have it."""


class PlantedRecord(Record):
    """Every step of this run was prolonged on purpose."""

    step_time_ratio: float
    """Step time with the delay ÷ without."""
    note: str = (
        "every step was prolonged on purpose by this ratio of its own time; "
        "a positive control of the lab, not a measurement of the lane"
    )


class ObserverCost(Record):
    """What observation cost a run, in seconds, by part."""

    steps: int
    spans_seconds: Seconds
    """Goodput spans of steps: number × clocked cost."""
    launch_counters_seconds: Seconds
    """Counting which backend ran: number × clocked cost."""
    clock_reads_seconds: Seconds
    """Of the loop and the log: number × clocked cost."""
    readout_seconds: Seconds
    """Reading results out, writing them down and reading meters of the machine, clocked between steps."""
    protocol_seconds: Seconds
    """Messages to and from the lab, clocked between steps; 0 outside of a lockstep block. No step and no training run
    pays for them: they are exchanged while the arm would wait for its turn."""
    in_step_ratio: float
    """Spans, counters and clock reads ÷ step time: what the timed step contains of its own observation."""
    total_ratio: float
    """All parts but the protocol ÷ step time: what any run pays for being observed."""

    @property
    def total_seconds(self) -> float:
        """All parts together."""
        return (
            self.spans_seconds
            + self.launch_counters_seconds
            + self.clock_reads_seconds
            + self.readout_seconds
            + self.protocol_seconds
        )
