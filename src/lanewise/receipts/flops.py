"""FLOPs of a receipt: what the lane needs, what was executed, and against which ceilings."""

from __future__ import annotations

from typing import Literal

from lanewise.receipts.record import NonNegativeInt, Record
from lanewise.receipts.utilization import CitedCeiling, TensorActivity


class ComponentFlops(Record):
    """Parameters and forward FLOPs of one component of the lane."""

    component: str
    count: NonNegativeInt
    params: NonNegativeInt
    active_params: NonNegativeInt
    forward_flops_per_token: float
    training_flops_per_token: float


class Flops(Record):
    """FLOP convention, lane numerator and utilisation (null without a measured ceiling)."""

    convention: str
    convention_version: str
    causal_factor: str
    mla_form: Literal["expanded", "absorbed"]
    components: tuple[ComponentFlops, ...]
    params_total: NonNegativeInt
    params_active: NonNegativeInt
    training_flops_per_token: float
    routing_mode: Literal["learned", "forced_balanced", "replayed"]
    peak_dtype: str
    peak_flops_per_second: float | None
    peak_source: str | None
    measured_matmul_flops_per_second: float | None
    model_flops_utilization_ratio: float | None
    hardware_flops_utilization_ratio: float | None
    hardware_flops_per_token: float | None = None
    """Training FLOPs executed: recomputation, latent attention and taxes included (docs/FLOPS.md)."""
    six_n_active_flops_per_token: float | None = None
    """6 × active parameters, the rule of thumb behind many public numbers."""
    ceiling: CitedCeiling | None = None
    """Where `measured_matmul_flops_per_second` comes from, and how old it was."""
    tensor_activity: TensorActivity | None = None
    """Share of cycles in which tensor pipes were busy, by hardware counters."""
    flags: tuple[str, ...] | None = None
    """Utilisations that cannot be right as they stand (above 100 %, far from the counters); never clamped."""
