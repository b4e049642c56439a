"""Which files of a store a campaign needs to be looked at, judged and continued elsewhere."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from lanewise.errors import LanewiseError
from lanewise.lab.campaign import LOCK, CampaignFolder
from lanewise.lab.journal import BlockDone
from lanewise.receipts import files
from lanewise.receipts.calibration import CalibrationBlock
from lanewise.receipts.decision import BlockRecord
from lanewise.receipts.index import Index
from lanewise.receipts.store import Store, artifact_location


def names_of(
    store: Store, index: Index, folder: CampaignFolder, locations: Mapping[str, str]
) -> Iterator[str]:
    """Files of a campaign, relative to the store's root.

    Args:
        store: where it is.
        index: of that store.
        folder: the campaign's.
        locations: receipt id → file, relative to the store's root.
    """
    campaign = folder.path.name
    for path in sorted(folder.path.iterdir()):
        if path.is_file() and path.name != LOCK and not path.name.startswith("."):
            yield f"campaigns/{campaign}/{path.name}"
    prefix = f"{store.root}/"
    cited = {
        receipt
        for entry in folder.journal.read()
        if isinstance(entry, BlockDone)
        for ids in entry.receipts.values()
        for receipt in ids
    }
    for row in index.query(kind="decision", campaign=campaign).rows:
        yield row.location.removeprefix(prefix)
    for name, blocks in _instruments(store, folder):
        yield name
        cited |= {receipt for block in blocks for ids in block.receipts.values() for receipt in ids}
    # Receipts that no line cites are of attempts that were cut short: evidence as well.
    found = {row.location.removeprefix(prefix) for row in index.query(campaign=campaign).rows}
    found |= {locations[receipt] for receipt in cited & locations.keys()}
    for name in sorted(found):
        yield name
        location = f"{prefix}{name}"
        for artifact in store.read_receipt(location).artifacts:
            beside = artifact_location(location, artifact)
            if beside.startswith(prefix) and files.exists(beside):
                yield beside.removeprefix(prefix)


def _instruments(
    store: Store, folder: CampaignFolder
) -> Iterator[tuple[str, Sequence[BlockRecord | CalibrationBlock]]]:
    """Calibrations drawn from a campaign, and what its noise and margin come from: file and the blocks it cites."""
    plan = folder.plan()
    campaign = folder.path.name
    for calibration in store.iter_calibrations([]):
        parts = (calibration.control, calibration.observer)
        if campaign in {*calibration.campaigns, *(part.campaign_id for part in parts if part)}:
            yield f"calibrations/{calibration.calibration_id}.json", calibration.blocks
    for source in sorted({plan.noise_source, plan.margin.source}):
        for name, read in (
            (f"calibrations/{source}.json", store.read_calibration),
            (f"decisions/{source}.json", store.read_decision),
        ):
            location = f"{store.root}/{name}"
            if "/" not in source and files.exists(location):
                try:
                    yield name, read(location).blocks
                except LanewiseError:
                    yield name, ()  # whoever packs says what is wrong with it
