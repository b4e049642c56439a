"""Where the warm-up of two arms that take turns ends: judged by their difference.

What both arms share, a clock that rises, a neighbour that comes, a machine that warms up, cancels in each quad and moves
no contrast, so it is no reason to throw a quad away. Judging each arm's own level did: with common drift it dropped up to
four fifths of a block, and an A/A block that kept 4 of 22 quads had twice the spread of one that kept all. What one arm
alone still does (compiling, tuning, filling a cache, growing its allocator) shows in the contrast, or carries a tag.

The series is d = mean log B − mean log A of each quad, cut into levels as `measure.levels` says. Its σ is at least what
the steps' own differences give: of five quads alone no spread can be told.

*Start.* The first quad after the last tagged step of either arm.
*Steady part.* The earliest segment from there whose level holds: segments that differ materially from it, in either
direction, hold at most a fifth of what follows, and what came before at most half: whether a longer start was warm-up or
the end a disturbance, one block cannot tell. "Materially" is a median off by more than max(0.5 %, half the SD of a quad).
*Drift.* As for a single series (`measure.steady`): one arm that slowly gains on the other has no steady difference.

On flat simulated differences (600 blocks each; a shared random walk; steps with 8 % of noise, a tenth of them spikes of
40 %) 99 % of blocks of 5, 20 and 64 quads are called steady and 94 to 97 % keep every quad; three quads are too few to
tell a level from noise, and 90 % pass.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Final

import numpy as np

from lanewise.measure.levels import (
    MIN_POINTS,
    Noise,
    clip_spikes,
    drift,
    estimate_noise,
    segment_starts,
    segments_from,
)
from lanewise.measure.stats import STEPS_PER_ARM_AND_QUAD, quad_contrasts, step_contrasts
from lanewise.measure.steady import MAX_DISTURBED, QUIET_STEPS
from lanewise.receipts.schema import Warmup

PAIR_RULE: Final = "pelt-quad-contrast-theilsen-1"
"""Name and version of the rule above, kept in every receipt of a block whose arms took turns."""


def detect_pair_warmup(
    control_seconds: Sequence[float],
    treated_seconds: Sequence[float],
    *,
    tagged: Collection[int] = (),
    lead_steps: int,
) -> Warmup:
    """Steps of both arms to drop at the start, or why their difference is not steady (then every step is dropped).

    Args:
        control_seconds: every step of arm A in order: `lead_steps`, then two for each quad.
        treated_seconds: the same of arm B.
        tagged: indices of steps that compiled, tuned, captured or reserved memory in either arm; the steady part starts
            with the first quad after the last one, and at least `QUIET_STEPS` steps must follow it.
        lead_steps: steps before the first quad, always dropped.

    Raises:
        ValueError: arms of different length, no whole number of quads, or a duration that is not positive.
    """
    num_steps = len(control_seconds)
    after_tagged = max(tagged, default=-1) + 1
    if after_tagged and num_steps - after_tagged < QUIET_STEPS:
        return _unsteady(
            num_steps,
            f"{num_steps - after_tagged} steps since the last tagged step ({after_tagged - 1}), "
            f"{QUIET_STEPS} are needed",
        )
    first = _whole_quads(after_tagged, lead_steps)
    if num_steps - first < MIN_POINTS * STEPS_PER_ARM_AND_QUAD:
        left = (num_steps - first) // STEPS_PER_ARM_AND_QUAD
        return _unsteady(num_steps, f"{left} quads, {MIN_POINTS} are needed")
    settled = np.asarray(quad_contrasts(control_seconds[first:], treated_seconds[first:]))
    of_steps = estimate_noise(step_contrasts(control_seconds[first:], treated_seconds[first:]))
    of_quads = estimate_noise(settled)
    noise = Noise(
        sigma=max(of_quads.sigma, of_steps.sigma / math.sqrt(STEPS_PER_ARM_AND_QUAD)),
        long_run_factor=of_quads.long_run_factor,
    )
    bounds = segments_from(0, segment_starts(clip_spikes(settled, noise), noise), len(settled))
    levels = [float(np.median(settled[start:stop])) for start, stop in bounds]
    start = _first_that_holds(levels, bounds, noise.tolerance)
    if start is None:
        last = bounds[-1][1] - bounds[-1][0]
        return _unsteady(
            num_steps, f"no level holds for half of its {len(settled)} quads; the last has {last}"
        )
    drift_log, certain = drift(settled[start:], noise)
    if certain and abs(drift_log) > 2 * noise.tolerance:
        return _unsteady(
            num_steps,
            f"it drifts by {math.expm1(drift_log):+.1%} over {len(settled) - start} quads",
        )
    steps = first + start * STEPS_PER_ARM_AND_QUAD
    if start:
        moved = math.expm1(levels[0] - levels[-1])
        reason = (
            f"difference of the arms steady from step {steps}; at first it was {moved:+.1%} off"
        )
    elif after_tagged > lead_steps:
        reason = f"difference of the arms steady after the last tagged step ({after_tagged - 1})"
    else:
        reason = "difference of the arms steady from the first quad"
    return Warmup(rule=PAIR_RULE, steps=steps, steady=True, reason=reason)


def _whole_quads(steps: int, lead_steps: int) -> int:
    """The first step of a quad that is not before `steps`."""
    quads = max(0, math.ceil((steps - lead_steps) / STEPS_PER_ARM_AND_QUAD))
    return lead_steps + quads * STEPS_PER_ARM_AND_QUAD


def _first_that_holds(
    levels: Sequence[float], bounds: Sequence[tuple[int, int]], tolerance: float
) -> int | None:
    num_quads = bounds[-1][1]
    for index, (start, _) in enumerate(bounds):
        if start > num_quads / 2:
            break
        lengths = [stop - begin for begin, stop in bounds[index:]]
        others = sum(
            length
            for level, length in zip(levels[index:], lengths, strict=True)
            if abs(level - levels[index]) > tolerance
        )
        enough = sum(lengths) - others >= MIN_POINTS
        if enough and others <= MAX_DISTURBED * sum(lengths):
            return start
    return None


def _unsteady(num_steps: int, reason: str) -> Warmup:
    return Warmup(
        rule=PAIR_RULE,
        steps=num_steps,
        steady=False,
        reason=f"no steady difference of the arms: {reason}",
    )
