"""The ledger of defaults as verbs find it: `--ledger`, else `ledger.toml` of the store."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lanewise.errors import UsageError

if TYPE_CHECKING:
    from lanewise.lane.config import Config
    from lanewise.lane.resolved import ResolvedLane
    from lanewise.lane.schema import Lane

LedgerOption = Annotated[
    Path | None,
    typer.Option(
        "--ledger",
        metavar="FILE",
        help="Defaults that evidence has earned; see `lanewise graduate`.",
        show_default="ledger.toml of the store",
    ),
]
NoLedgerFlag = Annotated[
    bool, typer.Option("--no-ledger", help="Leave the ledger aside: stances decide.")
]


def resolve_with_ledger(
    lane: Lane,
    *,
    config: Config | None,
    ledger: Path | None,
    no_ledger: bool,
    store_root: str,
    here: bool,
    **settings: Any,
) -> ResolvedLane:
    """Resolve a lane by explicit > configuration > ledger > stance.

    Args:
        lane: as loaded.
        config: of `--config`.
        ledger: of `--ledger`.
        no_ledger: of `--no-ledger`.
        store_root: whose ledger is taken when none is named.
        here: whether this machine will run it; only then are evidence's versions compared with those installed.
        settings: further arguments of `resolve`.

    Raises:
        LaneError: the ledger cannot be read; `--no-ledger` goes on without it.
    """
    from lanewise.lane.config import apply_config
    from lanewise.lane.resolve import resolve
    from lanewise.receipts.versions import present_version

    found = _load(ledger, no_ledger=no_ledger, store_root=store_root)
    if config is not None:
        lane = apply_config(lane, config)
    if found is not None:
        lane = apply_config(lane, found)  # plain values in it are a person's word
    return resolve(
        lane,
        config=config,
        ledger=None if found is None else found.ledger,
        version_of=present_version if here else None,
        **settings,
    )


def passed_over_lines(resolved: ResolvedLane) -> Iterator[str]:
    """A line for every entry of the ledger that does not decide any more."""
    for decision in resolved.features:
        if decision.passed_over is not None:
            yield (
                f"{decision.key} = {decision.state} by {decision.source}: the ledger's entry does not count, "
                f"{decision.passed_over}"
            )


def default_ledger(store_root: str) -> Path:
    """Where the ledger of a store is."""
    from lanewise.lab.ledger_file import FILE_NAME

    return Path(store_root) / FILE_NAME


def _load(option: Path | None, *, no_ledger: bool, store_root: str) -> Config | None:
    from lanewise.lane.config import load_config
    from lanewise.receipts.files import is_remote

    if no_ledger:
        if option is not None:
            raise UsageError("--ledger and --no-ledger contradict each other; give one of them")
        return None
    if option is None and (is_remote(store_root) or not _is_there(default_ledger(store_root))):
        return None
    return load_config(option or default_ledger(store_root))


def _is_there(path: Path) -> bool:
    """Whether a ledger is meant to be here: a link that leads nowhere must be refused, not passed over in silence."""
    return path.is_symlink() or path.exists()
