"""Arguments and flags that the verbs of the lab share: `ablate`, `plan`, `calibrate`, `screen`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from lanewise.errors import UsageError

LaneArgument = Annotated[
    str, typer.Argument(help="Lane name or TOML file; see `lanewise lane list`.")
]
CampaignArgument = Annotated[
    str | None,
    typer.Argument(metavar="[CAMPAIGN]", help="With --resume: which campaign; default the newest."),
]
FeatureOption = Annotated[
    list[str] | None,
    typer.Option(
        "--feature",
        metavar="KEY",
        help="Measure only this feature of `lanewise feature list`; repeat for more. `none` is an A/A, `full_stack` all "
        "at once.",
        show_default="all that apply",
    ),
]
BudgetOption = Annotated[
    str, typer.Option("--budget", metavar="TIME", help="Wall time for everything: 90s, 5m, 1h.")
]
DesignOption = Annotated[
    Literal["leave-one-out", "add-one", "both"],
    typer.Option(
        "--design",
        help="Take each feature out of the full stack, add it to none, or both in the same rounds, which shows interactions.",
    ),
]
BlockDesignOption = Annotated[
    Literal["lockstep", "sequential"] | None,
    typer.Option(
        "--block-design",
        help="Both arms alive and taking turns, or one process after another, which is noisier and needs half the memory.",
        show_default="lockstep where two copies fit in memory",
    ),
]
BlocksOption = Annotated[
    int | None,
    typer.Option(
        "--blocks", min=2, max=99, help="Blocks of each feature.", show_default="by budget"
    ),
]
EffectOption = Annotated[
    str | None,
    typer.Option(
        "--effect",
        metavar="PERCENT",
        help="Plan the blocks that find a change of step time this large (2%) with 80 % power; of a tax: this far from "
        "its budget. --budget is then an upper bound.",
    ),
]
ClaimsOption = Annotated[
    Literal["each", "family"],
    typer.Option(
        "--claims",
        help="What errs with 5 %: each feature by itself, or the family of all features together. Graduation corrects for "
        "all that a campaign asked, so several features that shall become defaults are planned as a family.",
    ),
]
StepsOption = Annotated[
    int | None,
    typer.Option(
        "--steps",
        min=1,
        help="Each arm of a block takes exactly this many optimizer steps, to compare losses; --budget then buys blocks, "
        "which are seeds for a feature that changes the mathematics.",
        show_default="by budget",
    ),
]
TargetLossOption = Annotated[
    float | None,
    typer.Option(
        "--target-loss",
        metavar="NATS",
        help="Compare the step time that both arms need to this loss, for features that change the mathematics.",
        show_default="the worse of both arms' last losses",
    ),
]
SeedOption = Annotated[
    int, typer.Option("--seed", min=0, help="Seed of the order in which blocks and arms run.")
]
ThreadsOption = Annotated[
    int | None,
    typer.Option("--threads", min=1, help="Threads of a process.", show_default="1 on a CPU"),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="PATH=VALUE",
        help="Change one setting of the lane, e.g. batch.micro_batch_size=8; repeat for more.",
    ),
]
ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config", metavar="FILE", help="TOML or YAML with speed_defaults and experimental_taxes."
    ),
]
PinOption = Annotated[
    bool,
    typer.Option(
        "--pin/--no-pin", help="Keep training processes to processors of their own, on a CPU."
    ),
]
CacheOption = Annotated[
    Literal["warm", "cold"],
    typer.Option(
        "--cache",
        help="Compiled runs find their code ready, or compile from nothing; cold takes 3 blocks or more.",
    ),
]
RetryCrashedOption = Annotated[
    bool,
    typer.Option(
        "--retry-crashed",
        help="With --resume: blocks that crashed twice, which is all a campaign gives them, get two more attempts.",
    ),
]
DataOption = Annotated[
    str | None, typer.Option("--data", help="Text, JSONL or Parquet; replaces the lane's data.")
]


def given_flags(context: typer.Context) -> frozenset[str]:
    """Options that were typed, by their long names; those left at their defaults are not among them."""
    typed = set()
    for parameter in context.command.params:
        source = None if parameter.name is None else context.get_parameter_source(parameter.name)
        if source is not None and source.name == "COMMANDLINE":
            typed.add(max(parameter.opts, key=len))
    return frozenset(typed)


def check_resume(campaign: str | None, *, resume: bool, retry_crashed: bool) -> None:
    """Refuse what only makes sense beside `--resume`.

    Raises:
        UsageError: a campaign or `--retry-crashed` stands without it.
    """
    if resume:
        return
    if campaign is not None:
        raise UsageError(
            f"a campaign ({campaign}) was named without --resume; add --resume to continue it"
        )
    if retry_crashed:
        raise UsageError(
            "--retry-crashed was given without --resume, and a new campaign has no crashed blocks; add --resume"
        )
