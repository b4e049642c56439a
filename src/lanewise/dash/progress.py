"""Progress of a campaign: a live line on a terminal, one plain line per finished block elsewhere.

    progress = CampaignProgress(console, clock=time.monotonic)
    progress.start(plan)
    progress.block_started("fused_moe", 2, 3)
    progress.tick(0.4)                                        # optional: 40 % of this block is done
    progress.block_finished("fused_moe", 2, 3, 0.69, 0.64, 0.75)
    progress.finish()

Blocks are numbered from 1. The line is drawn on calls only, never by a thread of its own, so the process that shows it
may fork. Call `finish` also after an error (or use the object as a context manager).
"""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Self

from rich.console import Console, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from lanewise.dash import format as fmt
from lanewise.dash.looks import outcome_words
from lanewise.receipts.decision import CampaignRecord, LookOutcome

REDRAW_SECONDS = 0.2
BAR_WIDTH = 36


class CampaignProgress:
    """Bar, feature, block, live interval, time left and budget of a running campaign."""

    def __init__(self, console: Console, *, clock: Callable[[], float]) -> None:
        """Draw on `console` (standard error is the place for progress).

        Args:
            console: where to draw; a console that is not a terminal gets plain lines.
            clock: seconds from any fixed point, never going back.
        """
        self._console = console
        self._clock = clock
        self._live: Live | None = None
        self._planned_blocks: dict[str, int] = {}
        self._planned_seconds = 0.0
        self._budget_seconds = 0.0
        self._began = 0.0
        self._drawn = float("-inf")
        self._finished_blocks = 0
        self._resumed_blocks = 0
        self._fraction = 0.0
        self._where = ""
        self._feature = ""
        self._effects: dict[str, str] = {}

    def __enter__(self) -> Self:
        """Return itself; `start` draws."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Take the live line away."""
        self.finish()

    def start(self, plan: CampaignRecord, *, finished_blocks: int = 0) -> None:
        """Begin to count time and blocks.

        Args:
            plan: the campaign as planned.
            finished_blocks: blocks that a resumed campaign has already.
        """
        planned = [f for f in plan.features if f.skipped_reason is None]
        self._planned_blocks = {fmt.on_base(f.feature, f.design): f.planned_blocks for f in planned}
        self._planned_seconds = sum(f.estimated_seconds for f in planned)
        self._budget_seconds = plan.budget_seconds
        self._finished_blocks = self._resumed_blocks = finished_blocks
        self._began = self._clock()
        if self._console.is_terminal:
            self._live = Live(
                self._render(), console=self._console, auto_refresh=False, transient=True
            )
            self._live.start()

    def block_started(self, feature: str, block: int, num_blocks: int) -> None:
        """A block's processes start; `num_blocks` replaces the planned number of this feature."""
        self._place(feature, block, num_blocks)
        self._draw(force=True)

    def tick(self, fraction: float | None = None) -> None:
        """Redraw at most every `REDRAW_SECONDS`; `fraction` is how much of the running block is done."""
        if fraction is not None:
            self._fraction = min(1.0, max(0.0, fraction))
        self._draw(force=False)

    def block_finished(
        self,
        feature: str,
        block: int,
        num_blocks: int,
        ratio: float,
        low: float | None,
        high: float | None,
    ) -> None:
        """A block is evidence.

        Args:
            feature: key of the feature under test.
            block: number of the block, from 1.
            num_blocks: blocks now planned for this feature.
            ratio: step time treated ÷ control over the blocks so far.
            low: lower end of the live interval; None while there is one block only.
            high: upper end.
        """
        effect = fmt.signed_percent(ratio - 1.0)
        if low is not None and high is not None:
            effect += f" {fmt.percent_interval(low - 1.0, high - 1.0)}"
        self._effects[feature] = effect
        self._count(feature, block, num_blocks)
        self._plain(f"{feature}  block {block}/{num_blocks}  {effect}")

    def block_discarded(
        self, feature: str, block: int, reason: str, *, retried: bool = False
    ) -> None:
        """A block counts for nothing; its reason is printed and stays on the screen.

        Args:
            feature: key of the feature under test.
            block: number of the block, from 1.
            reason: why it was thrown away.
            retried: whether it runs again, so that as many blocks remain as before.
        """
        if retried:
            self._fraction = 0.0
        else:
            self._count(feature, block, self._planned_blocks.get(feature, block))
        again = "; it runs again" if retried else ""
        self.message(f"INVALID  {feature} block {block}: {reason}{again}")

    def feature_stopped(
        self, feature: str, blocks_run: int, num_blocks: int, outcome: LookOutcome
    ) -> None:
        """A look ended a feature early; the line stays, and the blocks that are not run leave the time left.

        Args:
            feature: key of the feature under test.
            blocks_run: blocks it has.
            num_blocks: blocks that were planned.
            outcome: why the look stopped.
        """
        self._planned_blocks[feature] = blocks_run
        self._fraction = 0.0
        self.message(
            f"{feature} stopped after {blocks_run} of {num_blocks} blocks: {outcome_words(outcome)}"
        )

    def message(self, text: str) -> None:
        """Print a line that stays, above the live line."""
        self._console.print(Text(text), soft_wrap=True)

    def finish(self) -> None:
        """Take the live line away; calling it twice does no harm."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def eta_seconds(self) -> float:
        """Seconds left: the plan's own estimate until a block is finished, then the pace so far."""
        total, done = sum(self._planned_blocks.values()), self._finished_blocks
        left = max(0.0, total - done - self._fraction)
        fresh = done - self._resumed_blocks
        elapsed = self._clock() - self._began
        if fresh + self._fraction < 1.0:
            pace = self._planned_seconds / total if total else 0.0
        else:
            pace = elapsed / (fresh + self._fraction)
        return pace * left

    def _count(self, feature: str, block: int, num_blocks: int) -> None:
        self._place(feature, block, num_blocks)
        self._finished_blocks += 1
        self._draw(force=True)

    def _place(self, feature: str, block: int, num_blocks: int) -> None:
        self._planned_blocks[feature] = num_blocks
        self._feature = feature
        self._where = f"{feature} block {block}/{num_blocks}"
        self._fraction = 0.0

    def _plain(self, line: str) -> None:
        if self._live is None:
            self.message(line)

    def _draw(self, *, force: bool) -> None:
        now = self._clock()
        if self._live is None or (not force and now - self._drawn < REDRAW_SECONDS):
            return
        self._drawn = now
        self._live.update(self._render(), refresh=True)

    def _render(self) -> RenderableType:
        total = max(1, sum(self._planned_blocks.values()))
        done = min(float(total), self._finished_blocks + self._fraction)
        elapsed = self._clock() - self._began
        line = Table.grid(padding=(0, 2))
        for _ in range(4):
            line.add_column(no_wrap=True)
        line.add_row(
            ProgressBar(total=total, completed=done, width=BAR_WIDTH),
            Text(self._where, style="bold"),
            Text(self._effects.get(self._feature, "")),
            Text(
                f"ETA {fmt.clock(self.eta_seconds())}"
                f" · {fmt.clock(elapsed)} of {fmt.clock(self._budget_seconds)}",
                style="dim",
            ),
        )
        return line
