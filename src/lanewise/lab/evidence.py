"""The receipts and step series of one block, read back from the store: the only thing a verdict may rest on."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median
from types import MappingProxyType

from lanewise.errors import ReceiptError
from lanewise.lab import protocol
from lanewise.lab.journal import BlockDone
from lanewise.lab.schedule import ArmName
from lanewise.measure.loss_curve import LossComparison, compare_losses
from lanewise.measure.stats import (
    median_quad_contrast,
    quad_contrast,
    quad_contrasts,
    visit_contrast,
)
from lanewise.receipts.extension_keys import PROTOCOL_KEY
from lanewise.receipts.migrate import UPGRADE_COMMAND
from lanewise.receipts.schema import RunReceipt, StepSeries
from lanewise.receipts.store import Store


@dataclass(frozen=True, kw_only=True, slots=True)
class BlockEvidence:
    """One finished block.

    Attributes:
        entry: the journal's line.
        receipts: arm → receipts in the order of the visits.
        steps: arm → step series of those receipts.
        unreadable: why evidence is missing; empty when it is all there.
    """

    entry: BlockDone
    receipts: Mapping[ArmName, tuple[RunReceipt, ...]]
    steps: Mapping[ArmName, tuple[StepSeries, ...]]
    unreadable: tuple[str, ...]

    @property
    def num_quads(self) -> int:
        """Quads after warm-up; in a sequential block its one order of visits."""
        if self.entry.design == "sequential":
            return len(self.entry.order)
        dropped = (self.entry.warmup_steps - self.entry.lead_steps) // protocol.STEPS_PER_QUAD
        return max(0, len(self.entry.order) - max(0, dropped))

    def steady_seconds(self, arm: ArmName) -> tuple[tuple[float, ...], ...]:
        """Durations of each visit's steps after the block's warm-up."""
        return tuple(
            series.duration_seconds[self.entry.warmup_steps :] for series in self.steps[arm]
        )

    def median_seconds(self, arm: ArmName) -> float | None:
        """Median steady step of an arm, geometric mean over its visits."""
        visits = [visit for visit in self.steady_seconds(arm) if visit]
        if not visits:
            return None
        return math.exp(fmean(math.log(median(visit)) for visit in visits))

    def contrast_log(self) -> float | None:
        """Effect of this block on log step time, or None when nothing is left after warm-up.

        Lockstep: centre over quads of mean log B − mean log A (P1b), by the version of the method the block was measured
        with. Sequential: mean over B visits of the median log step − the same over A visits (P4).
        """
        control, treated = self.steady_seconds("A"), self.steady_seconds("B")
        if not all((control, treated, *control, *treated)):
            return None
        if self.entry.design == "sequential":
            return visit_contrast(control, treated)
        return _QUAD_CONTRASTS[method_version(self.receipts["A"][0])](control[0], treated[0])

    def quad_contrasts(self) -> tuple[float, ...]:
        """Effect of each steady quad of a block whose arms took turns; empty when nothing is left after warm-up."""
        control, treated = self.steady_seconds("A"), self.steady_seconds("B")
        if not all((control, treated, *control, *treated)):
            return ()
        return quad_contrasts(control[0], treated[0])

    def paired_losses(self, compute: str) -> tuple[tuple[int, float | None, float | None], ...]:
        """(step, loss of A, loss of B) of the first visits, as far as rounding in this dtype keeps them together."""
        control, treated = self.steps["A"][0], self.steps["B"][0]
        paired = zip(control.step, control.loss, treated.loss, strict=False)
        return tuple(paired)[: protocol.PAIRED_LOSS_STEPS[compute]]

    def losses(self) -> LossComparison | None:
        """Losses of the first visits at equal steps and at equal time, or None where an arm has none."""
        control, treated = self.steps["A"], self.steps["B"]
        return compare_losses(control[0], treated[0]) if control and treated else None


_QUAD_CONTRASTS: Mapping[str, Callable[[Sequence[float], Sequence[float]], float]] = (
    MappingProxyType({"1": median_quad_contrast, protocol.METHOD_VERSION: quad_contrast})
)
"""Version of the method → contrast of a block whose arms took turns."""


def method_version(receipt: RunReceipt) -> str:
    """How the block of a receipt was measured; receipts that keep no parameters are older than the second version."""
    parameters = receipt.extensions.get(PROTOCOL_KEY)
    return str(parameters["method_version"]) if isinstance(parameters, Mapping) else "1"


def receipt_locations(store: Store) -> dict[str, str]:
    """Receipt id → path, by one listing: a store may hold many thousand receipts."""
    return {f"sha256:{file.stem}": f"{store.root}/{file.name}" for file in store.receipt_files()}


def read_blocks(
    store: Store, entries: Sequence[BlockDone], locations: Mapping[str, str] | None = None
) -> tuple[BlockEvidence, ...]:
    """Read the receipts of blocks; what cannot be read is named, not raised, so that the other blocks still count.

    Args:
        store: holds them.
        entries: the journal's lines.
        locations: of `receipt_locations`, where the caller has listed the store already.
    """
    locations = receipt_locations(store) if locations is None else locations
    return tuple(_read_block(store, entry, locations) for entry in entries)


def _read_block(store: Store, entry: BlockDone, locations: Mapping[str, str]) -> BlockEvidence:
    receipts: dict[ArmName, tuple[RunReceipt, ...]] = {"A": (), "B": ()}
    steps: dict[ArmName, tuple[StepSeries, ...]] = {"A": (), "B": ()}
    unreadable: list[str] = []
    for arm in receipts:
        for receipt_id in entry.receipts.get(arm, ()):
            location = locations.get(receipt_id)
            if location is None:
                unreadable.append(f"arm {arm}: receipt {receipt_id[:19]} is not in the store")
                continue
            try:
                receipt = store.read_receipt(location)
                series = store.steps_of(receipt, location)
            except ReceiptError as error:
                unreadable.append(f"arm {arm}: {error}")
                continue
            if method_version(receipt) not in _QUAD_CONTRASTS:
                unreadable.append(
                    f"arm {arm}: measured by method {method_version(receipt)}, and this lanewise knows "
                    f"{', '.join(_QUAD_CONTRASTS)}; run `{UPGRADE_COMMAND}`"
                )
                continue
            receipts[arm] = (*receipts[arm], receipt)
            if series is None:
                unreadable.append(f"arm {arm}: receipt {receipt_id[:19]} has no step series")
            else:
                steps[arm] = (*steps[arm], series)
        if not entry.receipts.get(arm):
            unreadable.append(f"arm {arm}: no receipt")
    return BlockEvidence(entry=entry, receipts=receipts, steps=steps, unreadable=tuple(unreadable))
