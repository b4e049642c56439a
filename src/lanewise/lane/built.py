"""What the schema knows and this version cannot train yet, by name."""

from __future__ import annotations

import json
from collections.abc import Iterator

from lanewise.errors import NotBuiltError
from lanewise.lane.pattern import TABLE_OF_LETTER, layer_letters
from lanewise.lane.schema import Lane
from lanewise.lane.spec import Spec
from lanewise.lane.topology import topology_name, world_size

BUILT_VALUES: tuple[tuple[str, str, object], ...] = (
    ("E", "score_function", "sigmoid"),
    ("E", "num_expert_groups", 1),
    ("E", "real_slot_ratio", 1.0),
    ("E", "shared_expert_gate", False),
    ("E", "routing_mode", "learned"),
    ("E", "bias_update", "sign"),
)
"""Letter, key of its table, and the only value of it that is built."""


def not_built(lane: Lane) -> tuple[str, ...]:
    """Every setting of a lane that this version cannot train, each by its key and value; empty when it can."""
    letters = frozenset(layer_letters(lane.model))
    return (
        *_blocks_not_built(lane, letters),
        *_run_not_built(lane),
    )


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


def _blocks_not_built(lane: Lane, letters: frozenset[str]) -> Iterator[str]:
    for letter, key, built in BUILT_VALUES:
        table = TABLE_OF_LETTER[letter]
        spec = getattr(lane.model, table)
        if letter in letters and spec is not None and getattr(spec, key) != built:
            value = getattr(spec, key)
            shown = "" if isinstance(value, Spec) else f" = {json.dumps(value)}"
            yield f"model.{table}.{key}{shown}"


def _run_not_built(lane: Lane) -> Iterator[str]:
    processes = world_size(lane.topology)
    if processes > 1 or lane.topology.nodes > 1:
        yield f"topology {topology_name(lane.topology)} ({processes} processes)"
