"""`lanewise lane`: list, show, check and compare lanes."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from lanewise.cli.ledger import LedgerOption, NoLedgerFlag, passed_over_lines, resolve_with_ledger
from lanewise.cli.output import JsonFlag, StoreOption, print_json, print_table, store_root
from lanewise.errors import LaneError

if TYPE_CHECKING:
    from lanewise.lane.config import Config
    from lanewise.lane.flops import LaneFlops
    from lanewise.lane.hardware_flops import Conventions
    from lanewise.lane.machine import ShownMachine
    from lanewise.lane.resolved import ResolvedLane
    from lanewise.lane.schema import Lane

LaneArgument = Annotated[
    str, typer.Argument(help="Preset name, path to a TOML file, or name of a file in ./lanes.")
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="PATH=VALUE",
        help="Override one field, e.g. batch.micro_batch_size=8; repeat for more.",
    ),
]
ConfigOption = Annotated[
    str | None,
    typer.Option(
        "--config",
        metavar="FILE",
        help="TOML or YAML with speed_defaults, experimental_taxes and observability.",
    ),
]
MachineOption = Annotated[
    str | None,
    typer.Option(
        "--machine", metavar="CLASS", help="Machine class to resolve for; default: this machine."
    ),
]

DeviceOption = Annotated[
    Literal["auto", "cpu", "cuda"],
    typer.Option(
        "--device",
        help="Show the backends of this device, which need not be here; auto takes a GPU where one answers.",
    ),
]

group = typer.Typer(
    name="lane",
    help="Lanes: exactly named training problems.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def register(app: typer.Typer) -> None:
    """Add this verb group to the command line."""
    app.add_typer(group)


@group.command("list")
def list_(as_json: JsonFlag = False) -> None:
    """List the presets and the lanes in ./lanes."""
    from lanewise.lane.load import list_lanes

    entries = list_lanes()
    if as_json:
        print_json([asdict(entry) for entry in entries])
    else:
        print_table(
            ("lane", "origin", "what it is"),
            ((entry.name, entry.origin, entry.summary) for entry in entries),
        )


@group.command(short_help="Identity, parameters, FLOPs, features and who decided them.")
def show(
    lane: LaneArgument,
    resolved: Annotated[
        bool, typer.Option("--resolved", help="Print every field, default and op preference.")
    ] = False,
    config: ConfigOption = None,
    overrides: SetOption = None,
    machine: MachineOption = None,
    device: DeviceOption = "auto",
    ledger: LedgerOption = None,
    no_ledger: NoLedgerFlag = False,
    store: StoreOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Show a lane: identity, parameters, FLOPs, features and who decided them."""
    from lanewise.lane.built import not_built
    from lanewise.lane.flops import lane_flops
    from lanewise.lane.hardware_flops import conventions

    loaded, settings = _load(lane, overrides, config)
    shown = _machine(loaded, machine, device)
    found = _resolve(
        loaded,
        settings,
        shown,
        ledger=ledger,
        no_ledger=no_ledger,
        store_root=store_root(store),
    )
    missing = not_built(found.lane)
    flops = lane_flops(found.lane)
    three = conventions(found.lane, found.model_switches)
    if as_json:
        print_json(_show_document(found, flops, three, missing, shown.notes))
        return
    _print_identity(found)
    typer.echo()
    _print_flops(flops)
    _print_conventions(three)
    typer.echo()
    _print_features(found)
    for note in shown.notes:
        typer.echo(f"note     {note}")
    if resolved:
        _print_fields(found)
    typer.echo()
    typer.echo(
        "train    ready"
        if not missing
        else f"train    refused, this version does not build: {'; '.join(missing)}"
    )


@group.command(short_help="Check a lane: every problem with its line.")
def check(
    lane: LaneArgument,
    config: ConfigOption = None,
    overrides: SetOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Check a lane and print every problem with its line; exit 2 when there is one."""
    from lanewise.lane.built import not_built

    try:
        loaded, settings = _load(lane, overrides, config)
        found = _resolve(
            loaded,
            settings,
            _machine(loaded, None, "cpu" if loaded.topology.machine == "auto" else "auto"),
            ledger=None,
            no_ledger=True,
            store_root="",
        )
    except LaneError as error:
        if not as_json:
            raise
        problems = [asdict(problem) for problem in error.problems]
        print_json({"ok": False, "error": str(error), "problems": problems})
        raise typer.Exit(error.exit_code) from error
    missing = not_built(found.lane)
    if as_json:
        print_json({"ok": True, "digest": found.digest, "not_built": list(missing)})
        return
    typer.echo(f"ok: {loaded.name} · {found.canonical_name} · {found.digest}")
    if missing:
        typer.echo(f"`lanewise train` will refuse it, not built yet: {'; '.join(missing)}")


@group.command(short_help="In which fields two lanes are not comparable.")
def diff(
    lane_a: LaneArgument,
    lane_b: LaneArgument,
    as_json: JsonFlag = False,
) -> None:
    """Print the fields in which two lanes are not comparable, and the others that differ."""
    from lanewise.lane.compare import diff_lanes
    from lanewise.lane.load import load_lane

    difference = diff_lanes(load_lane(lane_a), load_lane(lane_b))
    if as_json:
        print_json({"comparable": difference.is_comparable, **asdict(difference)})
        return
    if difference.is_comparable:
        typer.echo("comparable: the lane digests are equal")
    else:
        typer.echo("not comparable: these fields of the lane digest differ")
        _print_differences(difference.identity, lane_a, lane_b)
    if difference.other:
        typer.echo("\noutside the digest:")
        _print_differences(difference.other, lane_a, lane_b)


def _load(lane: str, overrides: list[str] | None, config: str | None) -> tuple[Lane, Config | None]:
    from lanewise.lane.config import load_config
    from lanewise.lane.load import load_lane

    return load_lane(lane, overrides or ()), load_config(config) if config else None


def _machine(
    lane: Lane, machine_class: str | None, device: Literal["auto", "cpu", "cuda"]
) -> ShownMachine:
    """The machine asked for, else the one the lane names, else this one."""
    from lanewise.lane.machine import machine_to_show

    named = None if lane.topology.machine == "auto" else lane.topology.machine
    return machine_to_show(device, asked=machine_class, named=named)


def _resolve(
    lane: Lane, config: Config | None, machine: ShownMachine, **ledger: Any
) -> ResolvedLane:
    return resolve_with_ledger(
        lane,
        here=machine.here,
        machine_class=machine.machine_class,
        device_type=machine.device_type,
        mode="train",
        config=config,
        **ledger,
    )


def _show_document(
    found: ResolvedLane,
    flops: LaneFlops,
    three: Conventions,
    missing: tuple[str, ...],
    notes: tuple[str, ...],
) -> dict[str, Any]:
    from lanewise.lane.index_layers import index_layers

    layers = index_layers(found.lane.model)
    return {
        "resolved": found.model_dump(mode="json"),
        "index_layers": None if layers is None else asdict(layers),
        "flops": {**asdict(flops), "training_flops_per_step": flops.training_flops_per_step},
        "training_flops_per_token": asdict(three),
        "not_built": list(missing),
        "notes": list(notes),
    }


def _print_identity(found: ResolvedLane) -> None:
    lane = found.lane
    batch = lane.batch
    typer.echo(f"lane     {lane.name} · {found.canonical_name}")
    typer.echo(f"digest   {found.digest}")
    typer.echo(f"config   {found.config_digest}")
    typer.echo(
        f"pattern  {lane.model.pattern} tiled over {lane.model.num_layers} layers · "
        f"hidden {lane.model.hidden_size} · vocabulary {lane.model.vocab_size}"
    )
    typer.echo(
        f"batch    {batch.micro_batch_size} × {batch.sequence_length} tokens × "
        f"{batch.gradient_accumulation_steps} accumulation · {lane.optimizer.name} "
        f"lr {lane.optimizer.learning_rate:g} · {lane.precision.compute} compute, "
        f"{lane.precision.residual} residual"
    )
    _print_index_layers(lane)


def _print_index_layers(lane: Lane) -> None:
    from lanewise.lane.index_layers import index_layers

    layers = index_layers(lane.model)
    if layers is None:
        return

    def ranks(found: tuple[int, ...]) -> str:
        return ", ".join(map(str, found)) or "none"

    line = (
        f"index    computed by A ranks {ranks(layers.computed)} · reused by {ranks(layers.reused)}"
    )
    if layers.promoted:
        line += (
            f" · promoted to computing it, having no earlier one to reuse: {ranks(layers.promoted)}"
        )
    typer.echo(line)


def _print_conventions(three: Conventions) -> None:
    typer.echo(
        f"training FLOP/token by three conventions: lane numerator {_si(three.lane_numerator)} · "
        f"hardware {_si(three.hardware)} · 6·N active {_si(three.six_n_active)} (docs/FLOPS.md)"
    )
    for change in three.changes:
        typer.echo(
            f"  hardware differs by {_signed(change.flops_per_token)}FLOP: "
            f"{change.component}, {change.reason}"
        )


def _print_flops(flops: LaneFlops) -> None:
    typer.echo(
        f"size     {_si(flops.params_total)} parameters ({_si(flops.params_active)} active) · "
        f"{_si(flops.training_flops_per_token)}FLOP/token · {_si(flops.training_flops_per_step)}FLOP/step "
        f"of {flops.tokens_per_step} tokens (forward + backward) · convention {flops.convention} "
        f"{flops.convention_version}, causal {flops.causal_factor}, MLA {flops.mla_form}"
    )
    total = flops.training_flops_per_token
    print_table(
        (
            "component",
            "count",
            "params",
            "active",
            "forward FLOP/token",
            "training FLOP/token",
            "share",
        ),
        (
            (
                row.component,
                str(row.count),
                _si(row.params),
                _si(row.active_params),
                _si(row.forward_flops_per_token),
                _si(row.training_flops_per_token),
                f"{row.training_flops_per_token / total:.1%}",
            )
            for row in flops.components
        ),
    )


def _print_features(found: ResolvedLane) -> None:
    from lanewise.lane.features import BY_KEY

    def sets(key: str, state: str) -> str:
        setting = BY_KEY[key].settings[state]
        ops = [
            f"{op} = {_preference(found.op_preferences[op])}"
            for op in setting.ops
            if op in found.op_preferences
        ]
        return ", ".join([*ops, *setting.model, *setting.runtime])

    print_table(
        ("feature", "role", "state", "decided by", "sets", "evidence"),
        (
            (
                feature.key,
                feature.role,
                feature.state,
                feature.source,
                sets(feature.key, feature.state),
                ", ".join(feature.evidence),
            )
            for feature in found.features
        ),
    )
    for line in passed_over_lines(found):
        typer.echo(line)


def _print_fields(found: ResolvedLane) -> None:
    from lanewise.lane.compare import flatten

    document = found.model_dump(mode="json", exclude={"features"})
    typer.echo()
    for path, value in flatten(document):
        typer.echo(f"{path} = {json.dumps(value, ensure_ascii=False)}")


def _print_differences(differences: Any, name_a: str, name_b: str) -> None:
    print_table(
        ("field", name_a, name_b),
        (
            (
                item.path,
                json.dumps(item.a, ensure_ascii=False),
                json.dumps(item.b, ensure_ascii=False),
            )
            for item in differences
        ),
    )


def _preference(backends: tuple[str, ...]) -> str:
    return " > ".join(backends) or "the op's own order"


def _signed(value: float) -> str:
    return f"{'−' if value < 0 else '+'}{_si(abs(value))}"


def _si(value: float) -> str:
    """Three digits and an SI prefix: 2.03 M, 18.5 G."""
    for factor, prefix in ((1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k")):
        if value >= factor:
            return f"{value / factor:.3g}{prefix}"
    return f"{value:.3g} "
