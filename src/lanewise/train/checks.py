"""A run's own checks: whether it may count as evidence, never whether it was fast."""

from __future__ import annotations

import math
from collections.abc import Mapping

from lanewise.ops.observe import Observation
from lanewise.ops.spec import Choice
from lanewise.receipts.schema import Check, Goodput, StepSeries, Warmup

CLOSURE_RATIO = 1e-3
"""Largest part of wall time by which the goodput partition may miss it."""


def run_checks(
    series: StepSeries,
    *,
    warmup: Warmup,
    goodput: Goodput | None,
    choices: Mapping[str, Choice],
    observations: Mapping[str, Observation],
    in_campaign: bool,
) -> tuple[Check, ...]:
    """Every check of one run.

    Args:
        series: its steps.
        warmup: steps to drop.
        goodput: partition of wall time, None when switched off.
        choices: op → how its backend was chosen.
        observations: op → what ran during the steps.
        in_campaign: whether what was asked for first must have run.
    """
    bad_losses = [step for step, loss in zip(series.step, series.loss, strict=True) if loss is None]
    checks = [
        Check(name="steps_present", ok=bool(series.step), detail=f"{len(series.step)} steps"),
        Check(
            name="losses_finite",
            ok=not bad_losses,
            detail=f"loss is not finite at step {bad_losses[0]}" if bad_losses else "",
        ),
        _backend_check(choices, observations, in_campaign=in_campaign),
        Check(name="steady_state", ok=warmup.steady, detail=warmup.reason),
    ]
    if goodput is not None:
        checks.append(_closure_check(goodput))
    return tuple(checks)


def _backend_check(
    choices: Mapping[str, Choice], observations: Mapping[str, Observation], *, in_campaign: bool
) -> Check:
    """Observed must be chosen, and in a campaign chosen must be what the arm asked for first."""
    wrong: list[str] = []
    for op, choice in choices.items():
        observed = observations[op].backends
        required = choice.requested[0] if in_campaign and choice.requested else choice.chosen
        if observed != (required,):
            why = "; ".join(r.reason for r in choice.rejected if r.backend == required)
            seen = ", ".join(observed) or "nothing"
            wrong.append(
                f"asked for {op}={required}, observed {seen}" + (f" ({why})" if why else "")
            )
    return Check(name="observed_backends", ok=not wrong, detail="; ".join(wrong))


def _closure_check(goodput: Goodput) -> Check:
    parts = goodput.step_seconds + math.fsum(goodput.badput_seconds.values())
    gap = abs(parts - goodput.wall_duration_seconds)
    other = goodput.badput_seconds["other"]
    ok = gap <= CLOSURE_RATIO * goodput.wall_duration_seconds and other >= 0
    return Check(
        name="goodput_closes",
        ok=ok,
        detail="" if ok else f"parts miss wall time by {gap:.6f} s, other is {other:.6f} s",
    )
