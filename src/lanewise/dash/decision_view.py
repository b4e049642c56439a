"""One decision as the report shows it: the row, the facts, the blocks and every receipt it stands on."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from lanewise.dash import format as fmt
from lanewise.dash import pay_back
from lanewise.dash.evidence import Evidence
from lanewise.dash.looks import ADJUSTMENT_NAMES, boundary_words, look_words, p_cell
from lanewise.dash.losses import quality_words
from lanewise.dash.rows import Column, Row, interval_of
from lanewise.dash.strips import Strip, strips
from lanewise.receipts.decision import BlockRecord, Decision, MetricDelta

Pairs = tuple[tuple[str, str], ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class ReceiptView:
    """One receipt as the report cites it."""

    receipt_id: str
    block: int
    arm: str
    state: str
    validity: str
    failed_checks: tuple[str, ...]
    observed: str
    warmup: str
    step: str


VALID = "valid"
"""Outcome of a block that counts."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BlockView:
    """One block as the report shows it."""

    number: int
    design: str
    outcome: str
    contrast: str
    control: str
    treated: str
    quads: str
    warmup: str


@dataclass(frozen=True, kw_only=True, slots=True)
class DecisionView:
    """One row of the table with everything behind it."""

    row: Row
    title: str
    decision_id: str
    reason: str
    facts: Pairs
    requested: tuple[tuple[str, str, str], ...]
    blocks: tuple[BlockView, ...]
    receipts: tuple[ReceiptView, ...]
    strips: tuple[Strip, ...]

    @property
    def size(self) -> str:
        """How much stands behind the row: `3 blocks, 6 receipts` or `3 of 4 blocks count, 8 receipts`."""
        if not self.receipts:
            return "no receipts"
        num_valid = sum(block.outcome == VALID for block in self.blocks)
        blocks = fmt.plural(len(self.blocks), "block")
        if num_valid < len(self.blocks):
            blocks = f"{num_valid} of {blocks} count"
        return f"{blocks}, {fmt.plural(len(self.receipts), 'receipt')}"

    def sort_key(self, column: Column) -> str:
        """What a column sorts by: a number where there is one, else the text."""
        number = self.row.sort_keys.get(column.key)
        return self.row.cell(column) if number is None else repr(number)


def decision_view(decision: Decision, row: Row, evidence: Evidence) -> DecisionView:
    """Gather everything behind one row of the table."""
    return DecisionView(
        row=row,
        title=decision.title,
        decision_id=decision.decision_id,
        reason=fmt.with_family(
            decision.incomplete_reason or decision.reason, decision.failure_family
        ),
        facts=_facts(decision),
        requested=tuple(
            (f"{arm} ({record.state})", op, " → ".join(backends) or "the op's own order")
            for arm, record in sorted(decision.arms.items())
            for op, backends in sorted(record.requested.items())
        ),
        blocks=tuple(_block_view(block) for block in decision.blocks),
        receipts=tuple(
            _receipt_view(decision, block, arm, receipt_id, evidence)
            for block in decision.blocks
            for arm in sorted(block.receipts)
            for receipt_id in block.receipts[arm]
        ),
        strips=strips(decision, evidence.series),
    )


def _facts(decision: Decision) -> Pairs:
    facts: list[tuple[str, str]] = []
    if not decision.blocks and decision.estimate is None:
        return (("measured", "nothing"), ("method", f"{decision.method} {decision.method_version}"))
    if (e := decision.estimate) is not None:
        interval = interval_of(decision)
        spread = "no interval" if interval is None else f"[{interval[0]:.4f}, {interval[1]:.4f}]"
        facts.append(("ratio", f"{e.ratio:.4f} {spread}, treated ÷ control"))
        facts.append((f"{e.unit}s", f"{e.num_blocks}, contrast SD {log_percent(e.block_sd_log)}"))
        facts += _look_facts(decision)
        facts.append(("detectable", f"≥ {log_percent(e.mde_log)} with 80 % power"))
        if e.sign_flip_p is not None:
            facts.append(("sign-flip test", f"p = {e.sign_flip_p:.3g}"))
    facts.append(
        ("margin δ", f"{log_percent(decision.margin.log_value)}, {decision.margin.source}")
    )
    if decision.host_bound is not None:
        facts.append(("host", decision.host_bound))
    if decision.tax_budget_ratio is not None:
        facts.append(("tax budget", fmt.signed_percent(decision.tax_budget_ratio - 1)))
    facts.append(
        (
            "step time",
            f"{fmt.seconds(decision.control_step_seconds)} → {fmt.seconds(decision.treated_step_seconds)}",
        )
    )
    facts.append(("throughput", _both(decision.tokens_per_second, fmt.tokens_per_second)))
    facts.append(("peak memory", _both(decision.peak_memory_bytes, fmt.mebibytes)))
    facts.append(("goodput", _both(decision.goodput, fmt.percent)))
    facts.append(("compile time", _both(decision.compile_seconds, fmt.seconds)))
    facts += [
        (f"pays back, {each.cache_state} cache", pay_back.sentence(each))
        for each in decision.break_even
    ]
    facts += _loss_facts(decision)
    facts.append(("method", f"{decision.method} {decision.method_version}"))
    return tuple(facts)


def _look_facts(decision: Decision) -> Pairs:
    """The looks as planned, the looks as taken, and what the p-value is once all features are counted."""
    if decision.boundary is None or decision.estimate is None:
        return ()
    facts = [("looks planned", boundary_words(decision.boundary))]
    if decision.looks:
        facts.append(("looks taken", "; ".join(look_words(look) for look in decision.looks)))
    if (p := decision.estimate.p_value) is not None:
        tested = "no effect" if decision.tax_budget_ratio is None else "exactly its budget"
        facts.append(("p-value", f"{p_cell(p)}, of {tested}, with earlier looks counted"))
    if decision.adjusted_p is not None and decision.adjustment is not None:
        name = ADJUSTMENT_NAMES[decision.adjustment]
        facts.append(
            (
                "adjusted p",
                f"{p_cell(decision.adjusted_p)} ({name}, over everything the campaign asked)",
            )
        )
    if len(decision.looks) > 1 and (middle := decision.estimate.median_unbiased_log) is not None:
        facts.append(("median-unbiased effect", log_percent(middle)))
    return tuple(facts)


def _loss_facts(decision: Decision) -> Pairs:
    """How the losses of the arms compare: by rounding where the mathematics are the same, else by steps and time."""
    if decision.loss_equal_steps is not None and decision.loss_equal_time is not None:
        found = (
            ("loss at equal steps", _loss_change(decision.loss_equal_steps)),
            ("loss at equal time", _loss_change(decision.loss_equal_time)),
        )
        if decision.quality is None:
            return found
        return (*found, ("quality over seeds", quality_words(decision.quality)))
    loss = decision.loss_max_abs_diff
    if loss is None:
        return (
            (
                "loss of the arms",
                "not compared: the mathematics differ, or no pair of steps counts",
            ),
        )
    return (("loss of the arms", f"differs by at most {fmt.scientific(loss)} nats"),)


def _loss_change(metric: MetricDelta) -> str:
    if metric.delta is None:
        return _both(metric, fmt.nats)
    return f"{_both(metric, fmt.nats)} nats per token ({fmt.signed_nats(metric.delta)})"


def _both(metric: MetricDelta, form: Callable[[float], str]) -> str:
    if metric.control is None or metric.treated is None:
        return f"not measured: {metric.reason or 'no reason recorded'}"
    return f"{form(metric.control)} → {form(metric.treated)}"


def log_percent(log_value: float | None) -> str:
    """An effect on the log scale, in percent: two decimals below one percent."""
    if log_value is None:
        return "unknown"
    return fmt.percent(math.expm1(log_value), 1 if abs(log_value) >= 0.00995 else 2)


def _block_view(block: BlockRecord) -> BlockView:
    contrast = block.contrast_log
    why = fmt.with_family("; ".join(block.reasons) or "no reason", block.failure_family)
    return BlockView(
        number=block.block,
        design=block.design,
        outcome=VALID if block.valid else f"INVALID: {why}",
        contrast=fmt.MISSING if contrast is None else fmt.signed_percent(math.expm1(contrast), 2),
        control=fmt.seconds(block.control_seconds),
        treated=fmt.seconds(block.treated_seconds),
        quads=str(block.num_quads),
        warmup=fmt.plural(block.warmup_steps, "step"),
    )


def _receipt_view(
    decision: Decision, block: BlockRecord, arm: str, receipt_id: str, evidence: Evidence
) -> ReceiptView:
    state = decision.arms[arm].state if arm in decision.arms else arm
    receipt = evidence.receipts.get(receipt_id)
    if receipt is None:
        return ReceiptView(
            receipt_id=receipt_id,
            block=block.block,
            arm=arm,
            state=state,
            validity="unreadable",
            failed_checks=(evidence.unreadable.get(receipt_id, "not in the store"),),
            observed=fmt.MISSING,
            warmup=fmt.MISSING,
            step=fmt.MISSING,
        )
    tested = {op for record in decision.arms.values() for op in record.requested}
    warmup, step = receipt.timing.warmup, receipt.timing.step_duration_seconds
    return ReceiptView(
        receipt_id=receipt_id,
        block=block.block,
        arm=arm,
        state=state,
        validity=receipt.outcome.validity,
        failed_checks=tuple(
            f"{c.name}: {c.detail}" if c.detail else c.name
            for c in receipt.outcome.checks
            if not c.ok
        ),
        observed=", ".join(
            f"{b.op} = {'+'.join(b.observed) or 'never ran'}"
            + (f" (fell back: {b.fallback_reason})" if b.fallback_reason else "")
            for b in receipt.backends
            if b.op in tested
        )
        or fmt.MISSING,
        warmup=f"{warmup.steps}, {'steady' if warmup.steady else 'not steady'}: {warmup.reason}",
        step=fmt.seconds(step.median if step else None),
    )
