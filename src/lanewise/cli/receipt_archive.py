"""`lanewise receipt pack` and `receipt unpack`: campaigns move between machines as one file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lanewise.cli.output import JsonFlag, StoreOption, print_json, store_root
from lanewise.errors import UsageError

ArchiveArgument = Annotated[Path, typer.Argument(help="The archive, e.g. campaign.tar.gz.")]


def pack(
    archive: ArchiveArgument,
    campaign: Annotated[
        list[str] | None, typer.Option("--campaign", metavar="ID", help="Repeat for more.")
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="Every campaign of the store.")] = False,
    store: StoreOption = None,
    json: JsonFlag = False,
) -> None:
    """Put campaigns with all their evidence into one file. It can be looked at, or resumed on another machine.

    There: `lanewise receipt unpack FILE`, `lanewise ablate LANE --resume ID`, `lanewise receipt pack FILE --campaign ID`;
    back here `receipt unpack` takes the new blocks in.
    """
    from lanewise.lab.transfer import pack as pack_campaigns
    from lanewise.receipts.store import Store

    if bool(campaign) == every:
        raise UsageError(
            "say what to pack: --campaign ID (repeat for more) or --all; `lanewise receipt list` shows campaigns"
        )
    manifest = pack_campaigns(Store(store_root(store)), archive, None if every else campaign)
    if json:
        print_json({"archive": str(archive), "manifest": manifest})
        return
    num_bytes = sum(file.size_bytes for file in manifest.files)
    typer.echo(
        f"{archive}: {len(manifest.files)} files, {num_bytes / 2**20:.1f} MiB unfolded, of "
        f"{', '.join(manifest.campaigns)}"
    )


def unpack(archive: ArchiveArgument, store: StoreOption = None, json: JsonFlag = False) -> None:
    """Merge an archive into the store, all of it or nothing. Nothing different is overwritten."""
    from dataclasses import asdict

    from lanewise.lab.transfer import unpack as unpack_archive
    from lanewise.receipts.store import Store

    place = Store(store_root(store))
    done = unpack_archive(place, archive)
    if json:
        print_json(asdict(done))
        return
    typer.echo(
        f"{place.root}: {done.num_new} files new, {done.num_replaced} brought up to date, {done.num_kept} kept"
    )
    words = {
        "new": "new here",
        "same": "as it was",
        "newer": "has the archive's blocks now",
        "older": "is ahead of the archive, nothing changed",
    }
    for campaign, relation in done.campaigns.items():
        typer.echo(f"campaign {campaign} {words[relation]}")
    for note in done.notes:
        typer.echo(note, err=True)
