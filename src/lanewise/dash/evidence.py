"""Everything a report is drawn from: one campaign, its decisions, and the receipts and step series they cite."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from lanewise.dash.summary import receipt_ids
from lanewise.errors import LanewiseError, ReceiptError, StoreError
from lanewise.receipts.calibration import CalibrationRecord
from lanewise.receipts.decision import CampaignRecord, Decision
from lanewise.receipts.files import FileStamp
from lanewise.receipts.schema import Environment, RunReceipt, StepSeries


class EvidenceStore(Protocol):
    """What a report needs of a store (`receipts.store.Store` is one)."""

    root: str

    def read_campaign(self, campaign_id: str) -> CampaignRecord:
        """The campaign of this id."""
        ...

    def read_decision(self, decision_id: str) -> Decision:
        """The decision of this id."""
        ...

    def read_receipt(self, reference: str) -> RunReceipt:
        """The receipt of this id or location."""
        ...

    def read_steps(self, reference: str) -> StepSeries | None:
        """The step series beside a receipt, or None where it was not kept."""
        ...

    def iter_calibrations(
        self, problems: list[LanewiseError] | None = None
    ) -> Iterator[CalibrationRecord]:
        """Every calibration that can be read; the errors of others go to `problems`."""
        ...

    def receipt_files(self) -> list[FileStamp]:
        """Every receipt file: its name relative to the root, its stem the hex digits of its id."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Evidence:
    """A campaign and what it stands on.

    Attributes:
        campaign: the plan and its outcome.
        decisions: in the order of the campaign.
        receipts: id → receipt, those that could be read.
        series: id → step series, where one was kept.
        unreadable: id → why a cited receipt or its series cannot be read.
        calibrations: those that the campaign is part of.
    """

    campaign: CampaignRecord
    decisions: tuple[Decision, ...]
    receipts: Mapping[str, RunReceipt]
    series: Mapping[str, StepSeries]
    unreadable: Mapping[str, str]
    calibrations: tuple[CalibrationRecord, ...] = ()


def read_decisions(store: EvidenceStore, campaign: CampaignRecord) -> tuple[Decision, ...]:
    """The campaign's decisions, in its order.

    Raises:
        ReceiptError: a decision is missing or damaged; a table without it would mislead.
    """
    return tuple(store.read_decision(decision_id) for decision_id in campaign.decisions)


def gather(store: EvidenceStore, campaign_id: str) -> Evidence:
    """Read a campaign with everything it cites; damaged receipts are named, not fatal.

    Raises:
        ReceiptError: the campaign or a decision is missing or damaged.
    """
    campaign = store.read_campaign(campaign_id)
    decisions = read_decisions(store, campaign)
    receipts: dict[str, RunReceipt] = {}
    series: dict[str, StepSeries] = {}
    unreadable: dict[str, str] = {}
    # One listing for all receipts: looking each id up lists the whole store again.
    locations = {
        f"sha256:{file.stem}": f"{store.root}/{file.name}" for file in store.receipt_files()
    }
    for receipt_id in receipt_ids(decisions):
        try:
            reference = locations.get(receipt_id, receipt_id)
            receipts[receipt_id] = store.read_receipt(reference)
            if (steps := store.read_steps(reference)) is not None:
                series[receipt_id] = steps
        except (ReceiptError, StoreError) as error:
            unreadable[receipt_id] = str(error)
    return Evidence(
        campaign=campaign,
        decisions=decisions,
        receipts=receipts,
        series=series,
        unreadable=unreadable,
        calibrations=tuple(
            calibration
            for calibration in store.iter_calibrations([])
            if campaign.campaign_id in parts_of(calibration)
        ),
    )


def parts_of(calibration: CalibrationRecord) -> frozenset[str]:
    """The campaigns of a calibration: A/A, control, observer."""
    others = (calibration.control, calibration.observer)
    found = (*calibration.campaigns, *(part.campaign_id for part in others if part is not None))
    return frozenset(campaign for campaign in found if campaign is not None)


def compare_environments(
    receipts: Sequence[RunReceipt],
) -> tuple[dict[str, str], dict[str, dict[str, int]]]:
    """What all runs shared, and what differed between them.

    Returns:
        field → value for the shared ones; field → value → number of receipts for the others.
    """
    counted: dict[str, dict[str, int]] = {}
    flat = [_fields(receipt) for receipt in receipts]
    names = dict.fromkeys(name for one in flat for name in one)
    for name in names:
        values = counted.setdefault(name, {})
        for one in flat:
            value = one.get(name, "not set")
            values[value] = values.get(value, 0) + 1
    shared = {name: next(iter(values)) for name, values in counted.items() if len(values) == 1}
    differing = {name: values for name, values in counted.items() if len(values) > 1}
    return shared, differing


_LABELS: dict[str, str] = {
    "host_cpu_model_name": "processor",
    "host_cpu_count": "logical cores",
    "host_arch": "architecture",
    "device_model": "device",
    "device_driver_version": "driver",
    "os_description": "system",
    "python_version": "Python",
    "num_threads": "threads of a run",
    "vcs_revision": "source revision",
    "vcs_dirty": "uncommitted changes",
}


def _fields(receipt: RunReceipt) -> dict[str, str]:
    environment: Environment = receipt.environment
    fields = {"machine class": receipt.machine.class_name}
    for key, label in _LABELS.items():
        value = getattr(environment, key)
        if value is not None:
            fields[label] = ("yes" if value else "no") if isinstance(value, bool) else str(value)
    if environment.host_memory_bytes is not None:
        fields["memory"] = f"{environment.host_memory_bytes / 2**30:.1f} GiB"
    fields |= dict(sorted(environment.packages.items()))
    fields |= {f"${name}": value for name, value in sorted(environment.variables.items())}
    return fields | {
        "machine instance": receipt.machine.instance_digest,
        "environment digest": receipt.environment_digest,
        "protocol digest": receipt.protocol_digest,
        "data digest": receipt.data_digest,
    }
