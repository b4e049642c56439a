"""Every op of lanewise, listed by hand, and what of each can run on this machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from lanewise.ops import (
    add_norm,
    attention_core,
    index_topk,
    indexer_loss,
    indexer_warmup_loss,
    linear_cross_entropy,
    m2rnn_scan,
    mimo_scan,
    mla_ingress,
    moe_experts,
    optimizer_step,
    sparse_attention,
    ssd_scan,
    ssm_scan,
)
from lanewise.ops.dispatch import installation_rejection
from lanewise.ops.spec import Capabilities, OpSpec

SPECS: Mapping[str, OpSpec] = MappingProxyType(
    {
        "add_norm": add_norm.SPEC,
        "mla_ingress": mla_ingress.SPEC,
        "attention_core": attention_core.SPEC,
        "index_topk": index_topk.SPEC,
        "sparse_attention": sparse_attention.SPEC,
        "indexer_loss": indexer_loss.SPEC,
        "indexer_warmup_loss": indexer_warmup_loss.SPEC,
        "moe_experts": moe_experts.SPEC,
        "ssm_scan": ssm_scan.SPEC,
        "mimo_scan": mimo_scan.SPEC,
        "ssd_scan": ssd_scan.SPEC,
        "m2rnn_scan": m2rnn_scan.SPEC,
        "linear_cross_entropy": linear_cross_entropy.SPEC,
        "optimizer_step": optimizer_step.SPEC,
    }
)
"""Op name → its table of backends."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Availability:
    """One row of `lanewise doctor`.

    Attributes:
        op: op name.
        backend: backend name.
        is_reference: whether it is the oracle.
        reason: why it cannot run on this machine, or None when it can.
        depends_on_shape: whether some shapes are refused although the machine could run it.
        note: one line about the backend.
    """

    op: str
    backend: str
    is_reference: bool
    reason: str | None
    depends_on_shape: bool
    note: str

    @property
    def available(self) -> bool:
        """Whether this machine can run it, shapes permitting."""
        return self.reason is None


def availability(capabilities: Capabilities) -> tuple[Availability, ...]:
    """Every op × backend with the reason why it cannot run on this machine, in table order."""
    return tuple(
        Availability(
            op=spec.name,
            backend=backend.name,
            is_reference=backend.name == spec.reference,
            reason=installation_rejection(backend, capabilities),
            depends_on_shape=backend.needs.shape_rule is not None,
            note=backend.note,
        )
        for spec in SPECS.values()
        for backend in spec.backends
    )


def packages() -> frozenset[str]:
    """Distributions that some backend asks for."""
    return frozenset(
        package
        for spec in SPECS.values()
        for backend in spec.backends
        for package in backend.needs.packages
    )
