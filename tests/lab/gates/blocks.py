"""Blocks made by hand: one receipt and one step series per arm, each with overrides by dotted path."""

from typing import Any

from lanewise.lab.evidence import BlockEvidence
from lanewise.lab.journal import BlockDone
from tests.receipts.factory import make_receipt, make_steps


def block(
    treated: dict[str, Any] | None = None,
    *,
    control: dict[str, Any] | None = None,
    both: dict[str, Any] | None = None,
    number: int = 1,
    **entry: Any,
) -> BlockEvidence:
    """A sound lockstep block of `fused_moe`; arguments override fields of receipts or of the journal's entry."""
    at = {"experiment.block": number, "experiment.ablation_id": "fused_moe"}
    a = make_receipt(
        {**at, "experiment.arm": "A", "experiment.position": 0, **(both or {}), **(control or {})}
    )
    b = make_receipt({**at, "experiment.arm": "B", **(both or {}), **(treated or {})})
    done = BlockDone(
        **{
            "feature": "fused_moe",
            "block": number,
            "attempt": 1,
            "design": "lockstep",
            "order": ("ABBA",) * 8,
            "order_seed": 7,
            "started_first": "A",
            "lead_steps": 2,
            "warmup_steps": 2,
            "steady": True,
            "warmup_reason": "steady from the first step",
            "receipts": {"A": (a.receipt_id,), "B": (b.receipt_id,)},
            "wall_seconds": 10.0,
            **entry,
        }
    )
    steps = make_steps(18)
    return BlockEvidence(
        entry=done,
        receipts={"A": (a,), "B": (b,)},
        steps={"A": (steps,), "B": (steps,)},
        unreadable=(),
    )
