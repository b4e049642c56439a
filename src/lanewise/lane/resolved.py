"""A lane with every default decided: the one object a run is built from, written to the child's request file."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from lanewise.lane.schema import Lane
from lanewise.lane.spec import Spec

FeatureSource = Literal["explicit", "ledger_lane", "ledger_class", "stance", "ablation"]
"""Who decided a feature's state, in falling priority; `ablation` is an arm of a campaign."""


class FeatureDecision(Spec):
    """One feature's state on this lane, and who decided it.

    Attributes:
        ledger_digest: of the ledger file that decided, or that held an entry which no longer counts; else None.
        evidence: decisions that the ledger's entry rests on.
        passed_over: why an entry of the ledger did not decide, e.g. `evidence expired: torch 2.13.0 → 2.14.0`.
    """

    key: str
    role: str
    state: str
    source: FeatureSource
    ledger_digest: str | None = None
    evidence: tuple[str, ...] = ()
    passed_over: str | None = None


class ResolvedLane(Spec):
    """Lane, identity and settings, ready to run.

    Attributes:
        canonical_name: family-pattern-depth-machine×n-topology-precision-mode.
        digest: `sha256:…` over what is computed (not features, names, paths or machine).
        config_digest: `sha256:…` over the lane digest and the effective features and ops.
        machine_class: e.g. `cpu-x86_64-2c` or `h100-sxm-80gb`.
        device_type: `cpu` or `cuda`.
        features: every feature that applies to the lane.
        op_preferences: op → backends to try in order; empty tuple means the op's own order.
        model_switches: read by the model assembly.
        runtime_switches: read by the run.
    """

    lane: Lane
    canonical_name: str
    digest: str
    config_digest: str
    machine_class: str
    device_type: Literal["cpu", "cuda"]
    mode: Literal["train", "ablate"]
    features: tuple[FeatureDecision, ...]
    op_preferences: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    model_switches: dict[str, bool] = Field(default_factory=dict)
    runtime_switches: dict[str, bool] = Field(default_factory=dict)
