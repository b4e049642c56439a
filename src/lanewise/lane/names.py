"""Canonical lane names: family-pattern-depth-machine×n-topology-precision-mode."""

from __future__ import annotations

from lanewise.lane import machine
from lanewise.lane.schema import Lane, PrecisionSpec
from lanewise.lane.topology import topology_name, world_size


def canonical_name(lane: Lane, *, machine_class: str, mode: str) -> str:
    """The name that says what ran where, e.g. `nam56r-AEMEAEMEAEMR-d12-cpu-x86_64-2c×1-single-fp32-train`.

    Raises:
        UsageError: `machine_class` is a bare nickname.
    """
    machine.require_machine_class(machine_class)
    parts = (
        lane.model.family,
        lane.model.pattern,
        f"d{lane.model.num_layers}",
        f"{machine_class}×{world_size(lane.topology)}",
        topology_name(lane.topology),
        precision_name(lane.precision),
        mode,
    )
    return "-".join(parts)


def precision_name(precision: PrecisionSpec) -> str:
    """`fp32` or `bf16`; a residual stream of another dtype is added, e.g. `bf16+fp32res`."""
    if precision.compute == precision.residual:
        return precision.compute
    return f"{precision.compute}+{precision.residual}res"
