"""`lanewise feature`: the article's families, and every feature with what it is compared with."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lanewise.cli.output import JsonFlag, print_json, print_table

if TYPE_CHECKING:
    from lanewise.lane.features import Feature, Setting

group = typer.Typer(
    name="feature",
    help="Features: switches on a lane, each with its control and stance.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def register(app: typer.Typer) -> None:
    """Add this verb group to the command line."""
    app.add_typer(group)


@group.command("list", short_help="Every feature, and its family in the article.")
def list_(as_json: JsonFlag = False) -> None:
    """List the article's seven feature families, then every feature of this version."""
    from lanewise.lane.families import FAMILIES
    from lanewise.lane.features import FEATURES

    if as_json:
        print_json(
            {
                "families": [asdict(family) for family in FAMILIES],
                "features": [_document(feature) for feature in FEATURES],
            }
        )
        return
    print_table(
        ("Feature family", "Speed role", "Default stance"),
        ((family.title, family.speed_role, family.default_stance) for family in FAMILIES),
    )
    typer.echo()
    print_table(
        ("feature", "family", "role", "blocks", "control (off)", "stance", "default", "built"),
        (
            (
                feature.key,
                feature.family or "–",
                feature.role.value,
                _blocks(feature),
                _controls_in_words(feature),
                feature.stance,
                feature.default_state,
                "yes" if feature.built else "not yet",
            )
            for feature in FEATURES
        ),
    )


@group.command(short_help="What each state sets and what it is compared with.")
def show(
    key: Annotated[str, typer.Argument(help="Key of the feature, e.g. fused_moe.")],
    as_json: JsonFlag = False,
) -> None:
    """Show one feature: what each state sets and what it is compared with."""
    from lanewise.lane.resolve import find_feature

    feature = find_feature(key)
    if as_json:
        print_json(_document(feature))
        return
    budget = feature.tax_budget_ratio
    lines = {
        "feature": f"{feature.key} · {feature.title}",
        "role": feature.role.value,
        "family": feature.family or "beyond the article's seven",
        "blocks": _blocks(feature),
        "control": _controls_in_words(feature),
        "why": feature.control_note,
        **{f"why {device}": note for device, note in feature.control_notes.items()},
        "stance": f"{feature.stance} (default state: {feature.default_state})",
        "loss": "the same up to rounding" if feature.equal_mathematics else "changes",
        "built": "yes" if feature.built else "not yet: asking for it is an error",
    }
    if budget is not None:
        lines["budget"] = f"step time ratio {budget:g}"
    for label, text in lines.items():
        typer.echo(f"{label:8} {text}")
    for state, setting in feature.settings.items():
        typer.echo(f"{'state':8} {state}: {_setting_in_words(setting)}")


def _document(feature: Feature) -> dict[str, Any]:
    return {
        "key": feature.key,
        "title": feature.title,
        "role": feature.role.value,
        "family": feature.family,
        "letters": sorted(feature.letters),
        "states": {
            state: {
                "ops": {
                    op: {device: list(names) for device, names in by_device.items()}
                    for op, by_device in setting.ops.items()
                },
                "model": dict(setting.model),
                "runtime": dict(setting.runtime),
            }
            for state, setting in feature.settings.items()
        },
        "control": _controls(feature),
        "control_note": feature.control_note,
        "control_notes": dict(feature.control_notes),
        "default_state": feature.default_state,
        "stance": feature.stance,
        "tax_budget_ratio": feature.tax_budget_ratio,
        "equal_mathematics": feature.equal_mathematics,
        "built": feature.built,
    }


def _controls(feature: Feature) -> dict[str, str]:
    """Device type → backends of the control; empty when the control is the switch being off."""
    controls: dict[str, list[str]] = {}
    for by_device in feature.settings["off"].ops.values():
        for device, names in by_device.items():
            controls.setdefault(device, []).extend(names)
    return {device: ", ".join(dict.fromkeys(names)) for device, names in controls.items()}


def _controls_in_words(feature: Feature) -> str:
    devices: dict[str, list[str]] = {}
    for device, names in _controls(feature).items():
        devices.setdefault(names, []).append(device)
    parts = (f"{', '.join(found)}: {names}" for names, found in devices.items())
    return "; ".join(parts) or feature.control_name


def _setting_in_words(setting: Setting) -> str:
    parts = [
        f"{op} on {device} = {' > '.join(names) or 'the op’s own order'}"
        for op, by_device in setting.ops.items()
        for device, names in by_device.items()
    ]
    parts += [f"{key} = {str(value).lower()}" for key, value in setting.model.items()]
    parts += [f"{key} = {str(value).lower()}" for key, value in setting.runtime.items()]
    return ", ".join(parts) or "changes nothing"


def _blocks(feature: Feature) -> str:
    if feature.table is not None:
        return f"[model.{feature.table}]"
    return " ".join(sorted(feature.letters)) or "all"
