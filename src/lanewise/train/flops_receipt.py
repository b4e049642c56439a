"""FLOPs of a run: the lane's numerator, what was executed, and the utilisation of every ceiling that is known."""

from __future__ import annotations

import dataclasses

from lanewise.errors import ReceiptError, StoreError
from lanewise.lane.flops import lane_flops
from lanewise.lane.hardware_flops import conventions
from lanewise.lane.peaks import peak
from lanewise.lane.resolved import ResolvedLane
from lanewise.receipts.ceilings import cite
from lanewise.receipts.schema import ComponentFlops, Flops, Machine, StepSummary
from lanewise.receipts.store import Store
from lanewise.receipts.utilization import (
    CitedCeiling,
    TensorActivity,
    utilization_flags,
    utilizations,
)
from lanewise.train.request import RunRequest
from lanewise.train.routing_receipt import routing_mode


def tokens_per_step(resolved: ResolvedLane) -> int:
    """Tokens of one optimizer step on one process."""
    batch = resolved.lane.batch
    return batch.sequence_length * batch.micro_batch_size * batch.gradient_accumulation_steps


def stored_ceiling(request: RunRequest, machine: Machine, at: str) -> CitedCeiling | str:
    """The matmul ceiling that `lanewise doctor` left in the store for this machine, precision and number of threads, or why
    there is none: a document that cannot be read must not cost a run its receipt.

    Args:
        request: the run.
        machine: where it runs.
        at: when it began, RFC 3339 in UTC.
    """
    compute = request.resolved.lane.precision.compute
    threads = request.num_threads if request.resolved.device_type == "cpu" else None
    try:
        found = Store(request.store_root).read_ceilings(machine, compute, threads)
        if found is not None:
            return cite(found, at=at)
    except (ReceiptError, StoreError):
        return "the ceilings of this machine in the store cannot be read; `lanewise doctor` measures them anew"
    with_threads = "" if threads is None else f" with {threads} thread{'s' * (threads != 1)}"
    return f"no {compute} ceiling of this machine{with_threads} in the store; `lanewise doctor` measures it"


def flops_record(
    resolved: ResolvedLane,
    steps: StepSummary | None,
    missing: dict[str, str],
    *,
    ceiling: CitedCeiling | str,
    activity: TensorActivity | str,
) -> Flops:
    """The FLOPs of a receipt. `*_utilization_ratio` are of the vendor's peak, or of the measured ceiling where there is none.

    Args:
        resolved: what was run.
        steps: its steady steps; None without.
        missing: reasons for nulls by dotted path; added to.
        ceiling: measured on this machine with this dtype and number of threads, or why there is none.
        activity: hardware counters, or why there are none.
    """
    counted = lane_flops(resolved.lane)
    three = conventions(resolved.lane, resolved.model_switches)
    compute = resolved.lane.precision.compute
    published = peak(resolved.machine_class, compute)
    cited = ceiling if isinstance(ceiling, CitedCeiling) else None
    measured = None if cited is None else cited.matmul_flops_per_second
    limit = measured if published is None else published.flops_per_second
    counters = activity if isinstance(activity, TensorActivity) else None
    if published is None:
        what = "a CPU" if resolved.device_type == "cpu" else f"{resolved.machine_class}, {compute}"
        missing["flops.peak_flops_per_second"] = f"no published peak for {what}"
        missing["flops.peak_source"] = f"no published peak for {what}"
    if not isinstance(ceiling, CitedCeiling):
        missing["flops.measured_matmul_flops_per_second"] = missing["flops.ceiling"] = ceiling
    if not isinstance(activity, TensorActivity):
        missing["flops.tensor_activity"] = activity
    record = Flops(
        convention=counted.convention,
        convention_version=counted.convention_version,
        causal_factor=counted.causal_factor,
        mla_form=counted.mla_form,
        components=tuple(ComponentFlops(**dataclasses.asdict(row)) for row in counted.components),
        params_total=counted.params_total,
        params_active=counted.params_active,
        training_flops_per_token=counted.training_flops_per_token,
        routing_mode=routing_mode(resolved.lane),
        peak_dtype=compute,
        peak_flops_per_second=None if published is None else published.flops_per_second,
        peak_source=None if published is None else published.source,
        measured_matmul_flops_per_second=measured,
        model_flops_utilization_ratio=None,
        hardware_flops_utilization_ratio=None,
        hardware_flops_per_token=three.hardware,
        six_n_active_flops_per_token=three.six_n_active,
        ceiling=cited,
        tensor_activity=counters,
        flags=(),
    )
    if limit is None or steps is None:
        reason = "no matmul ceiling was measured" if limit is None else "no steady steps"
        missing["flops.model_flops_utilization_ratio"] = reason
        missing["flops.hardware_flops_utilization_ratio"] = reason
        return record
    rate = tokens_per_step(resolved) / steps.mean
    found = utilizations(
        rate,
        {
            "lane": counted.training_flops_per_token,
            "hardware": three.hardware,
            "six_n_active": three.six_n_active,
        },
        {"peak": record.peak_flops_per_second, "measured_matmul": measured},
    )
    return record.model_copy(
        update={
            "model_flops_utilization_ratio": rate * counted.training_flops_per_token / limit,
            "hardware_flops_utilization_ratio": rate * three.hardware / limit,
            "flags": utilization_flags(found, counters),
        }
    )
