"""The model of a checkpoint, ready to use without the run that trained it.

Beside its tensors a checkpoint holds `lane.json` (the lane, the switches its model was built with, the tokenizer's name)
and, unless tokens are bytes, `tokenizer.json`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import torch
from pydantic import ValidationError

from lanewise.errors import DataError, UsageError
from lanewise.lane.digest import lane_digest
from lanewise.lane.resolved import ResolvedLane
from lanewise.lane.schema import Lane
from lanewise.lane.spec import Spec
from lanewise.models.model import HybridModel
from lanewise.models.problems import lane_problems
from lanewise.ops.dispatch import capabilities
from lanewise.ops.opset import OpSet
from lanewise.train import checkpoint
from lanewise.train.checksums import notes
from lanewise.train.data.token_facts import token_facts
from lanewise.train.data.tokens import BYTES, JsonTokenizer, Tokenizer, load_tokenizer

LANE_FILE: Final = "lane.json"
TOKENIZER_FILE: Final = "tokenizer.json"


class SavedLane(Spec):
    """Content of `lane.json`.

    Attributes:
        format: says what the file is.
        version: of the format.
        lane: what was trained.
        model_switches: features the model was assembled with.
        tokenizer: `bytes`, or the name of the file whose copy is `tokenizer.json`.
    """

    format: Literal["lanewise-lane"] = "lanewise-lane"
    version: Literal[1] = 1
    lane: Lane
    model_switches: dict[str, bool]
    tokenizer: str


@dataclass(frozen=True, kw_only=True, slots=True)
class SavedModel:
    """A trained model.

    Attributes:
        model: with its weights, in evaluation mode.
        tokenizer: what its tokens mean.
        lane: what was trained.
        step: optimizer steps taken.
        path: folder of the checkpoint.
        messages: what a person should know, e.g. a half-written checkpoint that was passed over.
    """

    model: HybridModel
    tokenizer: Tokenizer
    lane: Lane
    step: int
    path: Path
    messages: tuple[str, ...]


class Origin(Spec):
    """Where the weights of a run's first step come from.

    Attributes:
        lane_digest: of the lane that trained them.
        step: optimizer steps it had taken.
    """

    lane_digest: str
    step: int


def files(resolved: ResolvedLane, tokenizer: Tokenizer) -> dict[str, bytes]:
    """What a checkpoint keeps so that `load` can do without the run: name → content."""
    saved = SavedLane(
        lane=resolved.lane, model_switches=resolved.model_switches, tokenizer=tokenizer.name
    )
    kept = {LANE_FILE: saved.model_dump_json(indent=1).encode()}
    if isinstance(tokenizer, JsonTokenizer):
        kept[TOKENIZER_FILE] = tokenizer.content
    return kept


def load(folder: Path, *, device: torch.device) -> SavedModel:
    """Build the model of a checkpoint.

    Args:
        folder: a checkpoint, or a directory of checkpoints, whose newest is taken.
        device: where the model goes.

    Raises:
        UsageError: there is no checkpoint, it cannot be read, or lane and weights do not belong together.
        DataError: its tokenizer is missing.
    """
    path, messages = _find(folder)
    saved = _read_lane(path)
    progress = checkpoint.read_progress(path)
    if progress.lane_digest != lane_digest(saved.lane):
        raise UsageError(
            f"checkpoint {path.name}: {LANE_FILE} holds lane '{saved.lane.name}' ({lane_digest(saved.lane)[:19]}…) and the "
            f"weights belong to another one ({progress.lane_digest[:19]}…); put back the file that training wrote, or "
            "give another checkpoint"
        )
    tokenizer = _read_tokenizer(path, saved.tokenizer)
    problems = lane_problems(saved.lane, device.type, saved.model_switches)
    facts = None
    if saved.model_switches.get("metadata_embeddings", False):
        facts = torch.from_numpy(token_facts(tokenizer, saved.lane.model.vocab_size))
    model = HybridModel(
        saved.lane,
        model_switches=saved.model_switches,
        ops=OpSet.resolve({}, problems, capabilities(device.type)),
        token_facts=facts,
    )
    checkpoint.load_weights(path, model=model)
    return SavedModel(
        model=model.to(device).eval(),
        tokenizer=tokenizer,
        lane=saved.lane,
        step=progress.next_step,
        path=path,
        messages=messages,
    )


def start_from(folder: Path, model: HybridModel) -> tuple[Origin, tuple[str, ...]]:
    """Give a model the weights and buffers of a checkpoint, in place; the lanes may differ, the parameters may not.

    This is how a dense warm-up of indexers goes on as sparse training.

    Args:
        folder: a checkpoint, or a directory of checkpoints, whose newest is taken.
        model: built for its own lane.

    Returns:
        Where the weights come from, and what a person should know.

    Raises:
        UsageError: there is no checkpoint, it cannot be read, or its parameters are not the model's.
    """
    path, messages = _find(folder)
    progress = checkpoint.load_weights(path, model=model)
    origin = Origin(lane_digest=progress.lane_digest, step=progress.next_step)
    return origin, (*messages, f"weights of {path.name} ({progress.lane_digest[:19]}…)")


def check_switches(path: Path, resolved: ResolvedLane) -> None:
    """Refuse to go on from a checkpoint of the same lane whose model was assembled with other features.

    Without it, a model that lost its streams or its MTP would find all weights it has and train on. A checkpoint without
    `lane.json` is of an earlier version and is let through, and one of another lane is `checkpoint.load`'s to refuse.

    Raises:
        UsageError: the features differ, or `lane.json` cannot be read.
    """
    if not (path / LANE_FILE).exists():
        return
    saved = _read_lane(path)
    if lane_digest(saved.lane) != resolved.digest:
        return
    before, now = saved.model_switches, resolved.model_switches
    changed = sorted(
        key for key in before.keys() | now.keys() if before.get(key, False) != now.get(key, False)
    )
    if changed:
        described = ", ".join(f"{key} {'on' if before.get(key) else 'off'}" for key in changed)
        raise UsageError(
            f"checkpoint {path.name} was trained with {described} and this run has the opposite; resume with the same "
            "features, or give another --checkpoint-dir"
        )


def _find(folder: Path) -> tuple[Path, tuple[str, ...]]:
    # A checkpoint is known by its name, which `.` and a link do not show.
    if checkpoint.is_whole(folder.resolve()):
        return folder.resolve(), notes(folder.resolve())
    found = checkpoint.newest(folder)
    if found.path is None:
        why = "; ".join(found.messages)
        raise UsageError(
            f"no checkpoint in {str(folder)!r}{f' ({why})' if why else ''}; train one with "
            f"`lanewise train LANE --checkpoint-dir {folder}`, or give its folder"
        )
    return found.path, found.messages


def _read_lane(path: Path) -> SavedLane:
    try:
        content = (path / LANE_FILE).read_bytes()
    except FileNotFoundError:
        raise UsageError(
            f"checkpoint {path.name} does not say which lane it is of ({LANE_FILE} is missing: an earlier version wrote "
            "it); train one more step with `lanewise train LANE --resume` and use the checkpoint that this writes"
        ) from None
    except OSError as error:
        raise UsageError(
            f"checkpoint {path.name}: {LANE_FILE} cannot be read ({error.strerror}); put back the file that training wrote"
        ) from None
    try:
        return SavedLane.model_validate_json(content)
    except ValidationError as error:
        fault = error.errors()[0]
        place = ".".join(str(part) for part in fault["loc"]) or "the file"
        raise UsageError(
            f"checkpoint {path.name}: {LANE_FILE}: {place}: {fault['msg']}; use the version that wrote it"
        ) from None


def _read_tokenizer(path: Path, name: str) -> Tokenizer:
    if name == BYTES:
        return load_tokenizer(BYTES)
    file = path / TOKENIZER_FILE
    if not file.is_file():
        raise DataError(
            f"checkpoint {path.name}: {TOKENIZER_FILE} is missing, the copy of the tokenizer {name!r} it was trained with; "
            "put it back, or give another checkpoint"
        )
    tokenizer = JsonTokenizer(file)
    tokenizer.name = name
    return tokenizer
