"""Interactions as tables, a chart and a sentence."""

from __future__ import annotations

import math
from collections.abc import Sequence

from lanewise.dash import format as fmt
from lanewise.dash.forest import mark
from lanewise.dash.svg import Canvas, Linear
from lanewise.receipts.decision import CampaignRecord
from lanewise.receipts.interaction import Interaction, InteractionTable

HEAD = (
    "feature",
    "alone",
    "in the full stack",
    "interaction",
    "95 % interval",
    "adjusted p",
    "says",
)

WIDTH = 900.0
PLOT_LEFT, PLOT_RIGHT = 206.0, 626.0
VALUES_LEFT = 650.0
ROW_HEIGHT = 32.0
TOP, AXIS_HEIGHT = 26.0, 30.0
NAME_CHARACTERS = 26


def interaction_rows(table: InteractionTable) -> list[tuple[str, ...]]:
    """One row a feature, the surest interaction first; then those that could not be tested, with the reason."""
    rows: list[tuple[str, ...]] = [
        (
            one.feature,
            _change(one.add_one_log),
            _change(one.leave_one_out_log),
            _change(one.difference_log),
            _interval(one),
            f"{one.adjusted_p:.2g}",
            one.reason,
        )
        for one in _sorted(table)
    ]
    missing = fmt.MISSING
    rows += [
        (one.feature, missing, missing, missing, missing, missing, f"not tested: {one.reason}")
        for one in table.untested
    ]
    return rows


def interaction_sentence(campaign: CampaignRecord) -> str | None:
    """What the closing lines say, or None for a campaign that looked for no interaction."""
    table = campaign.interactions
    if table is None:
        return None
    found = [one for one in _sorted(table) if one.found]
    if found:
        return "Interactions: " + "; ".join(f"{one.feature} {one.reason}" for one in found)
    if not table.interactions:
        return "Interactions: none could be tested"
    most = max(one.detectable_log for one in table.interactions)
    return f"Interactions: none larger than {fmt.percent(math.expm1(most))} was detectable"


def additivity_sentence(campaign: CampaignRecord) -> str | None:
    """Whether single effects add up, or why that was not told; None for a campaign that did not ask."""
    table = campaign.interactions
    if table is None:
        return None
    if table.additivity is None:
        return f"Whether single effects add up was not told: {table.additivity_reason}"
    return f"{table.additivity.reason[0].upper()}{table.additivity.reason[1:]}"


def interaction_chart(campaign: CampaignRecord) -> str | None:
    """Differences of effects with their intervals, as SVG; None without any."""
    table = campaign.interactions
    if table is None or not table.interactions:
        return None
    shown = _sorted(table)
    bottom = TOP + ROW_HEIGHT * len(shown)
    canvas = Canvas(
        name="interactions",
        title="How a feature's effect changes from the bare lane to the full stack",
        description="; ".join(f"{one.feature}: {one.reason}" for one in shown),
        width=WIDTH,
        height=bottom + AXIS_HEIGHT,
    )
    reach = 1.08 * max(max(abs(o.interval_low_log), abs(o.interval_high_log)) for o in shown)
    low, high = math.expm1(-reach), math.expm1(reach)
    scale = Linear(low=low, high=high, start=PLOT_LEFT, end=PLOT_RIGHT)
    for tick in scale.ticks(5):
        canvas.line(scale(tick), TOP, scale(tick), bottom, "grid")
        digits = 0 if round(100 * tick, 6).is_integer() else 1
        label = fmt.signed_percent(tick, digits)
        canvas.text(scale(tick), bottom + 17, label, "tick", anchor="middle")
    canvas.line(scale(0.0), TOP - 4, scale(0.0), bottom, "zero")
    canvas.text(scale(0.0) - 8, TOP - 10, "← gains more with the others", "note", anchor="end")
    canvas.text(scale(0.0) + 8, TOP - 10, "gains less, or costs more →", "note")
    for index, one in enumerate(shown):
        y = TOP + ROW_HEIGHT * (index + 0.5)
        tone = "bad" if one.found else "open"
        ends = [scale(math.expm1(end)) for end in (one.interval_low_log, one.interval_high_log)]
        canvas.line(ends[0], y, ends[1], y, f"whisker {tone}")
        for end in ends:
            canvas.line(end, y - 4, end, y + 4, f"whisker {tone}")
        x = scale(math.expm1(one.difference_log))
        mark(canvas, x, y, "bad" if one.found else "open", tip=f"{one.feature}: {one.reason}")
        canvas.name(0, y, one.feature, NAME_CHARACTERS)
        words = f"{_change(one.difference_log)} {_interval(one)}"
        canvas.text(VALUES_LEFT, y + 4, words, "value strong" if one.found else "note")
    return canvas.markup()


def _sorted(table: InteractionTable) -> Sequence[Interaction]:
    return sorted(table.interactions, key=lambda one: (not one.found, one.p_value))


def _change(log: float) -> str:
    return fmt.signed_percent(math.expm1(log))


def _interval(one: Interaction) -> str:
    return fmt.percent_interval(math.expm1(one.interval_low_log), math.expm1(one.interval_high_log))
