"""`lanewise calibrate`: how noisy this lane is on this machine, and whether the lab finds what is there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from lanewise.cli import ablate
from lanewise.cli.campaign_options import (
    BlockDesignOption,
    CacheOption,
    ConfigOption,
    DataOption,
    LaneArgument,
    PinOption,
    RetryCrashedOption,
    SeedOption,
    SetOption,
    ThreadsOption,
    check_resume,
    given_flags,
)
from lanewise.cli.output import DeviceOption, JsonFlag, StoreOption, console, print_json
from lanewise.errors import RunInterrupted

if TYPE_CHECKING:
    from lanewise.lab.calibrate import CalibrationResult
    from lanewise.lab.session import Lab

EXIT_INVALID = 3
EXIT_INCONCLUSIVE = 4


def register(app: typer.Typer) -> None:
    """Add this verb to the command line."""
    app.command("calibrate", short_help="How noisy a lane is here, from arms that do not differ.")(
        calibrate
    )


def calibrate(
    context: typer.Context,
    lane: LaneArgument,
    campaign: Annotated[
        str | None,
        typer.Argument(
            metavar="[CAMPAIGN]", help="With --resume: which calibration; default the newest."
        ),
    ] = None,
    blocks: Annotated[
        int,
        typer.Option(
            "--blocks",
            min=8,
            max=99,
            help="A/A blocks; 16 give a margin δ of about 1.1 SDs of a block.",
        ),
    ] = 16,
    budget: Annotated[
        str, typer.Option("--budget", metavar="TIME", help="Wall time for everything: 5m, 1h.")
    ] = "10m",
    control: Annotated[
        str | None,
        typer.Option(
            "--control",
            metavar="SHARE",
            help="Plant a delay of this share of the step into arm B (5%); it must be found.",
        ),
    ] = None,
    observer: Annotated[
        bool,
        typer.Option(
            "--observer",
            help="Check what measuring costs: by accounting, and a bare against an observed loop.",
        ),
    ] = False,
    block_design: BlockDesignOption = None,
    seed: SeedOption = 0,
    threads: ThreadsOption = None,
    overrides: SetOption = None,
    config: ConfigOption = None,
    data: DataOption = None,
    device: DeviceOption = "auto",
    pin: PinOption = True,
    cache: CacheOption = "warm",
    resume: Annotated[
        bool, typer.Option("--resume", help="Run the missing blocks of an unfinished calibration.")
    ] = False,
    retry_crashed: RetryCrashedOption = False,
    store: StoreOption = None,
    as_json: JsonFlag = False,
) -> int:
    """Measure noise, bias and false-positive rate of a lane with arms that do not differ (A/A).

    Both arms are the same, so every difference is noise: how far blocks spread, whether their mean is off zero, and how
    often the statistics would call a difference. δ, the smallest effect that gets a verdict, follows from it.

    Plans and verdicts of `ablate` use the newest valid calibration of the lane on this machine class, software, block
    design, threads, --pin and --cache; it expires after 30 days. Calibrating again pools what agrees and narrows δ.

    Two tests of the lab itself come after the A/A where asked for: `--control 5%` slows arm B by a known share, which must be
    found; `--observer` runs a loop that measures nothing against one that does.

    Exit codes: 3 the instrument failed: the planted delay was not found, one was found where none is, observing takes
    0.5 % of the timed step or more, the campaign contradicts that accounting at 99.9 %, or a part was not run. 4 the A/A is
    biased at 95 %, as one in twenty is by chance: repeat it. 0 otherwise.
    """
    from lanewise.cli.ablate_view import CampaignView
    from lanewise.lab.calibrate import (
        CalibrateOptions,
        parse_control,
        resume_calibration,
    )
    from lanewise.lab.calibrate import calibrate as run
    from lanewise.lab.durations import parse_budget
    from lanewise.lab.prepare import CampaignOptions
    from lanewise.lane.machine import DEFAULT_CPU_THREADS, choose_device, detect_machine_class

    check_resume(campaign, resume=resume, retry_crashed=retry_crashed)
    device_type = choose_device(device)
    options = CalibrateOptions(
        campaign=CampaignOptions(
            lane=ablate._load(lane, overrides, config),
            machine_class=detect_machine_class(device_type),
            device_type=device_type,
            features=(),
            budget_seconds=parse_budget(budget),
            design="leave-one-out",
            block_design=block_design,
            blocks=None,
            seed=seed,
            num_threads=threads or DEFAULT_CPU_THREADS,
            data_path=data,
            pin=pin,
            cache=cache,
        ),
        blocks=blocks,
        control_ratio=None if control is None else parse_control(control),
        observer=observer,
    )
    with ablate._terminable(), CampaignView(console(stderr=True)) as view:
        lab = ablate._lab(store, view)
        if resume:
            result = resume_calibration(
                lab,
                options,
                campaign,
                flags=given_flags(context),
                retry_crashed=retry_crashed,
            )
        else:
            result = run(lab, options)
    _print(result, lab, as_json=as_json)
    if result.interrupted:
        raise RunInterrupted(
            "interrupted; finished blocks are kept, continue with "
            f"`lanewise calibrate {lane} --resume {result.campaigns[-1].campaign.campaign_id}`"
        )
    return _exit_code(result)


def _print(result: CalibrationResult, lab: Lab, *, as_json: bool) -> None:
    from datetime import UTC, datetime

    from rich.text import Text

    from lanewise.dash.calibration import calibration_lines
    from lanewise.dash.html import write_report

    reports = [
        write_report(lab.store, part.campaign.campaign_id, now=datetime.now(UTC))
        for part in result.campaigns
    ]
    if as_json:
        document: dict[str, Any] = {
            "calibration": result.calibration,
            "campaigns": [part.campaign for part in result.campaigns],
            "decisions": [decision for part in result.campaigns for decision in part.decisions],
            "problems": result.problems,
            "reports": reports,
        }
        print_json(document)
        return
    out = console()
    if result.calibration is not None:
        for line in calibration_lines(result.calibration):
            out.print(Text(line), soft_wrap=True)
    for line in (
        *_too_much(result),
        *result.problems,
        *(f"report: {report}" for report in reports),
    ):
        out.print(Text(line), soft_wrap=True)


def _too_much(result: CalibrationResult) -> tuple[str, ...]:
    """A line where observing takes more of a step than the lab allows itself."""
    from lanewise.lab.instruments import LARGEST_IN_STEP_RATIO

    observer = None if result.calibration is None else result.calibration.observer
    if observer is None or observer.in_step_ratio < LARGEST_IN_STEP_RATIO:
        return ()
    return (
        f"observing takes {observer.in_step_ratio:.2%} of the timed step, and {LARGEST_IN_STEP_RATIO:.1%} is what the lab "
        "allows itself; measure a lane of longer steps, e.g. with --set batch.micro_batch_size",
    )


def _exit_code(result: CalibrationResult) -> int:
    """0 as it should be, 3 the instrument failed or a part was not run, 4 biased."""
    from lanewise.lab.instruments import observer_fails

    calibration = result.calibration
    if calibration is None or result.problems:
        return EXIT_INVALID
    control, observer = calibration.control, calibration.observer
    if control is not None and control.found != (control.planted_log > 0):
        return EXIT_INVALID
    if observer is not None and observer_fails(observer):
        return EXIT_INVALID
    return EXIT_INCONCLUSIVE if calibration.biased else 0
