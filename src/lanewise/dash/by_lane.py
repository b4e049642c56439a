"""One feature on several lanes, side by side, from the decisions of one store or several."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from lanewise.dash import format as fmt
from lanewise.dash.rows import Tone, confidence_words, interval_of, verdict_tone, verdict_word
from lanewise.errors import ReceiptError, UsageError
from lanewise.receipts.decision import Decision
from lanewise.receipts.index import Index
from lanewise.receipts.store import Store

HEADERS: tuple[str, ...] = (
    "feature",
    "lane",
    "machine class",
    "vs",
    "Δ step time",
    "interval",
    "verdict",
    "Δ memory",
    "blocks",
    "date",
    "decision",
)
NUMBERS = frozenset({"Δ step time", "interval", "Δ memory", "blocks"})


@dataclass(frozen=True, kw_only=True, slots=True)
class LaneRow:
    """A feature on one lane and machine class, as its newest complete decision has it.

    Attributes:
        feature: key of the feature.
        lane: name of the lane.
        lane_digest: the lane exactly.
        machine_class: e.g. `h100-sxm-80gb`.
        versus: name of the control.
        step_time_ratio: treated ÷ control; None without an estimate.
        interval_low: lower end of its interval; None with one block.
        interval_high: upper end.
        confidence: of that interval.
        verdict: in capitals; INCOMPLETE where arms or blocks are missing.
        peak_memory_delta_bytes: treated − control; None where not measured.
        num_blocks: blocks that count.
        mode: `confirm`, or `screen`, which proves nothing.
        created_at: RFC 3339, UTC.
        decision_id: the decision.
        store: where it is.
        num_older: decisions on the same feature, lane and machine class that it stands for.
    """

    feature: str
    lane: str
    lane_digest: str
    machine_class: str
    versus: str
    step_time_ratio: float | None
    interval_low: float | None
    interval_high: float | None
    confidence: float | None
    verdict: str
    peak_memory_delta_bytes: float | None
    num_blocks: int
    mode: str
    created_at: str
    decision_id: str
    store: str
    num_older: int
    tone: Tone

    def cells(self, digits: int) -> tuple[str, ...]:
        """What a table shows under `HEADERS`."""
        ratio = self.step_time_ratio
        interval = fmt.MISSING
        if self.interval_low is not None and self.interval_high is not None:
            interval = fmt.percent_interval(self.interval_low - 1, self.interval_high - 1, digits)
            if self.confidence not in (None, 0.95):
                interval += f" {confidence_words(self.confidence)}"
        older = f" (+{self.num_older} older)" if self.num_older else ""
        return (
            self.feature,
            self.lane,
            self.machine_class,
            self.versus,
            fmt.signed_percent(None if ratio is None else ratio - 1.0, digits),
            interval,
            self.verdict if self.mode == "confirm" else f"{self.verdict} (screen)",
            fmt.signed_mebibytes(self.peak_memory_delta_bytes),
            str(self.num_blocks),
            self.created_at[:10],
            self.decision_id + older,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class LaneTable:
    """The table with what could not be read for it."""

    features: tuple[str, ...]
    rows: tuple[LaneRow, ...]
    unreadable: tuple[str, ...]

    @property
    def cells(self) -> tuple[tuple[str, ...], ...]:
        """All rows as text; they share the number of decimals."""
        intervals = [
            (row.interval_low, row.interval_high)
            for row in self.rows
            if row.interval_low is not None and row.interval_high is not None
        ]
        digits = fmt.percent_digits(intervals)
        return tuple(row.cells(digits) for row in self.rows)

    def document(self) -> dict[str, Any]:
        """The table for programs."""
        rows = [
            {key: value for key, value in asdict(row).items() if key != "tone"} for row in self.rows
        ]
        return {
            "features": list(self.features),
            "rows": rows,
            "unreadable": list(self.unreadable),
        }


def by_lane(stores: Sequence[Store], features: Sequence[str]) -> LaneTable:
    """Gather the newest complete decision of every feature, lane and machine class; the newest where none is complete.

    Args:
        stores: where decisions are; the same decision in two stores counts once.
        features: keys of features, in the order of the table.

    Raises:
        UsageError: no store holds a decision on any of them.
    """
    found: dict[str, tuple[Decision, str]] = {}
    unreadable: list[str] = []
    known: set[str] = set()
    for store in stores:
        index = Index(store)
        for feature in features:
            for row in index.query(kind="decision", feature=feature).rows:
                try:
                    decision = store.read_decision(row.location)
                except ReceiptError as error:
                    unreadable.append(str(error))
                    continue
                found.setdefault(decision.decision_id, (decision, store.root))
        listing = index.query(kind="decision")
        unreadable += listing.unreadable
        known |= {row.fields.ablation_id for row in listing.rows if row.fields.ablation_id}
    if not found:
        places = ", ".join(store.root for store in stores)
        there = f"decisions there are on {', '.join(sorted(known))}" if known else "it has none"
        raise UsageError(
            f"no decision on {', '.join(features)} in {places}; {there}. "
            f"Make one with `lanewise ablate LANE --feature {features[0]}`, or name more stores with --from"
        )
    groups: dict[tuple[str, str, str], list[tuple[Decision, str]]] = {}
    for decision, place in found.values():
        key = (decision.feature, decision.lane.digest, decision.machine.class_digest)
        groups.setdefault(key, []).append((decision, place))
    rows = [_row(group) for group in groups.values()]
    order = {feature: number for number, feature in enumerate(features)}
    rows.sort(key=lambda row: (order[row.feature], row.lane, row.machine_class, row.lane_digest))
    return LaneTable(features=tuple(features), rows=tuple(rows), unreadable=tuple(unreadable))


def _row(group: Sequence[tuple[Decision, str]]) -> LaneRow:
    decision, place = max(
        group,
        key=lambda each: (each[0].status == "COMPLETE", each[0].created_at, each[0].decision_id),
    )
    estimate, interval = decision.estimate, interval_of(decision)
    return LaneRow(
        feature=decision.feature,
        lane=decision.lane.name,
        lane_digest=decision.lane.digest,
        machine_class=decision.machine.class_name,
        versus=decision.versus,
        step_time_ratio=None if estimate is None else estimate.ratio,
        interval_low=None if interval is None else interval[0],
        interval_high=None if interval is None else interval[1],
        confidence=None if estimate is None else estimate.confidence,
        verdict=verdict_word(decision),
        peak_memory_delta_bytes=decision.peak_memory_bytes.delta,
        num_blocks=sum(block.valid for block in decision.blocks),
        mode=decision.mode,
        created_at=decision.created_at,
        decision_id=decision.decision_id,
        store=place,
        num_older=sum(each.created_at < decision.created_at for each, _ in group),
        tone=verdict_tone(decision),
    )
