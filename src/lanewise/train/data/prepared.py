"""A tokenised corpus as a folder: `tokens.npy`, `offsets.npy`, `tokenizer.json` (unless bytes) and `manifest.json`.

The folder appears whole or not at all. Reading maps the tokens instead of loading them, checks every file against the
manifest (about a second per GB), and keeps the digest of the original data, so that prepared and raw data compare.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
from pathlib import Path
from typing import Final, Literal

import numpy as np
from pydantic import ValidationError

from lanewise.errors import DataError
from lanewise.receipts.schema import DataRecord, Digest, NonNegativeInt, Record
from lanewise.train.data.corpus import Corpus
from lanewise.train.data.tokens import BYTES, JsonTokenizer, Tokenizer, load_tokenizer

MANIFEST: Final = "manifest.json"
_TOKENS, _OFFSETS, _TOKENIZER = "tokens.npy", "offsets.npy", "tokenizer.json"


class PreparedFile(Record):
    """One file of the folder, by content."""

    size_bytes: NonNegativeInt
    sha256: Digest


class Manifest(Record):
    """What a prepared folder holds."""

    format: Literal["lanewise-corpus"] = "lanewise-corpus"
    version: Literal[1] = 1
    data: DataRecord
    tokenizer_digest: str
    vocab_size: NonNegativeInt
    separator_id: NonNegativeInt
    files: dict[str, PreparedFile]


def is_prepared(path: Path) -> bool:
    """Whether `path` is a folder that says it is a prepared corpus."""
    manifest = path / MANIFEST
    return manifest.is_file() and b'"lanewise-corpus"' in manifest.read_bytes()


def check_target(out: Path, *, force: bool) -> None:
    """Refuse to write over anything but a prepared corpus, and over that only by force.

    Raises:
        DataError: `out` exists and `force` is False, or `out` is something else than a prepared corpus.
    """
    if out.exists() and not is_prepared(out):
        raise DataError(
            f"{str(out)!r} exists and is no prepared corpus; it will not be replaced, give another OUT"
        )
    if out.exists() and not force:
        raise DataError(
            f"{str(out)!r} is a prepared corpus already; give --force to replace it, or another OUT"
        )


def write_prepared(corpus: Corpus, out: Path, *, force: bool) -> Manifest:
    """Write `corpus` to the folder `out`, whole or not at all.

    Raises:
        DataError: `check_target` refuses `out`.
    """
    check_target(out, force=force)
    out.parent.mkdir(parents=True, exist_ok=True)
    draft = out.with_name(f".{out.name}.{secrets.token_hex(8)}.tmp")
    try:
        draft.mkdir()
        manifest = _write_files(corpus, draft)
        _swap(draft, out)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return manifest


def read_prepared(folder: Path, *, tokenizer_name: str) -> Corpus:
    """Open a folder that `write_prepared` wrote; tokens are mapped, not loaded.

    Args:
        folder: the prepared corpus.
        tokenizer_name: what the lane asks for; it must be the tokenizer the folder was prepared with.

    Raises:
        DataError: the manifest or a file is damaged, or the tokenizer is another one.
    """
    try:
        manifest = Manifest.model_validate_json((folder / MANIFEST).read_bytes())
    except ValidationError as error:
        fault = error.errors()[0]
        place = ".".join(str(part) for part in fault["loc"]) or "the file"
        raise DataError(
            f"{folder.name}/{MANIFEST}: {place}: {fault['msg']}; prepare the data again"
        ) from None
    _check_tokenizer(manifest, tokenizer_name, folder.name)
    for name, expected in manifest.files.items():
        _check_file(folder / name, expected, f"{folder.name}/{name}")
    own: Tokenizer = (
        JsonTokenizer(folder / _TOKENIZER)
        if manifest.data.tokenizer != BYTES
        else load_tokenizer(BYTES)
    )
    own.name = manifest.data.tokenizer
    return Corpus(
        record=manifest.data,
        tokens=np.load(folder / _TOKENS, mmap_mode="r", allow_pickle=False),
        offsets=np.load(folder / _OFFSETS, allow_pickle=False),
        tokenizer=own,
    )


def _write_files(corpus: Corpus, folder: Path) -> Manifest:
    np.save(folder / _TOKENS, corpus.tokens, allow_pickle=False)
    np.save(folder / _OFFSETS, corpus.offsets, allow_pickle=False)
    if isinstance(corpus.tokenizer, JsonTokenizer):
        (folder / _TOKENIZER).write_bytes(corpus.tokenizer.content)
    manifest = Manifest(
        data=corpus.record,
        tokenizer_digest=corpus.tokenizer.digest,
        vocab_size=corpus.vocab_size,
        separator_id=corpus.separator_id,
        files={
            file.name: PreparedFile(size_bytes=file.stat().st_size, sha256=_sha256(file))
            for file in sorted(folder.iterdir())
        },
    )
    (folder / MANIFEST).write_text(manifest.model_dump_json(indent=2) + "\n", encoding="utf-8")
    for file in folder.iterdir():
        _flush_to_disk(file)
    return manifest


def _swap(draft: Path, out: Path) -> None:
    if not out.exists():
        draft.rename(out)
        return
    old = out.with_name(f".{out.name}.{secrets.token_hex(8)}.old")
    out.rename(old)
    draft.rename(out)
    shutil.rmtree(old)


def _check_tokenizer(manifest: Manifest, asked: str, folder: str) -> None:
    if load_tokenizer(asked).digest == manifest.tokenizer_digest:
        return
    remedy = (
        f"prepare it again with {asked!r}"
        if manifest.data.tokenizer == BYTES
        else f"set data.tokenizer to {folder}/{_TOKENIZER}, or prepare it again with {asked!r}"
    )
    raise DataError(
        f"{folder} was prepared with tokenizer {manifest.data.tokenizer!r} and the lane asks for {asked!r}; {remedy}"
    )


def _check_file(path: Path, expected: PreparedFile, name: str) -> None:
    if not path.is_file():
        raise DataError(f"{name} is missing; prepare the data again")
    if path.stat().st_size != expected.size_bytes or _sha256(path) != expected.sha256:
        raise DataError(f"{name} is not what the manifest says; prepare the data again")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()


def _flush_to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
