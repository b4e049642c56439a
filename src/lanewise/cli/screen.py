"""`lanewise screen`: which features deserve a campaign."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from lanewise.cli.ablate import _lab, _options, _terminable
from lanewise.cli.campaign_options import (
    BudgetOption,
    CacheOption,
    CampaignArgument,
    ConfigOption,
    DataOption,
    FeatureOption,
    LaneArgument,
    PinOption,
    RetryCrashedOption,
    SeedOption,
    SetOption,
    ThreadsOption,
    check_resume,
    given_flags,
)
from lanewise.cli.output import (
    DeviceOption,
    JsonFlag,
    StoreOption,
    console,
    print_json,
    print_table,
)
from lanewise.errors import RunInterrupted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lanewise.lab.confirm import Confirmation
    from lanewise.lab.events import CampaignResult
    from lanewise.lab.session import Lab
    from lanewise.receipts.decision import CampaignRecord, Decision

DesignOption = Annotated[
    Literal["toggle", "plackett-burman"],
    typer.Option(
        "--design",
        help="One process holds both arms of a feature and takes turns; or every run switches all features at once.",
    ),
]
ResumeFlag = Annotated[
    bool, typer.Option("--resume", help="Run the missing processes of an unfinished screen.")
]


def register(app: typer.Typer) -> None:
    """Add this verb group to the command line."""
    app.command("screen", short_help="Rank features cheaply; proves nothing, names what to test.")(
        screen
    )


def screen(
    context: typer.Context,
    lane: LaneArgument,
    campaign: CampaignArgument = None,
    features: FeatureOption = None,
    budget: BudgetOption = "2m",
    design: DesignOption = "toggle",
    seed: SeedOption = 0,
    threads: ThreadsOption = None,
    overrides: SetOption = None,
    config: ConfigOption = None,
    data: DataOption = None,
    device: DeviceOption = "auto",
    pin: PinOption = True,
    cache: CacheOption = "warm",
    resume: ResumeFlag = False,
    retry_crashed: RetryCrashedOption = False,
    store: StoreOption = None,
    as_json: JsonFlag = False,
) -> int:
    """Rank features cheaply and say which deserve a campaign; proves nothing.

    For many features and little time: two minutes say where to look, and the last line is the `lanewise ablate` that
    would confirm what looks likely, with blocks enough to find it and its cost.

    `toggle` builds both arms of a feature in one process and lets them take turns, so it needs one process a feature. Arms
    that share a process share its memory layout and caches, which has been seen to turn a result round: the words are
    LIKELY_FASTER, LIKELY_SLOWER and UNCLEAR, and no such decision can graduate. `plackett-burman` runs rows of a design
    beside their mirror images in fresh processes: a few runs say something about up to 19 features, if their effects add up.
    False discoveries are held to 10 % of what is called likely.
    """
    from lanewise.cli.ablate_view import CampaignView
    from lanewise.lab.resume import Given
    from lanewise.lab.verdicts import EXIT_INVALID

    check_resume(campaign, resume=resume, retry_crashed=retry_crashed)
    options = _options(
        lane, features, budget, "leave-one-out", None, None, None, seed, threads, overrides, config, data, device,
        pin=pin, cache=cache, claims="each",
    )  # fmt: skip
    with _terminable(), CampaignView(console(stderr=True)) as view:
        lab = _lab(store, view)
        if resume:
            result = lab.resume(
                options.lane,
                options.machine_class,
                campaign,
                verb="screen",
                given=Given(options=options, flags=given_flags(context), screen_design=design),
                retry_crashed=retry_crashed,
            )
        else:
            result = lab.screen(options, design)
    _print_result(result, lab, as_json=as_json)
    if result.interrupted:
        raise RunInterrupted(
            "interrupted; finished runs are kept, continue with "
            f"`lanewise screen {lane} --resume {result.campaign.campaign_id}`"
        )
    return EXIT_INVALID if result.campaign.status == "INCOMPLETE" else 0


def _print_result(result: CampaignResult, lab: Lab, *, as_json: bool) -> None:
    from datetime import UTC, datetime

    from lanewise.dash.html import write_report
    from lanewise.dash.screen import screen_lines, screen_table
    from lanewise.lab.campaign import CampaignFolder
    from lanewise.lab.confirm import confirmation, ranked

    campaign = result.campaign
    plan = CampaignFolder.find(lab.store.root, campaign.campaign_id).plan()
    decisions = ranked(result.decisions)
    found = confirmation(plan, decisions, noise_log=plan.confirm_noise_log or 0.0)
    report = write_report(lab.store, campaign.campaign_id, now=datetime.now(UTC))
    if as_json:
        document: dict[str, Any] = {
            "campaign": campaign,
            "decisions": decisions,
            "confirm": _plain(found),
            "report": report,
        }
        print_json(document)
        return
    head, rows = screen_table(decisions)
    print_table(head, rows)
    for line in screen_lines(campaign, decisions, store_root=lab.store.root, report_path=report):
        typer.echo(line)
    typer.echo(_next(campaign, decisions, found))


def _plain(found: Confirmation) -> dict[str, Any]:
    return {
        "features": found.features,
        "too_small": found.too_small,
        "blocks": found.blocks,
        "seconds": found.seconds,
        "command": found.command,
    }


def _next(campaign: CampaignRecord, decisions: Sequence[Decision], found: Confirmation) -> str:
    """What to do now. A feature without an estimate was not looked at, so nothing is said about it."""
    from lanewise.dash.format import duration, plural
    from lanewise.dash.summary import gaps, resume_command

    if gaps(campaign, decisions):
        return f"INCOMPLETE: this screen says nothing yet. Finish it with `{resume_command(campaign)}`."
    unseen = sum(decision.estimate is None for decision in decisions)
    if unseen == len(decisions):
        return "No feature was screened, so nothing is known; give a larger --budget, or name fewer with --feature."
    small = (
        f" Too small to confirm on a machine this noisy: {', '.join(found.too_small)}."
        if found.too_small
        else ""
    )
    if found.command is None:
        what = "Nothing that was screened" if unseen else "Nothing here"
        return f"{what} deserves a campaign.{small}"
    cost = f"{plural(found.blocks, 'block')} a feature, about {duration(found.seconds)}"
    return f"Confirm with `{found.command}` ({cost}).{small}"
