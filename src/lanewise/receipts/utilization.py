"""FLOPs utilisation told honestly: every numerator against every ceiling, and flags for what cannot be right.

Numerators, in FLOPs per token: the lane's own count (MFU), what was executed (HFU: recomputation, latent attention and
taxes included), and 6 × active parameters. Ceilings, in FLOP/s: the vendor's peak, and the matmul rate measured on this
machine. A ratio above 1 says that a count or a ceiling is wrong; it is flagged and never clamped. Hardware counters
are the cross-check: tensor-pipe activity × SM clock ÷ highest SM clock should be near the HFU of the peak
(arXiv 2605.20799 calls it OFU).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

from pydantic import Field

from lanewise.receipts.record import Digest, NonNegativeInt, Record, Seconds

MAX_COUNTER_GAP = 0.10
"""Utilisation points by which counters and FLOPs may differ before it is flagged."""

Ratio = Annotated[float, Field(ge=0.0)]


class CitedCeiling(Record):
    """A measured matmul ceiling as a run cites it."""

    matmul_flops_per_second: Annotated[float, Field(gt=0.0)]
    dtype: str
    num_threads: NonNegativeInt | None
    """Intra-op threads of the measurement, those of the run that cites it; null on a GPU."""
    measured_at: str
    """RFC 3339, UTC."""
    age_seconds: Seconds
    """Between the measurement and the start of the run."""
    machine_instance_digest: Digest
    """The machine it was measured on; that of the run that cites it."""


class TensorActivity(Record):
    """Hardware counters over the steps of a run, mean of the device."""

    source: Literal["nvml_gpm", "dcgm"]
    tensor_active_ratio: Ratio
    """Share of cycles in which any tensor pipe was busy."""
    sm_clock_ratio: Ratio | None
    """SM clock ÷ its highest; null when the device does not tell."""


class Utilization(Record):
    """One numerator against one ceiling."""

    numerator: Literal["lane", "hardware", "six_n_active"]
    ceiling: Literal["peak", "measured_matmul"]
    achieved_flops_per_second: Ratio
    ceiling_flops_per_second: Ratio
    ratio: Ratio


def utilizations(
    tokens_per_second: float,
    flops_per_token: Mapping[Literal["lane", "hardware", "six_n_active"], float | None],
    ceilings: Mapping[Literal["peak", "measured_matmul"], float | None],
) -> tuple[Utilization, ...]:
    """Every numerator that is known against every ceiling that is known, in the order given; impossible numbers are no numbers.

    Args:
        tokens_per_second: of one device.
        flops_per_token: numerators.
        ceilings: FLOP/s of one device.
    """
    known = [
        (numerator, tokens_per_second * flops, ceiling, limit)
        for numerator, flops in flops_per_token.items()
        if flops is not None
        for ceiling, limit in ceilings.items()
        if limit is not None and limit > 0
    ]
    return tuple(
        Utilization(
            numerator=numerator,
            ceiling=ceiling,
            achieved_flops_per_second=achieved,
            ceiling_flops_per_second=limit,
            ratio=achieved / limit,
        )
        for numerator, achieved, ceiling, limit in known
        if achieved >= 0 and math.isfinite(achieved / limit)
    )


def utilization_flags(
    found: Sequence[Utilization], activity: TensorActivity | None
) -> tuple[str, ...]:
    """What cannot be right, one phrase each: ratios above 1, and counters far from the executed FLOPs."""
    flags = [
        f"{each.numerator} FLOPs are {each.ratio:.1%} of {_CEILING_WORDS[each.ceiling]}: more than everything, so the "
        "count or the ceiling is wrong"
        for each in found
        if each.ratio > 1.0
    ]
    executed = next((u for u in found if (u.numerator, u.ceiling) == ("hardware", "peak")), None)
    busy = None if activity is None else counted_utilization(activity)
    if executed is not None and busy is not None and abs(executed.ratio - busy) > MAX_COUNTER_GAP:
        flags.append(
            f"counters say tensor pipes did {busy:.1%} of the peak and the FLOP count says {executed.ratio:.1%}: "
            f"more than {MAX_COUNTER_GAP:.0%} apart"
        )
    return tuple(flags)


def counted_utilization(activity: TensorActivity) -> float | None:
    """Tensor activity × SM clock ÷ highest SM clock; None where the clock is unknown."""
    clock = activity.sm_clock_ratio
    return None if clock is None else activity.tensor_active_ratio * clock


_CEILING_WORDS = {"peak": "the vendor's peak", "measured_matmul": "the measured matmul ceiling"}
