"""`lanewise ablate` and `lanewise plan`: which features move step time on this lane."""

from __future__ import annotations

import contextlib
import math
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from lanewise.cli.campaign_options import (
    BlockDesignOption,
    BlocksOption,
    BudgetOption,
    CacheOption,
    CampaignArgument,
    ClaimsOption,
    ConfigOption,
    DataOption,
    DesignOption,
    EffectOption,
    FeatureOption,
    LaneArgument,
    PinOption,
    RetryCrashedOption,
    SeedOption,
    SetOption,
    StepsOption,
    TargetLossOption,
    ThreadsOption,
    check_resume,
    given_flags,
)
from lanewise.cli.output import DeviceOption, JsonFlag, StoreOption, console, print_json, store_root
from lanewise.errors import RunInterrupted, UsageError

if TYPE_CHECKING:
    from lanewise.cli.ablate_view import CampaignView
    from lanewise.lab.events import CampaignResult
    from lanewise.lab.prepare import CampaignOptions
    from lanewise.lab.session import Lab
    from lanewise.lane.schema import Lane


def register(app: typer.Typer) -> None:
    """Add this verb group to the command line."""
    app.command("ablate", short_help="Measure which features move step time, in matched runs.")(
        ablate
    )
    app.command("plan", short_help="What a campaign would cost and could detect; runs a pilot.")(
        plan
    )


def ablate(
    context: typer.Context,
    lane: LaneArgument,
    campaign: CampaignArgument = None,
    features: FeatureOption = None,
    budget: BudgetOption = "5m",
    design: DesignOption = "leave-one-out",
    block_design: BlockDesignOption = None,
    blocks: BlocksOption = None,
    effect: EffectOption = None,
    claims: ClaimsOption = "each",
    steps: StepsOption = None,
    target_loss: TargetLossOption = None,
    seed: SeedOption = 0,
    threads: ThreadsOption = None,
    overrides: SetOption = None,
    config: ConfigOption = None,
    data: DataOption = None,
    device: DeviceOption = "auto",
    pin: PinOption = True,
    cache: CacheOption = "warm",
    resume: Annotated[
        bool, typer.Option("--resume", help="Run the missing blocks of an unfinished campaign.")
    ] = False,
    retry_crashed: RetryCrashedOption = False,
    fail_on: Annotated[
        str | None,
        typer.Option(
            "--fail-on",
            metavar="LIST",
            help="Exit 1 on any of these verdicts: slower, over_budget, invalid.",
        ),
    ] = None,
    store: StoreOption = None,
    as_json: JsonFlag = False,
) -> int:
    """Measure which features move step time on a lane, in matched, interleaved runs.

    A feature is one switch of the lane. Its arms, B with the feature and A with its control, run in blocks of fresh processes
    that take turns; a block gives one number, and the interval of a verdict is over blocks, never over steps. A pilot of
    some seconds prices the plan, then it is printed, then blocks run until the answer is clear, the plan is done or the
    budget is used up.

    FASTER and SLOWER need an interval without zero and an effect of the practical margin δ, EQUIVALENT an interval inside of
    it; INCONCLUSIVE says how many blocks would tell, INVALID why runs cannot be compared; taxes are WITHIN_BUDGET or
    OVER_BUDGET. `lanewise calibrate` measures δ on this machine, without it noise is assumed.

    Start with `lanewise ablate nam56r-tiny --feature fused_moe`; name several with `--claims family` if their defaults
    shall change. `lanewise plan` prints the plan alone, `lanewise screen` says what deserves a campaign.

    Ctrl-C keeps finished blocks; `--resume` runs the others as planned, so flags beside it must agree with the plan.

    Exit codes: 0 decided, 1 a --fail-on verdict, 3 invalid or missing evidence, 4 nothing could be told.
    """
    from lanewise.cli.ablate_view import CampaignView
    from lanewise.lab.resume import Given
    from lanewise.lab.verdicts import exit_code, parse_fail_on

    verdicts = parse_fail_on(fail_on)
    check_resume(campaign, resume=resume, retry_crashed=retry_crashed)
    options = _options(
        lane,
        features,
        budget,
        design,
        block_design,
        blocks,
        effect,
        seed,
        threads,
        overrides,
        config,
        data,
        device,
        pin=pin,
        cache=cache,
        claims=claims,
        steps=steps,
        target_loss=target_loss,
    )
    with _terminable(), CampaignView(console(stderr=True)) as view:
        lab = _lab(store, view)
        if resume:
            result = lab.resume(
                options.lane,
                options.machine_class,
                campaign,
                given=Given(options=options, flags=given_flags(context)),
                retry_crashed=retry_crashed,
            )
        else:
            result = lab.start(options)
    _print_result(result, lab, as_json=as_json)
    if result.interrupted:
        raise RunInterrupted(
            "interrupted; finished blocks are kept, continue with "
            f"`lanewise ablate {lane} --resume {result.campaign.campaign_id}`"
        )
    return exit_code(result, verdicts)


def plan(
    lane: LaneArgument,
    features: FeatureOption = None,
    budget: BudgetOption = "5m",
    design: DesignOption = "leave-one-out",
    block_design: BlockDesignOption = None,
    blocks: BlocksOption = None,
    effect: EffectOption = None,
    claims: ClaimsOption = "each",
    steps: StepsOption = None,
    target_loss: TargetLossOption = None,
    seed: SeedOption = 0,
    threads: ThreadsOption = None,
    overrides: SetOption = None,
    config: ConfigOption = None,
    data: DataOption = None,
    device: DeviceOption = "auto",
    pin: PinOption = True,
    cache: CacheOption = "warm",
    store: StoreOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Time a short pilot and print what a campaign would cost and what it could detect."""
    from lanewise.cli.ablate_view import CampaignView
    from lanewise.dash.terminal import header_lines
    from lanewise.lab.analyse import campaign_record

    options = _options(
        lane,
        features,
        budget,
        design,
        block_design,
        blocks,
        effect,
        seed,
        threads,
        overrides,
        config,
        data,
        device,
        pin=pin,
        cache=cache,
        claims=claims,
        steps=steps,
        target_loss=target_loss,
    )
    with _terminable(), CampaignView(console(stderr=True)) as view:
        record = campaign_record(_lab(store, view).plan(options), status="PLANNED")
    if as_json:
        print_json(record)
        return
    for line in header_lines(record):
        typer.echo(line)
    for note in record.notes:
        typer.echo(f"note    {note}")


def _options(
    lane: str,
    features: list[str] | None,
    budget: str,
    design: Literal["leave-one-out", "add-one", "both"],
    block_design: Literal["lockstep", "sequential"] | None,
    blocks: int | None,
    effect: str | None,
    seed: int,
    threads: int | None,
    overrides: list[str] | None,
    config: Path | None,
    data: str | None,
    device: Literal["auto", "cpu", "cuda"],
    *,
    pin: bool,
    cache: Literal["warm", "cold"],
    claims: Literal["each", "family"],
    steps: int | None = None,
    target_loss: float | None = None,
) -> CampaignOptions:
    from lanewise.lab.detect import parse_effect
    from lanewise.lab.durations import parse_budget
    from lanewise.lab.prepare import CampaignOptions
    from lanewise.lane.machine import DEFAULT_CPU_THREADS, choose_device, detect_machine_class

    if blocks is not None and effect is not None:
        raise UsageError(
            f"--blocks {blocks} and --effect {effect} both say how many blocks to run; give one of them"
        )
    if target_loss is not None and not (math.isfinite(target_loss) and target_loss > 0):
        raise UsageError(
            f"--target-loss {target_loss:g} is no loss to reach; give a positive number of nats per token"
        )
    device_type = choose_device(device)
    return CampaignOptions(
        lane=_load(lane, overrides, config),
        machine_class=detect_machine_class(device_type),
        device_type=device_type,
        features=tuple(features or ()),
        budget_seconds=parse_budget(budget),
        design=design,
        block_design=block_design,
        blocks=blocks,
        effect_log=None if effect is None else parse_effect(effect),
        seed=seed,
        num_threads=threads or DEFAULT_CPU_THREADS,
        data_path=data,
        pin=pin,
        cache=cache,
        claims=claims,
        steps=steps,
        target_loss=target_loss,
    )


def _load(name: str, overrides: list[str] | None, config: Path | None) -> Lane:
    from lanewise.lane.config import apply_config, load_config
    from lanewise.lane.load import load_lane

    lane = load_lane(name, overrides or ())
    return lane if config is None else apply_config(lane, load_config(config))


def _lab(store: str | None, view: CampaignView) -> Lab:
    import secrets
    import time
    from datetime import UTC, datetime

    from lanewise.lab.children import ForkServerLauncher
    from lanewise.lab.session import Lab
    from lanewise.measure.host import SystemHost
    from lanewise.receipts.store import Store

    return Lab(
        store=Store(store_root(store)),
        launcher=lambda num_threads: ForkServerLauncher(
            num_threads=num_threads, also_preload=("lanewise.cli.main",)
        ),
        clock=time.monotonic,
        now=lambda: datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
        new_token=lambda: secrets.token_hex(3),
        free_memory_bytes=_free_memory_bytes,
        listen=view.listen,
        host=SystemHost(),
    )


def _free_memory_bytes(device_type: Literal["cpu", "cuda"]) -> int | None:
    """Memory that is free now where a lane's tensors will be."""
    import psutil

    from lanewise.lane.gpu import free_gpu_bytes

    return free_gpu_bytes() if device_type == "cuda" else int(psutil.virtual_memory().available)


def _print_result(result: CampaignResult, lab: Lab, *, as_json: bool) -> None:
    from datetime import UTC, datetime

    from lanewise.dash.html import write_report
    from lanewise.dash.terminal import closing_lines, decision_table, interaction_lines

    report = write_report(lab.store, result.campaign.campaign_id, now=datetime.now(UTC))
    if as_json:
        document: dict[str, Any] = {
            "campaign": result.campaign,
            "decisions": result.decisions,
            "report": report,
        }
        print_json(document)
        return
    out = console()
    out.print(decision_table(result.decisions))
    for text in interaction_lines(result.campaign, result.decisions):
        out.print(text, soft_wrap=True)
    for line in closing_lines(
        result.campaign, result.decisions, store_root=lab.store.root, report_path=report
    ):
        typer.echo(line)


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """Treat a polite request to end (SIGTERM) like Ctrl-C: finished blocks are kept and decided on."""

    def interrupt(_number: int, _frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
