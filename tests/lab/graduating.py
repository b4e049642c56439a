"""Synthetic stores for graduation: campaigns of fake children with a day, a device and an effect of choice."""

import dataclasses
import functools
import math
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lanewise.lab.graduate import Graduation, graduate
from lanewise.lab.graduate_evidence import Evidence, Found, read_evidence
from lanewise.lab.session import Lab
from lanewise.lane.ledger import LedgerEntry
from lanewise.lane.load import load_lane
from lanewise.receipts.schema import RunReceipt
from lanewise.receipts.store import Store
from lanewise.train.request import RunRequest
from tests.lab.fake import BASE_SECONDS, Script, World, options, state
from tests.receipts.factory import sha

NOW = "2026-12-31T00:00:00Z"
DAYS = [f"2026-11-{day}" for day in range(10, 30)]


def campaign(
    root: Path,
    *,
    day: str,
    ratio: float = 0.8,
    feature: str = "fused_moe",
    device: str = "one",
    lane: Sequence[str] = (),
    blocks: int = 4,
    noise: float = 0.001,
    body: Mapping[str, Any] | None = None,
    treated_body: Mapping[str, Any] | None = None,
    script: Mapping[str, Any] | None = None,
    **changes: Any,
) -> str:
    """Run one campaign in a store; returns its id. `ratio` is the true ratio of step times on ÷ off."""

    def seconds(request: RunRequest, step: int, now: float) -> float:
        at = request.experiment
        wobble = 1 + noise * math.sin(7.0 * (at.block if at else 0))
        on = state(request, feature) == "on"
        # No two campaigns ever measure the same numbers.
        return BASE_SECONDS * (1 + 1e-9 * number) * (ratio * wobble if on else 1.0)

    def receipt(request: RunRequest) -> dict[str, Any]:
        on = state(request, feature) == "on"
        return {
            "created_at": f"{day}T10:00:00Z",
            "machine.instance_digest": sha(device),
            **(body or {}),
            **((treated_body or {}) if on else {}),
        }

    store = Store(str(root))
    number = len(list((root / "campaigns").glob("*"))) if (root / "campaigns").exists() else 0
    world = World(
        store=store,
        script=Script(**{"seconds": seconds, "body": receipt, **(script or {})}),
        now=f"{day}T09:00:00Z",
    )
    world.tokens = [f"{day.replace('-', '')}{number}"]
    made: Lab = world.lab()
    result = made.start(
        options(
            lane=load_lane("nam56r-tiny", lane),
            features=(feature,),
            blocks=blocks,
            budget_seconds=10_000.0,
            **changes,
        )
    )
    return result.campaign.campaign_id


def found(*roots: Path, **arguments: Any) -> Found:
    return read_evidence([str(root) for root in roots], now=NOW, **arguments)


def one(root: Path) -> Evidence:
    (evidence,) = found(root).evidence
    return evidence


@functools.cache
def measured(
    ratio: float = 0.8, lane: tuple[str, ...] = (), feature: str = "fused_moe"
) -> Evidence:
    """Evidence of one real campaign of fake children; each kind is run once per session."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        body = COMPILED if feature == "regional_compile" else None
        campaign(root, day=DAYS[0], ratio=ratio, feature=feature, lane=lane, body=body)
        return one(root)


COMPILED = {"backend_versions": {"regional_compile=on": {"torch": "2.13.0"}}}


def at(evidence: Evidence, day: str, *, device: str = "one", name: str = "") -> Evidence:
    """The same evidence as if it had been taken on another day or device."""
    campaign_id = f"{day}-{device}{name}-{evidence.decision.estimate.ratio:.2f}"  # type: ignore[union-attr]

    def moved(receipts: tuple[RunReceipt, ...]) -> tuple[RunReceipt, ...]:
        return tuple(
            receipt.model_copy(
                update={
                    "experiment": receipt.experiment
                    and receipt.experiment.model_copy(update={"campaign_id": campaign_id}),
                    "artifacts": tuple(
                        artifact.model_copy(update={"sha256": sha(campaign_id + artifact.uri)})
                        for artifact in receipt.artifacts
                    ),
                    "created_at": f"{day}T10:00:00Z",
                    "machine": receipt.machine.model_copy(update={"instance_digest": sha(device)}),
                }
            )
            for receipt in receipts
        )

    return dataclasses.replace(
        evidence,
        plan=evidence.plan.model_copy(update={"created_at": f"{day}T09:00:00Z"}),
        decision=evidence.decision.model_copy(
            update={
                "decision_id": f"{campaign_id}-{evidence.decision.feature}",
                "campaign_id": campaign_id,
            }
        ),
        receipts={arm: moved(receipts) for arm, receipts in evidence.receipts.items()},
    )


def altered(evidence: Evidence, **changes: Any) -> Evidence:
    """With another decision, stored too, so that it is as if the receipts had said so."""
    estimate = changes.pop("estimate", None)
    if estimate is not None:
        assert evidence.decision.estimate is not None
        changes["estimate"] = evidence.decision.estimate.model_copy(update=estimate)
    decision = evidence.decision.model_copy(update=changes)
    return dataclasses.replace(evidence, decision=decision, stored=decision)


def series(*ratios: float, **kind: Any) -> list[Evidence]:
    """Evidence of consecutive days, with these true ratios."""
    return [at(measured(ratio, **kind), day) for day, ratio in zip(DAYS, ratios, strict=False)]


def outcome(*roots: Path, entries: Sequence[LedgerEntry] = ()) -> Graduation:
    return graduate(found(*roots).evidence, entries=entries)
