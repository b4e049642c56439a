"""From the bare lane to the full stack: what single effects multiply to, and what interactions add. SVG and plain lines."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from lanewise.dash import format as fmt
from lanewise.dash.rows import verdict_tone
from lanewise.dash.svg import Canvas, Linear
from lanewise.receipts.decision import CampaignRecord, Decision

WIDTH = 900.0
PLOT_LEFT, PLOT_RIGHT = 206.0, 640.0
VALUES_LEFT = 656.0
ROW_HEIGHT, BAR_HEIGHT = 32.0, 16.0
TOP, AXIS_HEIGHT = 8.0, 30.0
NAME_CHARACTERS = 26
LINE_CELLS = 40
"""Width of a bar on a terminal."""

Kind = Literal["whole", "gain", "loss", "open", "interaction"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Bar:
    """One step of the waterfall, in units of the bare lane's step time.

    Attributes:
        name: what it stands for.
        start: level before.
        end: level after; of a `whole` bar its length.
        kind: how it is drawn: a measured or computed whole, a proven gain or loss, what is not proven, or interactions.
        words: its value.
        low: lower end of the interval of `end`, where there is one.
        high: its upper end.
    """

    name: str
    start: float
    end: float
    kind: Kind
    words: str
    low: float | None = None
    high: float | None = None


def bars(campaign: CampaignRecord, decisions: Sequence[Decision]) -> tuple[Bar, ...]:
    """The waterfall of a campaign from both bases; empty without the full stack or an effect on the bare lane."""
    table = campaign.interactions
    if table is None or table.additivity is None or not table.additivity.add_one:
        return ()
    additivity = table.additivity
    by_id = {decision.decision_id: decision for decision in decisions}
    stack = by_id.get(additivity.full_stack)
    singles = [by_id[one] for one in additivity.add_one if one in by_id]
    if stack is None or stack.estimate is None or len(singles) < len(additivity.add_one):
        return ()
    seconds = stack.control_step_seconds
    found = [Bar(name="bare lane", start=0.0, end=1.0, kind="whole", words=_level(1.0, seconds))]
    level = 1.0
    for decision in sorted(singles, key=lambda d: d.estimate.log_ratio if d.estimate else 0.0):
        assert decision.estimate is not None, "additivity sums decisions with an estimate"
        after = level * decision.estimate.ratio
        tone = verdict_tone(decision)
        kind: Kind = "open" if tone in ("open", "quiet") else "gain" if after < level else "loss"
        change = fmt.signed_percent(decision.estimate.ratio - 1)
        found.append(
            Bar(
                name=f"+ {decision.feature}",
                start=level,
                end=after,
                kind=kind,
                words=f"{change} alone, {decision.verdict.value}",
            )
        )
        level = after
    found.append(
        Bar(
            name="product of single effects",
            start=0.0,
            end=level,
            kind="whole",
            words=_level(level, seconds),
        )
    )
    whole = math.exp(additivity.full_stack_log)
    rest = "interactions" + (" and what is missing" if additivity.missing else "")
    change = fmt.signed_percent(math.expm1(additivity.difference_log))
    verdict = {True: "not told from 0", False: "beyond noise", None: "open"}[additivity.explained]
    found.append(
        Bar(
            name=rest,
            start=level,
            end=whole,
            kind="interaction",
            words=f"{change}, {verdict}",
            low=level * math.exp(additivity.interval_low_log),
            high=level * math.exp(additivity.interval_high_log),
        )
    )
    found.append(
        Bar(
            name="full stack, measured",
            start=0.0,
            end=whole,
            kind="whole",
            words=f"{_level(whole, seconds)}, {stack.verdict.value}",
        )
    )
    return tuple(found)


def waterfall(campaign: CampaignRecord, decisions: Sequence[Decision]) -> str | None:
    """The waterfall as SVG, or None when the campaign holds none."""
    steps = bars(campaign, decisions)
    if not steps:
        return None
    bottom = TOP + ROW_HEIGHT * len(steps)
    canvas = Canvas(
        name="waterfall",
        title="From the bare lane to the full stack",
        description="; ".join(f"{bar.name}: {bar.words}" for bar in steps),
        width=WIDTH,
        height=bottom + AXIS_HEIGHT,
    )
    longest = max(max(bar.start, bar.end, bar.high or 0.0) for bar in steps)
    scale = Linear(low=0.0, high=longest, start=PLOT_LEFT, end=PLOT_RIGHT)
    for tick in scale.ticks(6):
        canvas.line(scale(tick), TOP, scale(tick), bottom, "grid")
        canvas.text(scale(tick), bottom + 17, f"{tick:.3g}×", "tick", anchor="middle")
    canvas.text(VALUES_LEFT, bottom + 17, "step time, bare lane = 1", "note")
    hatch = canvas.hatch("open", 5, 45, "hatch-open")
    for index, bar in enumerate(steps):
        y = TOP + ROW_HEIGHT * (index + 0.5)
        left, right = sorted((scale(bar.start), scale(bar.end)))
        width, top = max(1.5, right - left), y - BAR_HEIGHT / 2
        tip = f"{bar.name}: {bar.words}"
        if bar.kind in ("open", "interaction"):
            canvas.filled(left, top, width, BAR_HEIGHT, hatch, tip=tip)
            canvas.rect(left, top, width, BAR_HEIGHT, "frame", tip=tip)
        else:
            kind = {"whole": "bar-base", "gain": "bar-gain", "loss": "bar-loss"}[bar.kind]
            canvas.rect(left, top, width, BAR_HEIGHT, kind, tip=tip)
        if bar.low is not None and bar.high is not None:
            low, high = scale(max(0.0, bar.low)), scale(bar.high)
            canvas.line(low, y, high, y, "whisker")
            for end in (low, high):
                canvas.line(end, y - 4, end, y + 4, "whisker")
        if index + 1 < len(steps) and steps[index + 1].kind != "whole":
            # Where the next bar takes over.
            x = scale(bar.end)
            canvas.line(x, y + BAR_HEIGHT / 2, x, y + ROW_HEIGHT - BAR_HEIGHT / 2, "axis")
        canvas.name(0, y, bar.name, NAME_CHARACTERS)
        canvas.text(VALUES_LEFT, y + 4, bar.words, "note")
    return canvas.markup()


def waterfall_lines(campaign: CampaignRecord, decisions: Sequence[Decision]) -> tuple[str, ...]:
    """The waterfall for a terminal: `█` what is there, `░` what is not proven, `▒` interactions."""
    steps = bars(campaign, decisions)
    if not steps:
        return ()
    longest = max(max(bar.start, bar.end) for bar in steps)
    names = max(len(bar.name) for bar in steps)
    marks = {"whole": "█", "gain": "█", "loss": "█", "open": "░", "interaction": "▒"}
    lines = []
    for bar in steps:
        first, last = sorted(round(LINE_CELLS * value / longest) for value in (bar.start, bar.end))
        if first == last:
            drawn = " " * min(first, LINE_CELLS - 1) + "▏"
        else:
            drawn = " " * first + marks[bar.kind] * (last - first)
        lines.append(f"{bar.name.ljust(names)}  {drawn.ljust(LINE_CELLS)}  {bar.words}")
    return tuple(lines)


def _level(level: float, seconds: float | None) -> str:
    """`0.263×, 28.4 ms`; the time is the level of the bare lane's median step."""
    ratio = f"{level:.3g}×"
    return ratio if seconds is None else f"{ratio}, {fmt.seconds(level * seconds)}"
