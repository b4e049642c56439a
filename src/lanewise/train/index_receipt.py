"""What a receipt says about the index cache: which layers computed a sparse index and which reused one."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, Final

from lanewise.lane.index_layers import index_layers
from lanewise.lane.schema import Lane

INDEX_LAYERS_KEY: Final = "io.lanewise.index_layers"
"""Key in `extensions` that says which A ranks computed a sparse index, reused one, or were promoted to computing it."""


def index_layers_extension(lane: Lane) -> dict[str, Any]:
    """The entry of `extensions`; empty for a lane without sparse layers."""
    layers = index_layers(lane.model)
    if layers is None:
        return {}
    return {INDEX_LAYERS_KEY: {key: list(ranks) for key, ranks in asdict(layers).items()}}
