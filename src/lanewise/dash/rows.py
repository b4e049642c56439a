"""Decisions as rows of text: the one table that the terminal and the HTML report both show."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from lanewise.dash import format as fmt
from lanewise.dash.looks import p_cell, stopped_at
from lanewise.receipts.decision import Decision, MetricDelta, QualityDelta, Verdict

OBSERVED_OK = "✓"
OBSERVED_WRONG = "✗"
INCOMPLETE = "INCOMPLETE"

Tone = Literal["good", "bad", "open", "quiet"]
"""How a verdict is drawn: it worked, it cost, the question is open, nothing to see. Words always go with it."""

_TONES: dict[Verdict, Tone] = {
    Verdict.FASTER: "good",
    Verdict.WITHIN_BUDGET: "good",
    Verdict.SLOWER: "bad",
    Verdict.OVER_BUDGET: "bad",
    Verdict.INVALID: "bad",
    Verdict.INCONCLUSIVE: "open",
    Verdict.EQUIVALENT: "quiet",
    Verdict.NOT_MEASURED: "quiet",
    Verdict.NOISE: "quiet",
    # A screen proves nothing, so its words are never drawn like a verdict that does.
    Verdict.LIKELY_FASTER: "open",
    Verdict.LIKELY_SLOWER: "open",
    Verdict.UNCLEAR: "quiet",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Column:
    """One column of the table.

    Attributes:
        key: field of `Row`.
        title: header.
        right: whether its cells are numbers, aligned right.
        drop_rank: order in which a narrow terminal gives columns up, 1 first; 0 is kept always.
    """

    key: str
    title: str
    right: bool = False
    drop_rank: int = 0


COLUMNS: tuple[Column, ...] = (
    Column(key="feature", title="feature"),
    Column(key="role", title="role", drop_rank=4),
    Column(key="versus", title="vs", drop_rank=8),
    Column(key="step_time", title="Δ step time", right=True),
    Column(key="interval", title="95 % interval", right=True),
    Column(key="adjusted_p", title="adjusted p", right=True, drop_rank=11),
    Column(key="stopped_at", title="stopped at", right=True, drop_rank=9),
    Column(key="tokens", title="Δ tokens/s", right=True, drop_rank=1),
    Column(key="memory", title="Δ memory", right=True, drop_rank=5),
    Column(key="goodput", title="Δ goodput", right=True, drop_rank=2),
    Column(key="loss_steps", title="Δ loss at equal steps", right=True, drop_rank=6),
    Column(key="loss_time", title="Δ loss at equal time", right=True, drop_rank=7),
    Column(key="observed", title="observed", drop_rank=12),
    Column(key="verdict", title="verdict"),
    Column(key="stance", title="stance", drop_rank=10),
)


BASE = Column(key="base", title="base")
"""Column that only campaigns from both bases have."""

LOSS_KEYS = frozenset({"loss_steps", "loss_time"})
"""Columns that only campaigns with a tax have."""

TARGET = Column(key="loss_target", title="time to target loss", right=True, drop_rank=3)
"""Column of campaigns that were asked how long a loss takes (`--target-loss`), after the other losses."""

LOOK_KEYS = frozenset({"adjusted_p", "stopped_at"})
"""Columns of decisions that know their looks; older ones have none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """The cells of one decision, as text, and the numbers they sort by.

    Attributes:
        sort_keys: column key → number to sort by; absent when the value was not measured.
    """

    feature: str
    base: str
    role: str
    versus: str
    step_time: str
    interval: str
    adjusted_p: str
    stopped_at: str
    tokens: str
    memory: str
    goodput: str
    loss_steps: str
    loss_time: str
    loss_target: str
    observed: str
    verdict: str
    stance: str
    tone: Tone
    sort_keys: dict[str, float]

    def cell(self, column: Column) -> str:
        """The text of one column."""
        return str(getattr(self, column.key))


def rows(decisions: Sequence[Decision]) -> tuple[Row, ...]:
    """One row per decision, in the order given; all rows share the number of decimals."""
    intervals = (interval_of(decision) for decision in decisions)
    digits = fmt.percent_digits(interval for interval in intervals if interval is not None)
    mixed = len(_confidences(decisions)) > 1
    return tuple(_row(decision, digits, says_confidence=mixed) for decision in decisions)


def columns(decisions: Sequence[Decision]) -> tuple[Column, ...]:
    """The columns, with the header of the interval saying the confidence the decisions used.

    Where decisions differ in it, every cell says its own.
    The base is there when decisions differ in it. The losses are there when a decision compares them: for features that change the mathematics. A narrow terminal gives
    up the loss at equal steps before that at equal time, never the other way round. Looks and corrected p-values are there
    when a decision knows them.
    """
    with_target = any(_target_loss(d) is not None for d in decisions)
    with_losses = with_target or any(d.loss_equal_time is not None for d in decisions)
    with_looks = any(d.boundary is not None for d in decisions)
    shown = tuple(
        c
        for c in COLUMNS
        if (with_losses or c.key not in LOSS_KEYS) and (with_looks or c.key not in LOOK_KEYS)
    )
    if with_target:
        after = next(index for index, c in enumerate(shown) if c.key == "loss_time") + 1
        shown = (*shown[:after], TARGET, *shown[after:])
    if len({d.design for d in decisions}) > 1:
        shown = (shown[0], BASE, *shown[1:])
    levels = _confidences(decisions)
    if not levels or levels == {0.95}:
        return shown
    title = f"{confidence_words(levels.pop())} interval" if len(levels) == 1 else "interval"
    return tuple(
        Column(key=c.key, title=title, right=True) if c.key == "interval" else c for c in shown
    )


def _confidences(decisions: Sequence[Decision]) -> set[float]:
    return {d.estimate.confidence for d in decisions if d.estimate}


def confidence_words(level: float) -> str:
    """`95 %`, `99.38 %`: never rounded up."""
    return f"{math.floor(1e4 * level + 1e-6) / 100:g} %"


def verdict_word(decision: Decision) -> str:
    """The verdict in capitals; a decision that lacks arms or blocks decides nothing."""
    return INCOMPLETE if decision.status == "INCOMPLETE" else decision.verdict.value


def verdict_tone(decision: Decision) -> Tone:
    """How to draw the verdict."""
    return "bad" if decision.status == "INCOMPLETE" else _TONES[decision.verdict]


def interval_of(decision: Decision) -> tuple[float, float] | None:
    """Both ends of the interval of the ratio; None where there is no estimate, or one block, which has no spread."""
    estimate = decision.estimate
    if estimate is None or estimate.half_width_log is None:
        return None
    return estimate.interval_low, estimate.interval_high


def _row(decision: Decision, digits: int, *, says_confidence: bool) -> Row:
    estimate, interval = decision.estimate, interval_of(decision)
    quality = decision.quality
    deltas = {
        "tokens": decision.tokens_per_second.delta,
        "memory": decision.peak_memory_bytes.delta,
        "goodput": decision.goodput.delta,
        "loss_steps": _delta(decision.loss_equal_steps),
        "loss_time": _delta(decision.loss_equal_time),
        "loss_target": quality.time_to_target.ratio if quality else None,
        "step_time": None if estimate is None else estimate.ratio - 1.0,
        "interval": None if interval is None else interval[1] - interval[0],
        "adjusted_p": decision.adjusted_p,
        "stopped_at": None if decision.boundary is None else float(len(decision.blocks)),
    }
    return Row(
        feature=decision.feature,
        base=fmt.base_name(decision.design),
        role=decision.role,
        versus=decision.versus,
        step_time=fmt.signed_percent(deltas["step_time"], digits),
        interval=_interval_cell(decision, digits, says_confidence=says_confidence),
        adjusted_p=p_cell(decision.adjusted_p),
        stopped_at=stopped_at(decision),
        tokens=fmt.signed_percent(deltas["tokens"], digits),
        memory=fmt.signed_mebibytes(deltas["memory"]),
        goodput=fmt.signed_points(deltas["goodput"]),
        loss_steps=_nats(deltas["loss_steps"], quality.equal_steps if quality else None),
        loss_time=_nats(deltas["loss_time"], quality.equal_time if quality else None),
        loss_target=_time_to_target(decision),
        observed=_observed(decision),
        verdict=verdict_word(decision),
        stance=decision.stance,
        tone=verdict_tone(decision),
        sort_keys={key: value for key, value in deltas.items() if value is not None},
    )


def _interval_cell(decision: Decision, digits: int, *, says_confidence: bool) -> str:
    """The interval; with its confidence where the decisions of the table differ in it."""
    estimate, interval = decision.estimate, interval_of(decision)
    if estimate is None or interval is None:
        return fmt.MISSING
    cell = fmt.percent_interval(interval[0] - 1, interval[1] - 1, digits)
    return f"{cell} {confidence_words(estimate.confidence)}" if says_confidence else cell


def _nats(delta: float | None, over_seeds: QualityDelta | None) -> str:
    """A change of the loss, with its interval over seeds where there is one."""
    if over_seeds is None or over_seeds.low is None or over_seeds.high is None:
        return fmt.signed_nats(delta)
    low, high = fmt.signed_nats(over_seeds.low), fmt.signed_nats(over_seeds.high)
    return f"{fmt.signed_nats(over_seeds.delta)} [{low}, {high}]"


def _target_loss(decision: Decision) -> float | None:
    return None if decision.quality is None else decision.quality.time_to_target.target_loss


def _time_to_target(decision: Decision) -> str:
    """Step time to the loss that was named, treated ÷ control; without a ratio, in how many seeds each arm reached it."""
    if decision.quality is None or _target_loss(decision) is None:
        return fmt.MISSING
    target, num_seeds = decision.quality.time_to_target, len(decision.quality.seeds)
    if target.ratio is None:
        return f"reached {target.control_reached}/{num_seeds}, {target.treated_reached}/{num_seeds}"
    if target.low is None or target.high is None:
        return f"{fmt.number(target.ratio, 2)} ×"
    low, high = fmt.number(target.low, 2), fmt.number(target.high, 2)
    return f"{fmt.number(target.ratio, 2)} × [{low}, {high}]"


def _delta(metric: MetricDelta | None) -> float | None:
    return None if metric is None else metric.delta


def _observed(decision: Decision) -> str:
    if not decision.observed:
        return fmt.MISSING if decision.observed_ok else f"nothing {OBSERVED_WRONG}"
    mark = OBSERVED_OK if decision.observed_ok else OBSERVED_WRONG
    return f"{', '.join(decision.observed)} {mark}"
