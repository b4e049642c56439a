"""The few fields of a receipt or a decision that listings and filters need, taken with light checks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from lanewise.errors import ReceiptError, one_line


@dataclass(frozen=True, slots=True)
class Promoted:
    """What the index holds of one record; None where the record has no such field or value.

    Attributes:
        kind: `receipt` or `decision`.
        id: receipt id or decision id.
        created_at: RFC 3339, UTC.
        lane_name: the lane's name.
        lane_digest: the lane's digest.
        campaign_id: the campaign it belongs to.
        ablation_id: the feature under test.
        arm: `A` or `B`, receipts only.
        block: number of the block, receipts only.
        status: `success` or `aborted`; a decision's `COMPLETE` or `INCOMPLETE`.
        validity: `valid` or `invalid`, receipts only.
        failure_family: kind of failure, receipts only; None in receipts before 1.2.
        verdict: decisions only.
        median_step_seconds: median steady step; a decision's treated arm.
        tokens_per_second: over the steady steps; a decision's treated arm.
        peak_bytes: peak of tensor storage, else of the process; a decision's treated arm.
        goodput_ratio: share of wall time in steps; a decision's treated arm.
    """

    kind: Literal["receipt", "decision"]
    id: str | None = None
    created_at: str | None = None
    lane_name: str | None = None
    lane_digest: str | None = None
    campaign_id: str | None = None
    ablation_id: str | None = None
    arm: str | None = None
    block: int | None = None
    status: str | None = None
    validity: str | None = None
    failure_family: str | None = None
    verdict: str | None = None
    median_step_seconds: float | None = None
    tokens_per_second: float | None = None
    peak_bytes: float | None = None
    goodput_ratio: float | None = None


def promote(
    kind: Literal["receipt", "decision"], document: Mapping[str, Any], location: str
) -> Promoted:
    """Take the promoted fields from a parsed record.

    Raises:
        ReceiptError: a field is missing or of another type, or the file has another record's name.
    """
    try:
        promoted = _receipt(document) if kind == "receipt" else _decision(document)
    except (KeyError, TypeError, AttributeError) as error:
        raise ReceiptError(
            f"{location}: no {kind} of schema {document.get('schema_version')} "
            f"({type(error).__name__}: {one_line(str(error))}); `lanewise receipt validate` says more"
        ) from error
    name = (promoted.id or "").removeprefix("sha256:") + ".json"
    if name != location.rsplit("/", 1)[-1]:
        raise ReceiptError(
            f"{location}: holds {kind} {one_line(promoted.id or '')}; rename the file to {one_line(name)}, or delete it"
        )
    return promoted


def _receipt(document: Mapping[str, Any]) -> Promoted:
    lane, outcome = document["lane"], document["outcome"]
    experiment = document["experiment"] or {}
    steps = document["timing"]["step_duration_seconds"] or {}
    memory, goodput = document["memory"], document["goodput"] or {}
    peak = memory["peak_allocated_bytes"]
    return Promoted(
        kind="receipt",
        id=_text(document["receipt_id"]),
        created_at=_text(document["created_at"]),
        lane_name=_text(lane["name"]),
        lane_digest=_text(lane["digest"]),
        campaign_id=_optional_text(experiment.get("campaign_id")),
        ablation_id=_optional_text(experiment.get("ablation_id")),
        arm=_optional_text(experiment.get("arm")),
        block=_optional_integer(experiment.get("block")),
        status=_text(outcome["status"]),
        validity=_text(outcome["validity"]),
        failure_family=_optional_text(outcome.get("failure_family")),
        median_step_seconds=_optional_number(steps.get("median")),
        tokens_per_second=_optional_number(document["throughput"]["tokens_per_second"]),
        peak_bytes=_optional_number(memory["peak_device_used_bytes"] if peak is None else peak),
        goodput_ratio=_optional_number(goodput.get("goodput_ratio")),
    )


def _decision(document: Mapping[str, Any]) -> Promoted:
    lane = document["lane"]
    return Promoted(
        kind="decision",
        id=_text(document["decision_id"]),
        created_at=_text(document["created_at"]),
        lane_name=_text(lane["name"]),
        lane_digest=_text(lane["digest"]),
        campaign_id=_text(document["campaign_id"]),
        ablation_id=_text(document["feature"]),
        status=_text(document["status"]),
        verdict=_text(document["verdict"]),
        median_step_seconds=_optional_number(document["treated_step_seconds"]),
        tokens_per_second=_optional_number(document["tokens_per_second"]["treated"]),
        peak_bytes=_optional_number(document["peak_memory_bytes"]["treated"]),
        goodput_ratio=_optional_number(document["goodput"]["treated"]),
    )


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    return value


def _optional_text(value: object) -> str | None:
    return None if value is None else _text(value)


def _optional_integer(value: object) -> int | None:
    if value is None or (isinstance(value, int) and not isinstance(value, bool)):
        return value
    raise TypeError(f"{value!r} is no whole number")


def _optional_number(value: object) -> float | None:
    if value is None or (isinstance(value, (int, float)) and not isinstance(value, bool)):
        return value
    raise TypeError(f"{value!r} is no number")
