"""`lanewise receipt list`: receipts by lane, campaign, feature and failure, and the blocks that left none."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Annotated

import typer

from lanewise.cli.output import JsonFlag, StoreOption, print_json, print_table, store_root
from lanewise.errors import one_line
from lanewise.receipts.failures import FailureFamily

if TYPE_CHECKING:
    from lanewise.lab.failed_blocks import FailedBlock
    from lanewise.receipts.index import IndexRow

DEFAULT_LIMIT = 50
MAX_REASON = 110
"""Characters of a reason, so that a block stays on one plain line; `--json` has all of it."""


class Validity(enum.StrEnum):
    """Whether a receipt may count as evidence."""

    VALID = "valid"
    INVALID = "invalid"


def list_receipts(
    lane: Annotated[
        str | None, typer.Option(help="Lane name, or the beginning of its digest (sha256:…).")
    ] = None,
    campaign: Annotated[str | None, typer.Option(help="Campaign id.")] = None,
    feature: Annotated[str | None, typer.Option(help="Feature under test.")] = None,
    validity: Annotated[Validity | None, typer.Option(help="Only these.")] = None,
    failure: Annotated[
        FailureFamily | None,
        typer.Option(
            help="Only runs that failed in this way, and the blocks that campaigns lost to it or refused for it."
        ),
    ] = None,
    limit: Annotated[int, typer.Option(min=0, help="At most this many; 0 for all.")] = (
        DEFAULT_LIMIT
    ),
    store: StoreOption = None,
    json: JsonFlag = False,
) -> None:
    """List receipts, newest first. Unreadable ones are named on stderr.

    A process that died without a receipt left its failure in the journal of its campaign: --failure lists such blocks too.
    """
    from dataclasses import asdict

    from lanewise.receipts.index import Index
    from lanewise.receipts.store import Store

    place = Store(store_root(store))
    listing = Index(place).query(
        lane=lane,
        campaign=campaign,
        feature=feature,
        validity=None if validity is None else validity.value,
        failure=None if failure is None else failure.value,
        limit=limit or None,
    )
    blocks: tuple[FailedBlock, ...] = ()
    unreadable = listing.unreadable
    # Only a run is valid or not, and a block that failed is no valid one.
    with_blocks = failure is not None and validity is not Validity.VALID
    if failure is not None and with_blocks:
        from lanewise.lab.failed_blocks import failed_blocks

        blocks, problems = failed_blocks(
            place, failure, lane=lane, campaign=campaign, feature=feature
        )
        unreadable += problems
    shown = blocks[: limit or None]
    if json:
        print_json(
            {
                "receipts": [
                    {**asdict(row.fields), "location": row.location} for row in listing.rows
                ],
                "num_matches": listing.num_matches,
                "blocks": [asdict(block) for block in shown] if with_blocks else None,
                "num_blocks": len(blocks) if with_blocks else None,
                "unreadable": list(unreadable),
            }
        )
        return
    if listing.rows:
        print_table(_LIST_HEADERS, [_list_row(row) for row in listing.rows])
    else:
        filtered = any((lane, campaign, feature, validity, failure))
        typer.echo(f"no receipts{' match' if filtered else ''} in {place.root}", err=True)
    if shown:
        print_table(_BLOCK_HEADERS, [_block_row(block) for block in shown])
    hidden = listing.num_matches - len(listing.rows) + len(blocks) - len(shown)
    if hidden:
        typer.echo(f"{hidden} more; `--limit 0` shows all", err=True)
    for error in unreadable:
        typer.echo(f"unreadable: {error}", err=True)


_LIST_HEADERS = (
    "receipt",
    "created",
    "lane",
    "campaign",
    "feature",
    "arm",
    "block",
    "step",
    "tokens/s",
    "peak",
    "goodput",
    "status",
    "validity",
    "failure",
)


_BLOCK_HEADERS = ("campaign", "feature", "block", "attempt", "arm", "failure", "fate", "reason")


def _list_row(row: IndexRow) -> tuple[str, ...]:
    from lanewise.receipts.document import short
    from lanewise.receipts.summary import format_bytes, format_count, format_percent, format_seconds

    fields = row.fields
    return (
        short(fields.id or ""),
        (fields.created_at or "")[:19].replace("T", " "),
        fields.lane_name or "–",
        fields.campaign_id or "–",
        fields.ablation_id or "–",
        fields.arm or "–",
        "–" if fields.block is None else str(fields.block),
        format_seconds(fields.median_step_seconds),
        format_count(fields.tokens_per_second),
        format_bytes(fields.peak_bytes),
        format_percent(fields.goodput_ratio),
        fields.status or "–",
        fields.validity or "–",
        fields.failure_family or "–",
    )


def _block_row(block: FailedBlock) -> tuple[str, ...]:
    return (
        block.campaign,
        block.feature,
        str(block.block),
        "–" if block.attempt is None else str(block.attempt),
        block.arm or "–",
        block.family,
        "thrown away" if block.found_in == "journal" else "refused",
        one_line(block.reason, MAX_REASON),
    )
