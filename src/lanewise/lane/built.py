"""What the schema knows and this version cannot train yet, by name."""

from __future__ import annotations

from collections.abc import Iterator

from lanewise.errors import NotBuiltError
from lanewise.lane.schema import Lane
from lanewise.lane.topology import topology_name, world_size


def not_built(lane: Lane) -> tuple[str, ...]:
    """Every setting of a lane that this version cannot train, each by its key and value; empty when it can."""
    return tuple(_run_not_built(lane))


def require_built(lane: Lane) -> None:
    """Refuse a lane this version cannot train.

    Raises:
        NotBuiltError: naming every setting concerned and the next action.
    """
    missing = not_built(lane)
    if missing:
        raise NotBuiltError(
            f"lane '{lane.name}' cannot be trained by this version, which does not build: {'; '.join(missing)}. "
            f"`lanewise lane show {lane.name}` still counts it; train nam56r-tiny, or change these settings with --set"
        )


def _run_not_built(lane: Lane) -> Iterator[str]:
    processes = world_size(lane.topology)
    if processes > 1 or lane.topology.nodes > 1:
        yield f"topology {topology_name(lane.topology)} ({processes} processes)"
