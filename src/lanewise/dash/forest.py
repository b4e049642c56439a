"""The forest plot: every effect on step time with its interval, its margin and its budget, on one axis."""

from __future__ import annotations

import math
from collections.abc import Sequence

from lanewise.dash import format as fmt
from lanewise.dash.looks import boundary_words, p_cell, stopped_at, stopped_early
from lanewise.dash.rows import Tone, confidence_words, interval_of, verdict_tone, verdict_word
from lanewise.dash.svg import Canvas, Linear, Scale, SignedLogarithmic
from lanewise.receipts.decision import Decision, Estimate

WIDTH = 900.0
PLOT_LEFT, PLOT_RIGHT = 206.0, 626.0
VALUES_LEFT, VERDICT_LEFT = 650.0, 790.0
ROW_HEIGHT = 36.0
TOP, AXIS_HEIGHT = 30.0, 44.0
NAME_CHARACTERS = 26
TICK_ROOM = 42.0
"""Least distance between two tick labels."""
BUDGET_LABEL_WIDTH = 90.0
"""Room that `budget +100 %` needs beside its tick."""
SPREAD = 15.0
"""The axis is stretched near zero once the largest effect exceeds this many margins."""

_TICK_PERCENTS = (
    *(0.0, -1.0, 1.0, -10.0, 10.0, -50.0, 50.0, -90.0, 100.0, -5.0, 5.0, -2.0, 2.0, -20.0, 20.0),
    *(-75.0, 200.0, 400.0, -95.0, 900.0, -0.5, 0.5, -0.2, 0.2, -0.1, 0.1, -99.0),
)
"""Candidates in order of preference; those without room are left out."""


def forest(decisions: Sequence[Decision]) -> str | None:
    """The plot as SVG, or None when no decision has an estimate.

    Effects are log ratios of step time, treated ÷ control: left of the line is faster. Shaded is the margin δ within
    which an effect does not matter; the tick across a tax is its budget.
    """
    measured = [(d, d.estimate) for d in decisions if d.estimate is not None]
    if not measured:
        return None
    height = TOP + ROW_HEIGHT * len(measured) + AXIS_HEIGHT
    canvas = Canvas(
        name="forest",
        title="Effect of each feature on step time",
        description="; ".join(_words(d, e) for d, e in measured),
        width=WIDTH,
        height=height,
    )
    scale, stretched = _scale(measured)
    bottom = TOP + ROW_HEIGHT * len(measured)
    _axis(canvas, scale, bottom, stretched=stretched)
    for index, (decision, estimate) in enumerate(measured):
        _row(canvas, scale, TOP + ROW_HEIGHT * (index + 0.5), decision, estimate)
    canvas.line(scale(0.0), TOP - 6, scale(0.0), bottom, "zero")
    canvas.text(scale(0.0) - 8, TOP - 12, "← shorter step", "note", anchor="end")
    canvas.text(scale(0.0) + 8, TOP - 12, "longer step →", "note")
    return canvas.markup()


def _scale(measured: Sequence[tuple[Decision, Estimate]]) -> tuple[Scale, bool]:
    values = [0.0]
    for decision, estimate in measured:
        margin = decision.margin.log_value
        values += [estimate.log_ratio, margin, -margin]
        values += [math.log(end) for end in interval_of(decision) or ()]
        if decision.tax_budget_ratio is not None:
            values.append(math.log(decision.tax_budget_ratio))
    knee = max(0.005, min(d.margin.log_value for d, _ in measured))
    low, high = min(values), max(values)
    # Room for the words left and right of the zero line, whichever side the effects are on.
    low, high = min(low, -0.25 * (high - low)), max(high, 0.25 * (high - low))
    if max(-low, high) <= SPREAD * knee:
        pad = 0.04 * (high - low)
        return Linear(low=low - pad, high=high + pad, start=PLOT_LEFT, end=PLOT_RIGHT), False
    low, high = min(1.08 * low, -3 * knee), max(1.08 * high, 3 * knee)
    return SignedLogarithmic(low=low, high=high, knee=knee, start=PLOT_LEFT, end=PLOT_RIGHT), True


def _axis(canvas: Canvas, scale: Scale, bottom: float, *, stretched: bool) -> None:
    placed: list[float] = []
    for change in _TICK_PERCENTS:
        x = scale(math.log1p(change / 100.0))
        inside = PLOT_LEFT - 1 <= x <= PLOT_RIGHT + 1
        if not inside or any(abs(x - other) < TICK_ROOM for other in placed):
            continue
        placed.append(x)
        digits = 0 if float(change).is_integer() else 1
        canvas.line(x, TOP, x, bottom, "grid")
        canvas.text(
            x, bottom + 16, fmt.signed_percent(change / 100.0, digits), "tick", anchor="middle"
        )
        canvas.text(x, bottom + 31, f"{1 + change / 100.0:.3g}×", "tick faint", anchor="middle")
    label = "step time" + (" (stretched near 0)" if stretched else "")
    canvas.text(VALUES_LEFT, bottom + 16, f"← {label}", "note")
    canvas.text(VALUES_LEFT, bottom + 31, "← ratio, treated ÷ control", "note")


def _row(canvas: Canvas, scale: Scale, y: float, decision: Decision, estimate: Estimate) -> None:
    margin = decision.margin.log_value
    canvas.rect(
        scale(-margin),
        y - ROW_HEIGHT / 2 + 1,
        scale(margin) - scale(-margin),
        ROW_HEIGHT - 2,
        "margin",
        tip=f"margin ±{fmt.percent(math.expm1(margin), 2)}, {decision.margin.source}",
    )
    if decision.tax_budget_ratio is not None:
        x = scale(math.log(decision.tax_budget_ratio))
        canvas.line(x, y - ROW_HEIGHT / 2 + 1, x, y + ROW_HEIGHT / 2 - 1, "budget")
        budget = fmt.signed_percent(decision.tax_budget_ratio - 1, 0)
        # Near the right edge the words stand before the tick, or they would run into the values.
        if x + BUDGET_LABEL_WIDTH < VALUES_LEFT:
            canvas.text(x + 4, y - 8, f"budget {budget}", "note small")
        else:
            canvas.text(x - 4, y - 8, f"budget {budget}", "note small", anchor="end")
    tone = verdict_tone(decision)
    interval = interval_of(decision)
    if interval is not None:
        low, high = (scale(math.log(end)) for end in interval)
        canvas.line(low, y, high, y, f"whisker {tone}")
        for end in (low, high):
            canvas.line(end, y - 4, end, y + 4, f"whisker {tone}")
    mark(
        canvas,
        scale(estimate.log_ratio),
        y,
        tone,
        tip=f"{_words(decision, estimate)}{_looks(decision)}",
    )
    canvas.name(0, y, decision.feature, NAME_CHARACTERS)
    digits = fmt.percent_digits([interval] if interval else [])
    canvas.text(VALUES_LEFT, y - 2, fmt.signed_percent(estimate.ratio - 1, digits), "value strong")
    spread = (
        "one block, no interval"
        if interval is None
        else fmt.percent_interval(interval[0] - 1, interval[1] - 1, digits)
    )
    canvas.text(VALUES_LEFT, y + 12, spread, "note small")
    if stopped_early(decision):
        canvas.text(VERDICT_LEFT, y - 2, verdict_word(decision), f"verdict {tone}")
        canvas.text(VERDICT_LEFT, y + 12, f"stopped at {stopped_at(decision)}", "note small")
    else:
        canvas.text(VERDICT_LEFT, y + 4, verdict_word(decision), f"verdict {tone}")


def mark(canvas: Canvas, x: float, y: float, tone: Tone, *, tip: str) -> None:
    """The dot of an estimate; its shape repeats the tone: disc good, square bad, ring open, diamond quiet."""
    if tone == "bad":
        canvas.rect(x - 5, y - 5, 10, 10, "mark bad", tip=tip)
    elif tone == "quiet":
        canvas.path([(x - 6, y), (x, y - 6), (x + 6, y), (x, y + 6)], "mark quiet", closed=True)
    else:
        canvas.circle(x, y, 5.5, f"mark {tone}", tip=tip)


def _looks(decision: Decision) -> str:
    """The levels an effect was held against, and its p among all features of the campaign."""
    if decision.boundary is None:
        return ""
    corrected = "" if decision.adjusted_p is None else f", adjusted p {p_cell(decision.adjusted_p)}"
    return f"; looked at {boundary_words(decision.boundary)}{corrected}"


def _words(decision: Decision, estimate: Estimate) -> str:
    interval = interval_of(decision)
    spread = (
        "no interval"
        if interval is None
        else f"{confidence_words(estimate.confidence)} interval {fmt.percent_interval(interval[0] - 1, interval[1] - 1)}"
    )
    change = fmt.signed_percent(estimate.ratio - 1)
    return f"{decision.feature} {change}, {spread}, {verdict_word(decision)}"
