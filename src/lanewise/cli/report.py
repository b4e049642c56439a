"""`lanewise report`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from lanewise.cli.output import (
    JsonFlag,
    StoreOption,
    console,
    print_json,
    print_table,
    store_root,
)
from lanewise.errors import CampaignError, LanewiseError, UsageError

if TYPE_CHECKING:
    from lanewise.receipts.decision import CampaignRecord, Decision
    from lanewise.receipts.store import Store

CampaignArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="CAMPAIGN", help="Campaign id or file.", show_default="the newest of the store"
    ),
]
FinalFlag = Annotated[
    bool, typer.Option("--final", help="Refuse a campaign that lacks arms or blocks.")
]
ByLaneOption = Annotated[
    list[str] | None,
    typer.Option(
        "--by-lane",
        metavar="FEATURE",
        help="Put this feature side by side on several lanes; may be repeated.",
    ),
]
FromOption = Annotated[
    list[str] | None,
    typer.Option("--from", metavar="STORE", help="One more store for --by-lane; may be repeated."),
]
OpenFlag = Annotated[bool, typer.Option("--open", help="Show the report in the web browser.")]


def register(app: typer.Typer) -> None:
    """Add this verb group to the command line."""
    app.command("report", short_help="Print a campaign again; write its HTML report.")(report)


def report(
    campaign: CampaignArgument = None,
    final: FinalFlag = False,
    lanes_of: ByLaneOption = None,
    more_stores: FromOption = None,
    store: StoreOption = None,
    as_json: JsonFlag = False,
    show: OpenFlag = False,
) -> None:
    """Print a campaign's table again and write its HTML report, from the stored documents alone.

    With --by-lane FEATURE, put a feature side by side on every lane it was decided on instead.
    """
    from datetime import UTC, datetime

    if lanes_of:
        if campaign is not None or final:
            raise UsageError("--by-lane looks at all campaigns; leave CAMPAIGN and --final out")
        location = _by_lane(lanes_of, store_root(store), more_stores or [], as_json=as_json)
        if show:
            _open(location)
        return
    if more_stores:
        raise UsageError("--from adds stores to --by-lane FEATURE; name a feature")

    from lanewise.dash.evidence import read_decisions
    from lanewise.dash.html import write_report
    from lanewise.receipts.store import Store

    found = Store(store_root(store))
    record = _newest(found) if campaign is None else found.read_campaign(campaign)
    decisions = read_decisions(found, record)
    if final:
        refuse_unless_final(record, decisions)
    location = write_report(found, campaign or record.campaign_id, now=datetime.now(UTC))
    if as_json:
        print_json({"campaign": record, "decisions": decisions, "report": location})
    else:
        _print(record, decisions, found.root, location)
    if show:
        _open(location)


def _by_lane(features: list[str], root: str, more_stores: list[str], *, as_json: bool) -> str:
    """Print the table and write it as HTML; returns where."""
    from datetime import UTC, datetime

    from lanewise.dash.by_lane import HEADERS, by_lane
    from lanewise.dash.html import write_by_lane
    from lanewise.receipts.store import Store

    table = by_lane(
        [Store(place) for place in dict.fromkeys([root, *more_stores])],
        tuple(dict.fromkeys(features)),
    )
    location = write_by_lane(root, table, now=datetime.now(UTC))
    if as_json:
        print_json({**table.document(), "report": location})
        return location
    print_table(HEADERS, table.cells)
    for error in table.unreadable:
        typer.echo(f"unreadable: {error}", err=True)
    typer.echo(f"report: {location}")
    return location


def refuse_unless_final(record: CampaignRecord, decisions: tuple[Decision, ...]) -> None:
    """Pass a campaign that has every arm and block.

    Raises:
        CampaignError: it lacks some; all of them are named, with the command that runs them.
    """
    from lanewise.dash.summary import gaps, resume_command

    if missing := gaps(record, decisions):
        raise CampaignError(
            f"campaign {record.campaign_id} is INCOMPLETE, a final report needs every arm and block. "
            f"Missing: {'; '.join(missing)}. Finish it with `{resume_command(record)}`, "
            "or leave --final out for a report that is marked as not final"
        )


def _newest(store: Store) -> CampaignRecord:
    problems: list[LanewiseError] = []
    campaigns = list(store.iter_campaigns(problems))
    if campaigns:
        return max(campaigns, key=lambda record: (record.created_at, record.campaign_id))
    if problems:
        raise problems[0]
    raise UsageError(
        f"no campaign in {store.root}; run `lanewise ablate nam56r-tiny` first, or give another --store"
    )


def _print(
    record: CampaignRecord, decisions: tuple[Decision, ...], root: str, location: str
) -> None:
    from rich.text import Text

    from lanewise.dash.summary import closing_lines, header_lines
    from lanewise.dash.terminal import decision_table, interaction_lines

    out = console()
    for line in header_lines(record):
        out.print(Text(line), soft_wrap=True)
    out.print(decision_table(decisions))
    for text in interaction_lines(record, decisions):
        out.print(text, soft_wrap=True)
    for line in closing_lines(record, decisions, store_root=root, report_path=location):
        out.print(Text(line), soft_wrap=True)


def _open(location: str) -> None:
    import webbrowser
    from pathlib import Path

    from lanewise.receipts.files import is_remote

    if is_remote(location):
        raise UsageError(f"--open shows local files; {location} is remote, fetch it first")
    if not webbrowser.open(Path(location).resolve().as_uri()):
        raise UsageError(f"--open found no web browser here; open {location} yourself")
