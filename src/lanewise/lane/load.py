"""Load lanes: TOML file or preset, `extends`, `--set` overrides, validation; every problem is reported at once.

A lane is named by a preset, by a path to a TOML file, or by a file in `./lanes`. `extends` merges tables key by key onto
a base; an optional table (`model.mtp`, `model.attention.sparse`, …) is taken away by setting it to `"none"`.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

from lanewise.errors import LaneError, Problem
from lanewise.lane.schema import Lane
from lanewise.lane.sources import (
    MAX_DEPTH,
    Document,
    KeyPath,
    dotted,
    parse_toml,
    read_text,
    require_shallow,
)
from lanewise.lane.suggest import nearest
from lanewise.lane.validate import Draft, paths_of, validate

LANES_FOLDER = Path("lanes")
MAX_CHAIN = 16
"""Lanes that extend each other in a row."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LaneEntry:
    """A lane that can be loaded by name.

    Attributes:
        name: what to type.
        origin: `preset`, or the path of the file.
        summary: the file's first comment line.
    """

    name: str
    origin: str
    summary: str


def load_lane(
    name_or_path: str | Path, overrides: Sequence[str] = (), *, folder: Path = LANES_FOLDER
) -> Lane:
    """Load and check one lane.

    Args:
        name_or_path: preset name, path to a TOML file, or name of a file in `folder`.
        overrides: `path=value`, as given to `--set`; the value is TOML, bare words are strings.
        folder: where lanes are looked up by name.

    Raises:
        LaneError: with every problem found, each with its place.
    """
    draft = _read(str(name_or_path), folder=folder, chain=())
    problems: list[Problem] = []
    if overrides:
        draft = replace(draft, base=draft.base or draft.tables)
    for override in overrides:
        try:
            draft = _with_override(draft, override)
        except LaneError as error:
            problems.extend(error.problems)
    lane, found = validate(draft)
    problems.extend(found)
    if problems or lane is None:
        raise LaneError(problems)
    return lane


def list_lanes(*, folder: Path = LANES_FOLDER) -> tuple[LaneEntry, ...]:
    """Presets, smallest model first, then the files of `folder`."""
    presets = tuple(
        LaneEntry(name=name, origin="preset", summary=_summary(_preset_text(name)))
        for name in preset_names()
    )
    own = tuple(
        LaneEntry(name=path.stem, origin=str(path), summary=_summary_of_file(path))
        for path in _files_in(folder)
    )
    return presets + own


def preset_names() -> tuple[str, ...]:
    """Names of the lanes that ship with lanewise, smallest model first."""
    shipped = {
        entry.name.removesuffix(".toml")
        for entry in (files("lanewise.lane") / "presets").iterdir()
        if entry.name.endswith(".toml")
    }
    order = (
        "nam56r-tiny",
        "nam56r-tiny-full",
        "dense-tiny",
        "nam52-tiny",
        "nam56r-period",
        "nam56r",
        "nam56r-4096",
    )
    return (*(name for name in order if name in shipped), *sorted(shipped.difference(order)))


def parse_override(override: str) -> tuple[tuple[str, ...], Any]:
    """Split `path=value`; the value is TOML, or else a bare word taken as a string.

    >>> parse_override("optimizer.learning_rate=3e-4")
    (('optimizer', 'learning_rate'), 0.0003)
    >>> parse_override("ops.ssm_scan=chunked.torch")
    (('ops', 'ssm_scan'), 'chunked.torch')

    Raises:
        LaneError: there is no `=`, a part of the path is empty, or a quoted value is not TOML.
    """
    path_text, equals, value_text = override.partition("=")
    path = tuple(part.strip() for part in path_text.split("."))
    where = f"--set {override}"
    if not equals or not all(path):
        message = "not of the form path=value, e.g. --set batch.micro_batch_size=8"
        raise LaneError([Problem(where=where, path="", message=message)])
    value_text = value_text.strip()
    if "\n" in value_text:
        # TOML of several lines could smuggle in further keys.
        return path, value_text
    try:
        value = tomllib.loads(f"value = {value_text}")["value"]
        require_shallow({dotted(path): value}, where)
        return path, value
    except (ValueError, RecursionError) as error:
        if value_text[:1] in ("", '"', "'", "[", "{"):
            message = f"the value {value_text!r} is not TOML; quote it, or give a bare word"
            raise LaneError([Problem(where=where, path=dotted(path), message=message)]) from error
        return path, value_text


def _read(name_or_path: str, *, folder: Path, chain: tuple[str, ...]) -> Draft:
    """Read a lane and everything it extends."""
    document, origin = _find(name_or_path, folder=folder)
    return draft_of(document, origin, folder=folder, chain=chain)


def draft_of(
    document: Document, origin: str, *, folder: Path, chain: tuple[str, ...] = ()
) -> Draft:
    """A parsed lane merged onto everything it extends.

    Args:
        document: the parsed file.
        origin: `preset NAME` or the file's path, which says what its `extends` is relative to.
        folder: where lanes are looked up by name.
        chain: origins of the lanes that extend this one.

    Raises:
        LaneError: it extends itself, or what is no lane.
    """
    if origin in chain:
        raise LaneError(f"{document.name}: extends itself: {' → '.join((*chain, origin))}")
    if len(chain) >= MAX_CHAIN:
        raise LaneError(
            f"{document.name}: extends through more than {MAX_CHAIN} files; put what they share into one"
        )
    tables = dict(document.tables)
    base = tables.pop("extends", None)
    if "name" not in tables:
        tables["name"] = _lane_name(origin)
    own = Draft(
        tables=tables, places=dict(_places(tables, document, ())), name=document.name, base={}
    )
    if base is None:
        return own
    if not isinstance(base, str):
        message = f"= {base!r} is not the name or path of a lane"
        where = document.where(("extends",))
        raise LaneError([Problem(where=where, path="extends", message=message)])
    base_folder = folder if origin.startswith("preset ") else Path(origin).parent
    try:
        parent = _read(_relative(base, base_folder), folder=folder, chain=(*chain, origin))
    except LaneError as error:
        if error.problems:
            raise
        where = document.where(("extends",))
        raise LaneError([Problem(where=where, path="extends", message=str(error))]) from error
    return Draft(
        tables=_merge(parent.tables, own.tables),
        places={**parent.places, **own.places},
        name=own.name,
        base=parent.tables,
    )


def _find(name_or_path: str, *, folder: Path) -> tuple[Document, str]:
    """The document of a lane and an identity for cycle checks: `preset NAME` or the file's path."""
    if name_or_path.endswith(".toml") or "/" in name_or_path:
        text = read_text(Path(name_or_path), what="lane")
        return parse_toml(text, name=name_or_path), str(Path(name_or_path).resolve())
    own = {path.stem: path for path in _files_in(folder)}
    if name_or_path in preset_names():
        if name_or_path in own:
            raise LaneError(
                f"'{name_or_path}' names a preset and {own[name_or_path]}; rename the file or give its path"
            )
        text = _preset_text(name_or_path)
        return parse_toml(text, name=f"preset {name_or_path}"), f"preset {name_or_path}"
    if name_or_path in own:
        path = own[name_or_path]
        return parse_toml(read_text(path, what="lane"), name=str(path)), str(path.resolve())
    known = (*preset_names(), *own)
    match = nearest(name_or_path, known)
    hint = f" Did you mean '{match}'?" if match else ""
    raise LaneError(f"no lane '{name_or_path}'.{hint} `lanewise lane list` shows all.")


def _relative(base: str, folder: Path) -> str:
    """`extends` names a preset or lane, or a path relative to the file that says so."""
    if base.endswith(".toml"):
        return str(folder / base)
    if base in preset_names():
        return base
    sibling = folder / f"{base}.toml"
    try:
        return str(sibling) if sibling.is_file() else base
    except (OSError, ValueError) as error:
        raise LaneError(f"{base[:60]!r} is no name of a lane: {error}") from error


def _with_override(draft: Draft, override: str) -> Draft:
    path, value = parse_override(override)
    if len(path) > MAX_DEPTH:
        message = f"a path of {len(path)} parts; a setting of a lane has at most four"
        raise LaneError([Problem(where=f"--set {'.'.join(path[:4])}…", path="", message=message)])
    patch: Any = value
    for part in reversed(path):
        patch = {part: patch}
    places = {
        **draft.places,
        **dict.fromkeys(paths_of(patch, ()), f"--set {override}"),
    }
    return replace(draft, tables=_merge(draft.tables, patch), places=places)


def _merge(base: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Tables merge key by key; everything else is replaced."""
    merged = dict(base)
    for key, value in own.items():
        below = merged.get(key)
        merged[key] = (
            _merge(below if isinstance(below, Mapping) else {}, value)
            if isinstance(value, Mapping)
            else value
        )
    return merged


def _places(value: Any, document: Document, path: KeyPath) -> Iterator[tuple[KeyPath, str]]:
    for place in paths_of(value, path):
        yield place, document.where(place)


def _files_in(folder: Path) -> tuple[Path, ...]:
    return tuple(sorted(folder.glob("*.toml"))) if folder.is_dir() else ()


def _preset_text(name: str) -> str:
    return (files("lanewise.lane") / "presets" / f"{name}.toml").read_text(encoding="utf-8")


def _summary_of_file(path: Path) -> str:
    try:
        return _summary(read_text(path, what="lane"))
    except LaneError as error:
        return str(error)


def _summary(text: str) -> str:
    first = text.lstrip().partition("\n")[0]
    return first.lstrip("# ").strip() if first.startswith("#") else ""


def _lane_name(origin: str) -> str:
    """A legal lane name from a file's name."""
    stem = Path(origin.removeprefix("preset ")).name.removesuffix(".toml")
    return re.sub(r"[^a-z0-9_.-]+", "-", stem.lower()).strip("-_.")[:100] or "lane"
