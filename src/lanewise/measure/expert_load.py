"""How evenly tokens were spread over experts, from the picks of every step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, kw_only=True, slots=True)
class ExpertLoad:
    """Load of the E layers over a window of steps.

    Attributes:
        step_cv: coefficient of variation of picks per expert within one step, mean over steps and layers.
        expert_picks: picks per expert over the window, one row per E layer.
        expert_picks_cv: coefficient of variation of each row.
        null_ratio: share of all picks that fell on null slots.
    """

    step_cv: float
    expert_picks: tuple[tuple[int, ...], ...]
    expert_picks_cv: tuple[float, ...]
    null_ratio: float


def summarise(loads: Sequence[np.ndarray]) -> ExpertLoad | None:
    """Sum up the steps of a window; None when it is empty.

    Args:
        loads: per step int64 [E layers, E + 1], picks per expert and, last, of null slots.
    """
    if not loads:
        return None
    total = np.sum(loads, axis=0)
    return ExpertLoad(
        step_cv=math.fsum(float(_cv(load[:, :-1]).mean()) for load in loads) / len(loads),
        expert_picks=tuple(tuple(int(picks) for picks in layer) for layer in total[:, :-1]),
        expert_picks_cv=tuple(float(cv) for cv in _cv(total[:, :-1])),
        null_ratio=float(total[:, -1].sum() / max(total.sum(), 1)),
    )


def _cv(picks: np.ndarray) -> np.ndarray:
    """Standard deviation ÷ mean along the last axis; 0 where nothing was picked."""
    mean = picks.mean(axis=-1)
    cv: np.ndarray = np.divide(picks.std(axis=-1), mean, out=np.zeros_like(mean), where=mean > 0)
    return cv
