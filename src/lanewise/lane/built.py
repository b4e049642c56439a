"""What the schema knows and this version cannot train yet, by name."""

from __future__ import annotations

from collections.abc import Iterator

from lanewise.errors import NotBuiltError
from lanewise.lane.machine import DeviceType
from lanewise.lane.pattern import LETTERS, TABLE_OF_LETTER, layer_letters
from lanewise.lane.schema import Lane
from lanewise.lane.topology import topology_name, world_size


def not_built(lane: Lane, *, device_type: DeviceType = "cpu") -> tuple[str, ...]:
    """Every setting of a lane that this version cannot train, each by its key and value; empty when it can."""
    letters = frozenset(layer_letters(lane.model))
    return (
        *_blocks_not_built(lane, letters),
        *_model_extras_not_built(lane),
        *_run_not_built(lane, device_type),
    )


def require_built(lane: Lane, *, device_type: DeviceType = "cpu") -> None:
    """Refuse a lane this version cannot train.

    Raises:
        NotBuiltError: naming every setting concerned and the next action.
    """
    missing = not_built(lane, device_type=device_type)
    if missing:
        raise NotBuiltError(
            f"lane '{lane.name}' cannot be trained by this version, which does not build: {'; '.join(missing)}. "
            f"`lanewise lane show {lane.name}` still counts it; train nam56r-tiny, or change these settings with --set"
        )


def _blocks_not_built(lane: Lane, letters: frozenset[str]) -> Iterator[str]:
    for letter in sorted(letters - TABLE_OF_LETTER.keys()):
        yield f"pattern letter {letter} ({LETTERS[letter]})"
    model = lane.model
    if "A" in letters and model.attention and model.attention.sparse:
        yield "model.attention.sparse (DSA sparse attention)"
    if "M" in letters and model.mamba and model.mamba.mimo_rank > 1:
        yield f"model.mamba.mimo_rank = {model.mamba.mimo_rank} (MIMO; 1 is SISO)"


def _model_extras_not_built(lane: Lane) -> Iterator[str]:
    if lane.model.mtp:
        yield f"model.mtp.depth = {lane.model.mtp.depth} (multi-token prediction)"
    if lane.model.ngram_embedding:
        yield "model.ngram_embedding (n-gram hash embedding)"


def _run_not_built(lane: Lane, device_type: DeviceType) -> Iterator[str]:
    if device_type == "cpu":
        for key in ("compute", "residual"):
            if getattr(lane.precision, key) != "fp32":
                yield f"precision.{key} = {getattr(lane.precision, key)} on a CPU"
    if lane.optimizer.name != "adamw":
        yield f"optimizer.name = {lane.optimizer.name}"
    if lane.data.isolate_documents:
        yield "data.isolate_documents = true"
    processes = world_size(lane.topology)
    if processes > 1 or lane.topology.nodes > 1:
        yield f"topology {topology_name(lane.topology)} ({processes} processes)"
