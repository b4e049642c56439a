"""View `goodput`: where the wall time of a run went, as a partition that closes."""

from __future__ import annotations

import math
from typing import Any, Literal

from lanewise.receipts.goodput import GoodputByRank
from lanewise.receipts.record import Record
from lanewise.receipts.views.base import ArticleNames, Reasons, Source, View

NAMES: ArticleNames = {
    "goodput_ratio": "goodput",
    "wall_duration_seconds": "wall_time_s",
    "step_seconds": "step_time_s",
    "num_steps": "step_count",
    "mean_step_seconds": "avg_step_s",
    "parts.seconds": "badput",
    "other_seconds": "idle",
}


class GoodputPart(Record):
    """One category of wall time."""

    category: str
    seconds: float
    wall_ratio: float | None
    """Share of wall time; null in a run without any."""


class RankedPart(Record):
    """One category of wall time over all ranks of a run of several processes."""

    category: str
    fastest_seconds: float
    fastest_rank: int
    slowest_seconds: float
    slowest_rank: int
    mean_seconds: float


class GoodputView(View):
    """Fields of `--view goodput`."""

    view: Literal["goodput"] = "goodput"
    wall_duration_seconds: float | None
    step_seconds: float | None
    goodput_ratio: float | None
    """Steps ÷ (wall − waiting for the other arm of a lockstep block)."""
    parts: tuple[GoodputPart, ...]
    """Steps first, then every category of badput that is not 0, largest first."""
    other_seconds: float | None
    """What no span claimed; computed, never clamped, so negative when spans overlap."""
    gap_seconds: float | None
    """Parts − wall; 0 but for rounding."""
    num_steps: int | None
    mean_step_seconds: float | None
    """Over all steps, warm-up included."""
    observer_seconds: float | None
    overlapped_seconds: float | None
    num_ranks: int | None
    straggler_ratio: float | None
    """What the job's steps took ÷ what they would have taken with every rank as fast as the mean."""
    rank_parts: tuple[RankedPart, ...]
    """Wall time, steps and every category of badput that is not 0 everywhere: fastest and slowest rank."""


def goodput(source: Source) -> GoodputView:
    """Build the view."""
    receipt = source.receipt
    reasons = Reasons(receipt)
    found = receipt.goodput
    steps = source.steps
    num_steps = None if steps is None else len(steps.step)
    mean = None
    if steps is not None and steps.duration_seconds:
        mean = math.fsum(steps.duration_seconds) / len(steps.duration_seconds)
    reasons.take("num_steps", num_steps, otherwise="the receipt has no step series")
    reasons.take(
        "mean_step_seconds",
        mean,
        otherwise="the receipt has no step series" if steps is None else "no steps",
    )
    by_rank = receipt.goodput_by_rank
    for field in ("num_ranks", "straggler_ratio", "rank_parts"):
        reasons.take(field, by_rank, path="goodput_by_rank", otherwise="a run of one process")
    ranks: dict[str, Any] = {
        "num_ranks": None if by_rank is None else by_rank.num_ranks,
        "straggler_ratio": None if by_rank is None else by_rank.straggler_ratio,
        "rank_parts": () if by_rank is None else _rank_parts(by_rank),
    }
    if found is None:
        fields = (
            "wall_duration_seconds",
            "step_seconds",
            "goodput_ratio",
            "parts",
            "other_seconds",
            "gap_seconds",
        )
        for field in (*fields, "observer_seconds", "overlapped_seconds"):
            reasons.take(field, None, path="goodput")
        return GoodputView(
            receipt_id=receipt.receipt_id,
            lane=receipt.lane.canonical_name,
            **dict.fromkeys(set(fields) - {"parts"}),
            parts=(),
            num_steps=num_steps,
            mean_step_seconds=mean,
            observer_seconds=None,
            overlapped_seconds=None,
            **ranks,
            missing=reasons.missing,
        )
    wall = found.wall_duration_seconds
    lost = sorted(found.badput_seconds.items(), key=lambda item: -abs(item[1]))
    named = [("step", found.step_seconds), *((key, value) for key, value in lost if value)]
    if not wall:
        reasons.missing["parts.wall_ratio"] = "the run took no wall time"
    return GoodputView(
        receipt_id=receipt.receipt_id,
        lane=receipt.lane.canonical_name,
        wall_duration_seconds=wall,
        step_seconds=found.step_seconds,
        goodput_ratio=found.goodput_ratio,
        parts=tuple(
            GoodputPart(category=key, seconds=value, wall_ratio=value / wall if wall else None)
            for key, value in named
        ),
        other_seconds=reasons.take(
            "other_seconds", found.badput_seconds.get("other"), otherwise="the partition has none"
        ),
        gap_seconds=math.fsum((found.step_seconds, *found.badput_seconds.values())) - wall,
        num_steps=num_steps,
        mean_step_seconds=mean,
        observer_seconds=reasons.take(
            "observer_seconds", found.observer_seconds, path="goodput.observer_seconds"
        ),
        overlapped_seconds=reasons.take(
            "overlapped_seconds", found.overlapped_seconds, path="goodput.overlapped_seconds"
        ),
        **ranks,
        missing=reasons.missing,
    )


def _rank_parts(by_rank: GoodputByRank) -> tuple[RankedPart, ...]:
    ranges = {"wall": by_rank.wall_duration_seconds, "step": by_rank.step_seconds}
    ranges |= {key: each for key, each in by_rank.badput_seconds.items() if each.slowest > 0}
    return tuple(
        RankedPart(
            category=category,
            fastest_seconds=each.fastest,
            fastest_rank=each.fastest_rank,
            slowest_seconds=each.slowest,
            slowest_rank=each.slowest_rank,
            mean_seconds=each.mean,
        )
        for category, each in ranges.items()
    )
