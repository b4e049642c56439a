"""What a person watches while a campaign runs: pilot, plan, a live line or plain lines. Everything goes to stderr."""

from __future__ import annotations

import time
from collections import Counter
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.text import Text

from lanewise.dash.format import on_base, plural
from lanewise.dash.terminal import CampaignProgress, header_lines
from lanewise.lab.events import (
    AttemptsUsedUp,
    BlockAdvanced,
    BlockDiscarded,
    BlockFinished,
    BlockStarted,
    Event,
    FeatureStopped,
    OutOfBudget,
    PilotVisited,
    PlanReady,
)
from lanewise.lab.keys import split_key


class CampaignView:
    """Turns the lab's events into lines; use it as a context manager, so that the live line always goes away."""

    def __init__(self, console: Console) -> None:
        """Print on `console`."""
        self._console = console
        self._progress = CampaignProgress(console, clock=time.monotonic)

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Take the live line away."""
        self._progress.finish()

    def listen(self, event: Event) -> None:
        """Show one event."""
        match event:
            case PilotVisited():
                self._line(_pilot_line(event))
            case PlanReady():
                for line in header_lines(event.campaign):
                    self._line(line)
                self._progress.start(event.campaign, finished_blocks=event.finished_blocks)
            case BlockStarted():
                self._progress.block_started(_name(event.feature), event.block, event.num_blocks)
            case BlockAdvanced():
                self._progress.tick(event.done_ratio)
            case BlockFinished():
                self._finished(event)
            case BlockDiscarded():
                self._progress.block_discarded(
                    _name(event.feature), event.block, event.reason, retried=event.again
                )
            case FeatureStopped():
                self._progress.feature_stopped(
                    _name(event.feature), event.blocks_run, event.num_blocks, event.outcome
                )
            case AttemptsUsedUp() | OutOfBudget():
                self._line(_not_run_line(event))

    def _finished(self, event: BlockFinished) -> None:
        if event.reasons or event.estimate is None:
            self._progress.block_discarded(
                _name(event.feature), event.block, "; ".join(event.reasons)
            )
            return
        spread = event.estimate.half_width_log is not None
        self._progress.block_finished(
            _name(event.feature),
            event.block,
            event.num_blocks,
            event.estimate.ratio,
            event.estimate.interval_low if spread else None,
            event.estimate.interval_high if spread else None,
        )

    def _line(self, text: str) -> None:
        self._console.print(Text(text), soft_wrap=True)


def _name(key: str) -> str:
    """What a person reads for a key of the plan: `fused_moe`, `fused_moe (full stack)`."""
    return on_base(*split_key(key))


def _not_run_line(event: AttemptsUsedUp | OutOfBudget) -> str:
    if isinstance(event, OutOfBudget):
        missing = plural(event.missing_blocks, "block")
        return f"the budget is used up with {missing} missing; --resume runs what is missing"
    counts = Counter(_name(feature) for feature, _block in event.places)
    blocks = ", ".join(f"{plural(count, 'block')} of {name}" for name, count in counts.items())
    return f"not run again, because their attempts have failed: {blocks}; --resume --retry-crashed gives them new ones"


def _pilot_line(event: PilotVisited) -> str:
    key, equals, state = event.name.partition("=")
    name = f"{_name(key)}{equals}{state}"
    if event.failure is not None:
        return f"pilot   {name}: {event.failure}"
    return f"pilot   {name}: {event.step_seconds:.3f} s/step"
