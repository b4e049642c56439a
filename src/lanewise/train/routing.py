"""Recorded routing: the ids of every E layer, written by one run and followed by others, so that arms share them.

    <folder>/routing.json           what was recorded: model, data, shape of a micro-batch
    <folder>/step-00000012.npz      one array per E layer, `layer_0` …, [micro-batches, S, k] of the smallest integer type

Files are written whole or not at all, and a run that is resumed goes on with the recording it began. What is recorded is
the routing of training micro-batches; a profiled step after the end follows the last one again and is never recorded.

Which tokens skip a block under depth routing is not followed but decided anew, so a recording of it repeats the run that
made it; under other weights, a token that skipped then and does not now visits no routed expert.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from lanewise.errors import UsageError
from lanewise.lane.digest import model_digest
from lanewise.lane.expert_slots import num_training_picks
from lanewise.lane.pattern import layer_letters
from lanewise.lane.schema import Lane
from lanewise.models.layers import SKIPPED_ID
from lanewise.receipts import files
from lanewise.train.request import RunRequest

FORMAT = 1
MANIFEST = "routing.json"

MicroBatchIds = tuple[Tensor, ...]
"""int64 [S, k] of every E layer in order."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Recorded:
    """What a recording must share with a run that follows it.

    Attributes:
        model_digest: pattern, sizes and coefficients, without the routing mode.
        depth_routing: whether tokens skip blocks, and so have no experts to follow.
        data_digest: the corpus, its tokenizer and its packing.
        data_seed: order of the rows.
        num_expert_layers: E layers.
        num_experts: E.
        tokens_per_micro_batch: S.
        picks: k, null picks included.
        micro_batches: per optimizer step.
    """

    model_digest: str
    depth_routing: bool
    data_digest: str
    data_seed: int
    num_expert_layers: int
    num_experts: int
    tokens_per_micro_batch: int
    picks: int
    micro_batches: int

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of one layer in one step."""
        return (self.micro_batches, self.tokens_per_micro_batch, self.picks)


def describe(lane: Lane, data_digest: str, *, depth_routing: bool = False) -> Recorded:
    """What a recording of this lane's routing holds.

    Args:
        lane: what is trained.
        data_digest: of its data.
        depth_routing: whether that feature is on.

    Raises:
        UsageError: the lane has no E layers.
    """
    moe, num_layers = lane.model.moe, layer_letters(lane.model).count("E")
    if moe is None or not num_layers:
        raise UsageError(
            f"lane '{lane.name}' has no E layers, so there is no routing to record or replay; "
            "leave out --record-routing and --replay-routing"
        )
    learned = moe.model_copy(update={"routing_mode": "learned"})
    model = lane.model.model_copy(update={"moe": learned})
    batch = lane.batch
    return Recorded(
        model_digest=model_digest(lane.model_copy(update={"model": model})),
        depth_routing=depth_routing,
        data_digest=data_digest,
        data_seed=lane.data.seed,
        num_expert_layers=num_layers,
        num_experts=moe.num_experts,
        tokens_per_micro_batch=batch.micro_batch_size * batch.sequence_length,
        picks=num_training_picks(moe),
        micro_batches=batch.gradient_accumulation_steps,
    )


def to_follow(request: RunRequest, data_digest: str) -> RoutingReader | None:
    """The recording a run follows; None when its lane chooses or deals its own routing.

    Raises:
        UsageError: the lane replays and no recording was given, or the reverse, or the recording does not fit.
    """
    lane, folder = request.resolved.lane, request.replay_routing
    replays = (
        lane.model.moe is not None
        and lane.model.moe.routing_mode == "replayed"
        and "E" in layer_letters(lane.model)
    )
    if folder is None:
        if replays:
            raise UsageError(
                f"lane '{lane.name}' has model.moe.routing_mode = replayed, which needs a recording; give "
                "`lanewise train … --replay-routing DIR`, or set another mode"
            )
        return None
    expected = _describe_run(request, data_digest)
    if not replays:
        raise UsageError(
            "a recording was given to replay and the lane makes its own routing; "
            "add --set model.moe.routing_mode=replayed"
        )
    return RoutingReader(folder, expected)


def to_write(request: RunRequest, data_digest: str, *, first_step: int) -> RoutingWriter | None:
    """Where a run records its routing, or None.

    Raises:
        UsageError: the lane has no E layers, or the folder holds a recording this run does not continue.
    """
    if request.record_routing is None:
        return None
    recorded = _describe_run(request, data_digest)
    return RoutingWriter(request.record_routing, recorded, first_step=first_step)


def _describe_run(request: RunRequest, data_digest: str) -> Recorded:
    resolved = request.resolved
    skips = resolved.model_switches.get("depth_routing", False)
    return describe(resolved.lane, data_digest, depth_routing=skips)


def ids_digest(replay: RoutingReader | None, record: RoutingWriter | None) -> str | None:
    """Digest of the ids a run has followed or written, for its receipt."""
    source = replay or record
    return None if source is None else source.ids_digest


class RoutingSource(Protocol):
    """Where the routing that steps follow comes from."""

    def read(self, step: int, device: torch.device) -> list[MicroBatchIds]:
        """The ids of each micro-batch of a step."""


class RoutingWriter:
    """Writes the routing of one run.

    Args:
        folder: where; made if it does not exist.
        recorded: what is recorded.
        first_step: the coming step; above 0 the folder may hold the steps before it.

    Raises:
        UsageError: the folder holds another recording, or one this run does not continue.
    """

    def __init__(self, folder: str, recorded: Recorded, *, first_step: int) -> None:
        self._folder = files.normal_root(folder)
        self._recorded = recorded
        self._ids_digest = hashlib.sha256()
        manifest = f"{self._folder}/{MANIFEST}"
        if files.exists(manifest):
            if first_step == 0:
                raise UsageError(
                    f"{folder} already holds a recording; give another --record-routing folder, or --resume the "
                    "run that began it"
                )
            _refuse_other(_read_manifest(self._folder), recorded, self._folder)
        else:
            content = {"format": FORMAT, **asdict(recorded)}
            files.write_bytes(manifest, (json.dumps(content, indent=1) + "\n").encode())

    @property
    def ids_digest(self) -> str:
        """`sha256:…` of the ids written so far."""
        return f"sha256:{self._ids_digest.hexdigest()}"

    def write(self, step: int, micro_batches: Sequence[MicroBatchIds]) -> None:
        """Write one step; waits for the device.

        Args:
            step: 0-based optimizer step.
            micro_batches: ids of each micro-batch in order, each one tensor per E layer.

        Raises:
            StoreError: the disk is full or the folder cannot be written.
        """
        dtype = _smallest_dtype(self._recorded.num_experts)
        layers = [
            torch.stack(layer).cpu().numpy().astype(dtype)
            for layer in zip(*micro_batches, strict=True)
        ]
        assert all(layer.shape == self._recorded.shape for layer in layers)
        _update(self._ids_digest, layers)
        content = io.BytesIO()
        arrays: dict[str, Any] = {f"layer_{index}": layer for index, layer in enumerate(layers)}
        np.savez(content, **arrays)
        files.write_bytes(f"{self._folder}/{_step_name(step)}", content.getvalue())


class RoutingReader:
    """Reads a recording for a run of the same model on the same data.

    Args:
        folder: a recording.
        expected: what this run needs.

    Raises:
        UsageError: there is no recording, or it was made by another model, on other data or in another shape.
    """

    def __init__(self, folder: str, expected: Recorded) -> None:
        self._folder = files.normal_root(folder)
        self._recorded = expected
        self._ids_digest = hashlib.sha256()
        if not files.exists(f"{self._folder}/{MANIFEST}"):
            raise UsageError(
                f"{folder} holds no recording ({MANIFEST} is missing); make one with "
                "`lanewise train … --record-routing DIR`"
            )
        _refuse_other(_read_manifest(self._folder), expected, self._folder)

    @property
    def ids_digest(self) -> str:
        """`sha256:…` of the ids read for steps so far."""
        return f"sha256:{self._ids_digest.hexdigest()}"

    def require(self, steps: range) -> None:
        """Refuse a run that would run out of recorded steps.

        Raises:
            UsageError: naming the first step that is missing.
        """
        for step in steps:
            if not files.exists(f"{self._folder}/{_step_name(step)}"):
                raise UsageError(
                    f"{self._folder} holds no routing of step {step}, and this run takes steps {steps.start} to "
                    f"{steps.stop - 1}; record as many, or give a smaller --steps"
                )

    def read(self, step: int, device: torch.device) -> list[MicroBatchIds]:
        """The ids of each micro-batch of a step.

        Raises:
            UsageError: the step was not recorded, or its file is not what was written.
        """
        layers = self._layers(step)
        _update(self._ids_digest, layers)
        return _micro_batches(layers, device)

    def again(self, step: int) -> RoutingSource:
        """The routing of one step whatever step is asked for, leaving no trace in `ids_digest`.

        For work beside the run's own steps: a compilation before them, a profiled step after them.
        """
        return _OneStep(self, step)

    def peek(self, step: int, device: torch.device) -> list[MicroBatchIds]:
        """As `read`, leaving no trace in `ids_digest`."""
        return _micro_batches(self._layers(step), device)

    def _layers(self, step: int) -> list[np.ndarray]:
        location = f"{self._folder}/{_step_name(step)}"
        try:
            with np.load(io.BytesIO(files.read_bytes(location))) as stored:
                layers = [
                    stored[f"layer_{index}"] for index in range(self._recorded.num_expert_layers)
                ]
        except FileNotFoundError as error:
            raise UsageError(
                f"{self._folder} holds no routing of step {step}; record as many steps as this run takes"
            ) from error
        except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise UsageError(f"{location} cannot be read: {error}; record it again") from error
        for index, layer in enumerate(layers):
            _refuse_faulty(layer, self._recorded, f"{location}, E layer {index}")
        return layers


class _OneStep:
    """A source that knows one step of a recording."""

    def __init__(self, reader: RoutingReader, step: int) -> None:
        self._reader = reader
        self._step = step

    def read(self, step: int, device: torch.device) -> list[MicroBatchIds]:  # noqa: ARG002  always the same step
        return self._reader.peek(self._step, device)


def _refuse_other(found: Recorded, expected: Recorded, folder: str) -> None:
    names = {
        "model_digest": "another model (pattern, sizes or coefficients)",
        "depth_routing": "another state of the feature depth_routing",
        "data_digest": "other data",
        "data_seed": "another order of the data",
    }
    for key, value in asdict(expected).items():
        if (other := getattr(found, key)) != value:
            what = names.get(key, f"another {key}")
            raise UsageError(
                f"the routing in {folder} belongs to {what}: it has {_brief(other)}, this run has {_brief(value)}; "
                "use the lane, data and --set of the run that recorded it, or another folder"
            )


def _brief(value: str | int) -> str:
    return f"{value[:19]}…" if isinstance(value, str) else str(value)


def _refuse_faulty(layer: np.ndarray, recorded: Recorded, where: str) -> None:
    if layer.shape != recorded.shape or layer.dtype.kind != "i":
        raise UsageError(
            f"{where}: ids are {layer.dtype} {list(layer.shape)}, expected integers {list(recorded.shape)}; record it again"
        )
    if layer.size and (layer.min() < SKIPPED_ID or layer.max() >= recorded.num_experts):
        raise UsageError(
            f"{where}: ids run from {layer.min()} to {layer.max()}, expected −2 to {recorded.num_experts - 1}; "
            "record it again"
        )


def _read_manifest(folder: str) -> Recorded:
    location = f"{folder}/{MANIFEST}"
    try:
        document: dict[str, Any] = json.loads(files.read_bytes(location))
        version = document.pop("format")
        if version == FORMAT:
            return Recorded(**document)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"{location} cannot be read: {error}; record it again") from error
    raise UsageError(
        f"{location} has format {version}, this version reads {FORMAT}; record it again"
    )


def _smallest_dtype(num_experts: int) -> np.dtype[Any]:
    return np.min_scalar_type(-num_experts)  # holds −num_experts … num_experts − 1


def _step_name(step: int) -> str:
    return f"step-{step:08d}.npz"


def _update(ids_digest: Any, layers: Sequence[np.ndarray]) -> None:
    for layer in layers:
        ids_digest.update(np.ascontiguousarray(layer).tobytes())


def _micro_batches(layers: Sequence[np.ndarray], device: torch.device) -> list[MicroBatchIds]:
    per_layer = [torch.from_numpy(layer.astype(np.int64)).to(device) for layer in layers]
    return [tuple(ids) for ids in zip(*(layer.unbind(0) for layer in per_layer), strict=True)]
