"""Goodput: every nanosecond of a run is a training step, a named badput, or `other`.

    clock = GoodputClock()                        # wall time starts here
    with clock.span("step"):                      # good, if it ends without raising
        with clock.span("data_wait"):             # pauses the step: parts never overlap
            batch = loader.next()
        loss = train_step(batch)
    clock.summary()                               # step + badput + other = wall, by computation

Times are host time of one thread. Device work that a span only launches lands where the host waits for it, so a caller
that wants device time inside `step` synchronises before the span ends.
"""

from __future__ import annotations

import contextlib
import difflib
import time
from collections.abc import Callable
from types import TracebackType
from typing import Final

from lanewise.receipts.schema import BADPUT_CATEGORIES, Goodput

STEP: Final = "step"
FAILED_STEP: Final = "disruption"
"""Where the time of a step that raised goes: it trained nothing."""

CATEGORIES: tuple[str, ...] = (STEP, *BADPUT_CATEGORIES)

Span = contextlib.AbstractContextManager[None]


class GoodputClock:
    """Accounts one thread's wall time to disjoint categories; about a microsecond per span.

    Args:
        clock: monotonic nanoseconds.
        enabled: False makes every span a shared no-op and `summary` None.
    """

    def __init__(
        self, clock: Callable[[], int] = time.perf_counter_ns, *, enabled: bool = True
    ) -> None:
        self._clock = clock
        self._enabled = enabled
        # A span object holds no time of its own, so one per category serves any nesting.
        self._spans: dict[str, Span] = {
            category: _Span(self, category) if enabled else _NOTHING for category in CATEGORIES
        }
        self._closed_ns: dict[str, int] = dict.fromkeys(CATEGORIES, 0)
        self._num_closed: dict[str, int] = dict.fromkeys(CATEGORIES, 0)
        self._open: list[_Frame] = []
        self._start_ns = self._last_ns = clock()

    @property
    def enabled(self) -> bool:
        """Whether time is accounted at all."""
        return self._enabled

    def span(self, category: str) -> Span:
        """Account the block's time to `category`; an enclosing span is paused until the block ends.

        Args:
            category: `step` or one of `BADPUT_CATEGORIES`.

        Raises:
            ValueError: no such category.
        """
        try:
            return self._spans[category]
        except KeyError:
            raise ValueError(_unknown(category)) from None

    def num_closed(self, category: str) -> int:
        """Spans of a category that have ended, whatever their time went to."""
        return self._num_closed[category]

    def summary(self) -> Goodput | None:
        """The partition of wall time since construction; open spans count up to now. None when disabled.

        `goodput_ratio` is step ÷ (wall − turn_wait), 0 where nothing but turns was waited for. `other` is
        wall − Σ of all spans; nothing is clamped.
        """
        if not self._enabled:
            return None
        now_ns = self._clock()
        totals_ns = dict(self._closed_ns)
        for frame in self._open:
            totals_ns[frame.category] += frame.own_ns
        if self._open:
            totals_ns[self._open[-1].category] += now_ns - self._last_ns
        wall_ns = now_ns - self._start_ns
        other_ns = wall_ns - sum(totals_ns.values())
        own_wall_ns = wall_ns - totals_ns["turn_wait"]
        step_ns = totals_ns.pop(STEP)
        return Goodput(
            wall_duration_seconds=wall_ns / 1e9,
            step_seconds=step_ns / 1e9,
            goodput_ratio=step_ns / own_wall_ns if own_wall_ns else 0.0,
            badput_seconds={name: ns / 1e9 for name, ns in totals_ns.items()}
            | {"other": other_ns / 1e9},
        )

    def _enter(self, category: str) -> None:
        now_ns = self._clock()
        if self._open:
            self._open[-1].own_ns += now_ns - self._last_ns
        self._open.append(_Frame(category))
        self._last_ns = now_ns

    def _leave(self, *, raised: bool) -> None:
        now_ns = self._clock()
        frame = self._open.pop()
        self._num_closed[frame.category] += 1
        own_ns = frame.own_ns + now_ns - self._last_ns
        failed = raised and frame.category == STEP
        self._closed_ns[FAILED_STEP if failed else frame.category] += own_ns
        self._last_ns = now_ns


class _Frame:
    """An open span: its category and the time it has had to itself so far."""

    __slots__ = ("category", "own_ns")

    def __init__(self, category: str) -> None:
        self.category = category
        self.own_ns = 0


class _Span(contextlib.AbstractContextManager[None]):
    """What `GoodputClock.span` hands out."""

    __slots__ = ("_category", "_owner")

    def __init__(self, owner: GoodputClock, category: str) -> None:
        self._owner = owner
        self._category = category

    def __enter__(self) -> None:
        self._owner._enter(self._category)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        self._owner._leave(raised=kind is not None)


_NOTHING: Final[Span] = contextlib.nullcontext()


def _unknown(category: str) -> str:
    near = difflib.get_close_matches(category, CATEGORIES, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return f"unknown goodput category {category!r}.{hint} Use one of {', '.join(CATEGORIES)}."
