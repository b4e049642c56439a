"""View `utilization`: lane numerator, executed FLOPs and 6·N beside each other, against the peak and the measured ceiling."""

from __future__ import annotations

from typing import Literal

from lanewise.receipts.utilization import (
    CitedCeiling,
    TensorActivity,
    Utilization,
    counted_utilization,
    utilization_flags,
    utilizations,
)
from lanewise.receipts.views.base import ArticleNames, Reasons, Source, View

NAMES: ArticleNames = {"utilizations.ratio": "mfu_percent"}


class UtilizationView(View):
    """Fields of `--view utilization`."""

    view: Literal["utilization"] = "utilization"
    convention: str
    """Of the lane's numerator, with its version."""
    tokens_per_second: float | None
    """Of one device."""
    lane_flops_per_token: float
    hardware_flops_per_token: float | None
    six_n_active_flops_per_token: float | None
    peak_flops_per_second: float | None
    peak_source: str | None
    ceiling: CitedCeiling | None
    """The matmul ceiling measured on this machine, with its age when the run began."""
    measured_matmul_flops_per_second: float | None
    utilizations: tuple[Utilization, ...]
    tensor_activity: TensorActivity | None
    counted_utilization_ratio: float | None
    """Tensor activity × SM clock ÷ highest SM clock: what hardware counters say of the peak."""
    flags: tuple[str, ...]
    """What cannot be right as it stands; nothing is clamped."""


def utilization(source: Source) -> UtilizationView:
    """Build the view."""
    receipt = source.receipt
    reasons = Reasons(receipt)
    flops = receipt.flops
    rate = receipt.throughput.tokens_per_second_per_device
    found: tuple[Utilization, ...] = ()
    if rate is not None:
        found = utilizations(
            rate,
            {
                "lane": flops.training_flops_per_token,
                "hardware": flops.hardware_flops_per_token,
                "six_n_active": flops.six_n_active_flops_per_token,
            },
            {
                "peak": flops.peak_flops_per_second,
                "measured_matmul": flops.measured_matmul_flops_per_second,
            },
        )
    if not found:
        reasons.take("utilizations", None, path="flops.model_flops_utilization_ratio")
    activity = flops.tensor_activity
    return UtilizationView(
        receipt_id=receipt.receipt_id,
        lane=receipt.lane.canonical_name,
        convention=f"{flops.convention} {flops.convention_version}",
        tokens_per_second=reasons.take(
            "tokens_per_second", rate, path="throughput.tokens_per_second_per_device"
        ),
        lane_flops_per_token=flops.training_flops_per_token,
        hardware_flops_per_token=reasons.take(
            "hardware_flops_per_token",
            flops.hardware_flops_per_token,
            path="flops.hardware_flops_per_token",
        ),
        six_n_active_flops_per_token=reasons.take(
            "six_n_active_flops_per_token",
            flops.six_n_active_flops_per_token,
            path="flops.six_n_active_flops_per_token",
        ),
        peak_flops_per_second=reasons.take(
            "peak_flops_per_second", flops.peak_flops_per_second, path="flops.peak_flops_per_second"
        ),
        peak_source=reasons.take("peak_source", flops.peak_source, path="flops.peak_source"),
        ceiling=reasons.take("ceiling", flops.ceiling, path="flops.ceiling"),
        measured_matmul_flops_per_second=reasons.take(
            "measured_matmul_flops_per_second",
            flops.measured_matmul_flops_per_second,
            path="flops.measured_matmul_flops_per_second",
        ),
        utilizations=found,
        tensor_activity=reasons.take("tensor_activity", activity, path="flops.tensor_activity"),
        counted_utilization_ratio=reasons.take(
            "counted_utilization_ratio",
            None if activity is None else counted_utilization(activity),
            path="flops.tensor_activity",
            otherwise="the device tells no SM clock",
        ),
        flags=utilization_flags(found, activity),
        missing=reasons.missing,
    )
