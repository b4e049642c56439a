"""Checkpoints: everything a run needs to go on as if it had never stopped.

    <directory>/step-00000100/      model, optimizer and random state (torch.distributed.checkpoint)
                              lane.json          the lane and its tokenizer (`train.saved`)
                              progress.json      step, loader state, totals, lane digest
                              checksums.json     SHA-256 of all others; written last (`train.checksums`)
    <directory>/.writing-…          a checkpoint being written; one found later is a leftover and is ignored

A checkpoint is written under a temporary name, synced, then renamed, so one that has its name is whole. The last two
are kept.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import nn
from torch.distributed.checkpoint import state_dict_loader, state_dict_saver
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.state_dict import (
    get_model_state_dict,
    get_state_dict,
    set_model_state_dict,
    set_state_dict,
)

from lanewise.errors import StoreError, UsageError
from lanewise.train.checksums import notes, require_unaltered, write_checksums

FORMAT = 1
KEEP = 2
PROGRESS_FILE = "progress.json"
_NAME = re.compile(r"step-(\d{8,})")
_WRITING_PREFIX = ".writing-"


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """Where a run stands, beside its tensors.

    Attributes:
        next_step: optimizer steps taken, which is the number of the coming one.
        lane_digest: the lane that was trained; another lane must not continue from it.
        loader: state of the data loader, JSON-plain; it names the data it belongs to.
        totals: totals over all parts of the run, e.g. tokens seen and the first loss.
    """

    next_step: int
    lane_digest: str
    loader: Mapping[str, Any]
    totals: Mapping[str, float]


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """The newest whole checkpoint of a directory, if any, and what was passed over."""

    path: Path | None
    messages: tuple[str, ...]


def save(
    directory: Path,
    *,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    progress: Progress,
    files: Mapping[str, bytes] = MappingProxyType({}),
) -> Path:
    """Write a checkpoint and drop all but the last two.

    Args:
        directory: where checkpoints go.
        model: its parameters and buffers.
        optimizer: its state.
        progress: where the run stands.
        files: name → content of what is kept beside, e.g. the lane.

    Returns:
        Its folder.

    Raises:
        StoreError: it cannot be written (full disk, permissions); earlier checkpoints stay.
    """
    target = directory / f"step-{progress.next_step:08d}"
    writing = directory / f"{_WRITING_PREFIX}{target.name}-{os.getpid()}"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(writing, ignore_errors=True)
        writing.mkdir()
        _save_tensors(writing, model, optimizer)
        for name, content in files.items():
            (writing / name).write_bytes(content)
        (writing / PROGRESS_FILE).write_text(_progress_json(progress), encoding="utf-8")
        write_checksums(writing)
        for file in writing.iterdir():
            _sync(file)
        _sync(writing)
        if target.exists():
            shutil.rmtree(target)
        writing.rename(target)
        _sync(directory)
    except (OSError, CheckpointException) as error:
        shutil.rmtree(writing, ignore_errors=True)
        raise StoreError(
            f"checkpoint at step {progress.next_step} cannot be written: {_reason(error)}; "
            "earlier checkpoints are kept. Free space or give another --checkpoint-dir, then use --resume."
        ) from error
    for old in _whole(directory)[:-KEEP]:
        shutil.rmtree(old)
    return target


def is_whole(path: Path) -> bool:
    """Whether a folder is one finished checkpoint."""
    return _NAME.fullmatch(path.name) is not None and (path / PROGRESS_FILE).is_file()


def newest(directory: Path) -> Found:
    """Find the newest whole checkpoint; half-written ones are named in `messages`."""
    if not directory.is_dir():
        return Found(path=None, messages=())
    whole = _whole(directory)
    messages = [
        f"ignored {entry.name}: it was never finished"
        for entry in sorted(directory.iterdir())
        if entry.is_dir()
        and entry not in whole
        and (entry.name.startswith(_WRITING_PREFIX) or _NAME.fullmatch(entry.name))
    ]
    if not whole:
        return Found(path=None, messages=tuple(messages))
    return Found(path=whole[-1], messages=(*messages, *notes(whole[-1])))


def load(
    path: Path, *, model: nn.Module, optimizer: torch.optim.Optimizer, lane_digest: str
) -> Progress:
    """Restore model, optimizer and random state in place.

    Raises:
        UsageError: it belongs to another lane, cannot be read, or was altered.
    """
    progress = read_progress(path)
    if progress.lane_digest != lane_digest:
        raise UsageError(
            f"checkpoint {path.name} belongs to lane {progress.lane_digest[:19]}…, this run is "
            f"{lane_digest[:19]}…; resume with the same lane and --set, or give another --checkpoint-dir"
        )
    require_unaltered(path)
    model_state, optimizer_state = get_state_dict(model, optimizer)
    state: dict[str, Any] = {
        "model": model_state,
        "optimizer": optimizer_state,
        "random": {"cpu": torch.get_rng_state()},
    }
    try:
        with _single_process():
            state_dict_loader.load(state, checkpoint_id=str(path), no_dist=True)
    except (OSError, CheckpointException, ValueError) as error:
        raise UsageError(
            f"checkpoint {path.name} cannot be read: {_reason(error)}; remove it to resume from the one before"
        ) from error
    set_state_dict(
        model,
        optimizer,
        model_state_dict=state["model"],
        optim_state_dict=state["optimizer"],
    )
    torch.set_rng_state(state["random"]["cpu"])
    return progress


def load_weights(path: Path, *, model: nn.Module) -> Progress:
    """Restore the model alone, in place, e.g. to generate text.

    Raises:
        UsageError: it cannot be read, was altered, or the model has other weights.
    """
    progress = read_progress(path)
    require_unaltered(path)
    state = {"model": get_model_state_dict(model)}
    try:
        with _single_process():
            state_dict_loader.load(state, checkpoint_id=str(path), no_dist=True)
        written = FileSystemReader(path).read_metadata().state_dict_metadata
    except (OSError, CheckpointException, ValueError, RuntimeError) as error:
        raise UsageError(
            f"checkpoint {path.name} cannot be read: {_reason(error)}; give another one"
        ) from error
    left = sorted(name for name in written if name.startswith("model."))
    left = [name for name in left if name.removeprefix("model.") not in state["model"]]
    if left:
        raise UsageError(
            f"checkpoint {path.name} holds {len(left)} tensors that the model does not have, the first is "
            f"{left[0].removeprefix('model.')}; give another one"
        )
    set_model_state_dict(model, state["model"])
    return progress


def _save_tensors(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    model_state, optimizer_state = get_state_dict(model, optimizer)
    state = {
        "model": model_state,
        "optimizer": optimizer_state,
        "random": {"cpu": torch.get_rng_state()},
    }
    with _single_process():
        state_dict_saver.save(state, checkpoint_id=str(folder), no_dist=True)


@contextmanager
def _single_process() -> Iterator[None]:
    # torch warns that one process is assumed even when one process is exactly what was asked for.
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        # What it cannot read it raises; before that it logs, to the root logger, a traceback of every place it looked in.
        root = logging.getLogger()
        root.addFilter(_is_not_of_the_loader)
        try:
            yield
        finally:
            root.removeFilter(_is_not_of_the_loader)


def _is_not_of_the_loader(record: logging.LogRecord) -> bool:
    return record.module != "state_dict_loader"


def _progress_json(progress: Progress) -> str:
    return json.dumps(
        {
            "format": FORMAT,
            "next_step": progress.next_step,
            "lane_digest": progress.lane_digest,
            "loader": dict(progress.loader),
            "totals": dict(progress.totals),
        },
        indent=1,
    )


def read_progress(path: Path) -> Progress:
    """Where the run of a checkpoint stood.

    Raises:
        UsageError: it cannot be read.
    """
    try:
        document = json.loads((path / PROGRESS_FILE).read_text(encoding="utf-8"))
        if document["format"] != FORMAT:
            raise UsageError(
                f"checkpoint {path.name} has format {document['format']}, this version reads {FORMAT}; "
                "use the version that wrote it, or start again without --resume"
            )
        return Progress(
            next_step=int(document["next_step"]),
            lane_digest=str(document["lane_digest"]),
            loader=document["loader"],
            totals=document["totals"],
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"checkpoint {path.name} cannot be read: {_reason(error)}; remove it to resume from the one before"
        ) from error


def _whole(directory: Path) -> list[Path]:
    """Finished checkpoints, oldest first."""
    found = [
        (int(match.group(1)), entry)
        for entry in directory.iterdir()
        if (match := _NAME.fullmatch(entry.name)) and (entry / PROGRESS_FILE).is_file()
    ]
    return [entry for _, entry in sorted(found)]


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _reason(error: BaseException) -> str:
    """One line about an error; torch wraps the real one of its single rank."""
    if isinstance(error, CheckpointException) and error.failures:
        wrapped = next(iter(error.failures.values()))
        error = wrapped[0] if isinstance(wrapped, tuple) else wrapped
    return " ".join(str(error).split()) or type(error).__name__
