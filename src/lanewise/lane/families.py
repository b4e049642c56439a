"""The feature families of the article "Training speed by feature", in its order and words."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Family:
    """One row of the article's decision table ("Training speed by feature", feature families)."""

    key: str
    title: str
    speed_role: str
    default_stance: str


FAMILIES: tuple[Family, ...] = (
    Family(
        key="fused_mamba",
        title="Fused Mamba path",
        speed_role="Direct hot-path speed win",
        default_stance="Default on when the model uses it",
    ),
    Family(
        key="fused_residual",
        title="Fused residual helpers",
        speed_role="Repeated small wins that compound",
        default_stance="Default on",
    ),
    Family(
        key="fused_mla_ingress",
        title="Narrow MLA ingress fusion",
        speed_role="Direct local win",
        default_stance="Default on if validated",
    ),
    Family(
        key="fused_mla_projection",
        title="Broad MLA projection fusion",
        speed_role="Conditional / needs repeated proof",
        default_stance="Keep selective",
    ),
    Family(
        key="fused_moe",
        title="Fused MoE dispatch and compute",
        speed_role="Major throughput lever",
        default_stance="Treat as core optimization",
    ),
    Family(
        key="backend_dispatch",
        title="Backend bridge / dispatcher",
        speed_role="Indirect speed enabler",
        default_stance="Keep centralized",
    ),
    Family(
        key="stp",
        title="STP and similar aux features",
        speed_role="Measured tax",
        default_stance="Keep experimental",
    ),
)
"""All seven; a test pins them."""
