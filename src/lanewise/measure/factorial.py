"""Screening designs: many features at once in few runs (Plackett and Burman 1946), folded over. Pure.

A row switches every feature on (+1) or off (−1); over all rows each feature is on as often as off with every other one.
With log step time μ + Σ ½·xⱼ·eⱼ, eⱼ is what switching feature j on adds.

Rows alone confuse main effects with interactions of two features: fully in 8 runs, by a third each in 12. Every row is
therefore run beside its mirror image, all signs turned (foldover; Box and Wilson 1951): what two features do together is
the same in both and cancels in

    d = log t(row) − log t(mirror) = Σ xⱼ·eⱼ + three-feature and higher odd terms

Main effects are the least-squares solution; their error comes from replicates of the same row alone, so effects that the
model leaves out do not count as noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from scipy.linalg import circulant
from scipy.special import stdtr, stdtrit

from lanewise.measure.interactions import RESOLUTION_LOG
from lanewise.measure.stats import POWER, benjamini_hochberg

Floats = np.ndarray[tuple[int, ...], np.dtype[np.float64]]

GENERATORS: Final = {8: "+++-+--", 12: "++-+++---+-", 20: "++--++++-+-+----++-"}
"""Number of rows → first row of Plackett and Burman's tables, the rest are its rotations and a row of minus signs."""

MAX_FACTORS: Final = max(GENERATORS) - 1

FALSE_DISCOVERY_RATE: Final = 0.1
"""q of Benjamini and Hochberg in every screen."""


def plackett_burman(num_factors: int) -> Floats:
    """The smallest design for this many factors: rows × factors of ±1, columns orthogonal and balanced.

    Raises:
        ValueError: fewer than one factor or more than `MAX_FACTORS`.
    """
    if not 1 <= num_factors <= MAX_FACTORS:
        raise ValueError(f"{num_factors} features; a screen takes 1 to {MAX_FACTORS}")
    num_rows = next(size for size in GENERATORS if num_factors < size)
    first = np.array([1.0 if sign == "+" else -1.0 for sign in GENERATORS[num_rows]])
    rotations = circulant(first).T
    design = np.vstack([rotations, -np.ones(num_rows - 1)])
    return np.asarray(design[:, :num_factors], dtype=np.float64)


@dataclass(frozen=True, kw_only=True, slots=True)
class MainEffect:
    """What switching one feature on adds to log step time, over all states of the others.

    Attributes:
        log_ratio: the estimate.
        standard_error_log: from replicates of rows.
        degrees_of_freedom: of that error.
        low: lower end of the 95 % interval.
        high: its upper end.
        mde_log: smallest effect that a test at 5 % finds with 80 % power.
        p_value: two-sided, of no effect.
        adjusted_p: Benjamini and Hochberg over all features.
    """

    log_ratio: float
    standard_error_log: float
    degrees_of_freedom: int
    low: float
    high: float
    mde_log: float
    p_value: float
    adjusted_p: float


def mirrored_main_effects(
    rows: Sequence[int], contrasts: Sequence[float], design: Floats, *, alpha: float = 0.05
) -> tuple[MainEffect, ...]:
    """Main effects from contrasts row − mirror.

    Args:
        rows: index into `design` of each contrast; rows repeat, lost blocks are absent.
        contrasts: log step time of the row − that of its mirror image.
        design: from `plackett_burman`.
        alpha: 1 − coverage of the intervals.

    Raises:
        ValueError: too few rows are left to tell the features apart, or no row was run twice.
    """
    index = np.asarray(rows, dtype=np.int64)
    values = np.asarray(contrasts, dtype=np.float64)
    levels = design[index]
    if len(values) == 0 or np.linalg.matrix_rank(levels) < design.shape[1]:
        raise ValueError("too few rows count to tell the features apart")
    means = {row: values[index == row].mean() for row in set(rows)}
    freedom = len(values) - len(means)
    if freedom < 1:
        raise ValueError("no row was run twice, so there is no measure of noise")
    residual = values - np.array([means[row] for row in rows])
    covariance = np.linalg.inv(levels.T @ levels) * float(residual @ residual) / freedom
    effects = np.linalg.lstsq(levels, values, rcond=None)[0]
    errors = np.maximum(np.sqrt(np.diag(covariance)), RESOLUTION_LOG)
    p_values = [
        2 * float(stdtr(freedom, -abs(effect) / error))
        for effect, error in zip(effects, errors, strict=True)
    ]
    half_widths = float(stdtrit(freedom, 1 - alpha / 2)) * errors
    return tuple(
        MainEffect(
            log_ratio=float(effect),
            standard_error_log=float(error),
            degrees_of_freedom=freedom,
            low=float(effect - half_width),
            high=float(effect + half_width),
            mde_log=float(half_width + stdtrit(freedom, POWER) * error),
            p_value=p,
            adjusted_p=adjusted,
        )
        for effect, error, half_width, p, adjusted in zip(
            effects, errors, half_widths, p_values, benjamini_hochberg(p_values), strict=True
        )
    )


def aliases(design: Floats, *, mirrored: bool) -> Floats:
    """How much of each interaction of two features ends up in each main effect: factors × pairs, pairs (0,1), (0,2) …

    0 is none, ±1 all of it. `mirrored` adds every row's mirror image, as screens do.
    """
    rows = np.vstack([design, -design]) if mirrored else design
    first, second = np.triu_indices(design.shape[1], k=1)
    return np.asarray(rows.T @ (rows[:, first] * rows[:, second]) / len(rows), dtype=np.float64)
