"""One file that carries part of a store to another machine: `manifest.json`, then the files it names, in a tar.gz.

The same files give the same bytes. Reading trusts nothing: names, kinds of members, order, sizes and digests are those of
the manifest, whose names stay inside the folders of a store, and no more is unfolded than it says.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import re
import secrets
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from lanewise.errors import ReceiptError, StoreError, one_line
from lanewise.receipts import files
from lanewise.receipts.document import parse_record
from lanewise.receipts.manifest import ArchivedFile, ArchiveManifest
from lanewise.receipts.schema import Producer

MANIFEST = "manifest.json"
MAX_FILES = 200_000
MAX_FILE_BYTES = 2**28
MAX_TOTAL_BYTES = 2**33
MAX_MANIFEST_BYTES = 2**26
FOLDERS = ("receipts", "decisions", "campaigns", "calibrations")
"""Folders of a store that an archive may write into."""
ROOT_FILES = ("ledger.toml",)
"""Files of a store's root that an archive may hold."""

_PART = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+:=-]{0,199}")
_MAX_PARTS = 5
_CHUNK_BYTES = 2**20
_TAR_OVERHEAD_BYTES = 4_096
"""Header, padding and extended header of one member, at most."""


def write_archive(
    target: Path, root: Path, names: Sequence[str], *, campaigns: Sequence[str], producer: Producer
) -> ArchiveManifest:
    """Write files of a store into an archive, whole or not at all.

    Args:
        target: the archive; an earlier one is replaced.
        root: the store.
        names: files, relative to the root.
        campaigns: what the manifest says can be resumed.
        producer: who packs.

    Raises:
        StoreError: a file changed or vanished meanwhile, or the disk refuses the archive.
        ReceiptError: there is more than an archive may hold.
    """
    try:
        manifest = ArchiveManifest(
            producer=producer,
            campaigns=tuple(sorted(campaigns)),
            files=tuple(_described(root, name) for name in sorted(set(names))),
        )
        _check_manifest(manifest, str(target))
        temporary = target.with_name(f".{target.name}.{secrets.token_hex(8)}.tmp")
        try:
            with temporary.open("xb") as file:
                _write_members(file, root, manifest)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)
        files.sync_folder(target.parent)
    except OSError as error:
        raise StoreError(
            f"{target}: cannot be written ({error.strerror or error}: {error.filename or target}); free some space or "
            "give another name, then repeat the command"
        ) from error
    return manifest


def read_archive(archive: Path, into: Path) -> ArchiveManifest:
    """Unfold an archive into an empty folder, every file checked and on the disk.

    Args:
        archive: the file.
        into: an existing empty folder.

    Raises:
        ReceiptError: it is truncated, altered, of a newer major version, or no archive; what was unfolded so far stays
            in `into` for the caller to remove.
        StoreError: the disk refuses a file, or the archive cannot be read.
    """
    with _explained(archive), archive.open("rb") as packed, gzip.GzipFile(fileobj=packed) as stream:
        bounded = _Bounded(stream, MAX_MANIFEST_BYTES + _TAR_OVERHEAD_BYTES)
        with tarfile.open(fileobj=bounded, mode="r|") as tar:
            first = tar.next()
            if first is None or first.name != MANIFEST:
                raise ReceiptError(
                    f"{archive}: does not begin with {MANIFEST}; it is no archive of lanewise"
                )
            manifest = _read_manifest(tar, first, archive)
            bounded.limit(
                sum(file.size_bytes + 2 * _TAR_OVERHEAD_BYTES for file in manifest.files)
                + 2 * tarfile.RECORDSIZE
            )
            for expected in manifest.files:
                _unfold(tar, expected, into, archive)
            if tar.next() is not None:
                raise ReceiptError(f"{archive}: holds more than its manifest names; it was altered")
    return manifest


def _described(root: Path, name: str) -> ArchivedFile:
    path = root / name
    digest, size_bytes = hashlib.sha256(), 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
            size_bytes += len(chunk)
    return ArchivedFile(name=name, size_bytes=size_bytes, sha256=f"sha256:{digest.hexdigest()}")


def _write_members(file: IO[bytes], root: Path, manifest: ArchiveManifest) -> None:
    with (
        gzip.GzipFile(filename="", mode="wb", fileobj=file, mtime=0, compresslevel=6) as packed,
        tarfile.open(fileobj=packed, mode="w|", format=tarfile.PAX_FORMAT) as tar,
    ):
        content = manifest.model_dump_json(indent=1).encode() + b"\n"
        tar.addfile(_member(MANIFEST, len(content)), io.BytesIO(content))
        for described in manifest.files:
            if _described(root, described.name) != described:
                raise StoreError(
                    f"{root / described.name}: changed while it was packed; repeat the command"
                )
            with (root / described.name).open("rb") as source:
                tar.addfile(_member(described.name, described.size_bytes), source)


def _member(name: str, size_bytes: int) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.size, member.mode, member.mtime = size_bytes, 0o644, 0
    return member


def _read_manifest(tar: tarfile.TarFile, member: tarfile.TarInfo, archive: Path) -> ArchiveManifest:
    where = f"{archive}:{MANIFEST}"
    if member.type != tarfile.REGTYPE or member.size > MAX_MANIFEST_BYTES:
        raise ReceiptError(f"{where}: is no file of a reasonable size; the archive was altered")
    source = tar.extractfile(member)
    assert source is not None, "a regular member has content"
    manifest = parse_record(ArchiveManifest, source.read(), where)
    _check_manifest(manifest, where)
    return manifest


def _check_manifest(manifest: ArchiveManifest, where: str) -> None:
    names = [file.name for file in manifest.files]
    total = sum(file.size_bytes for file in manifest.files)
    largest = max((file.size_bytes for file in manifest.files), default=0)
    if len(names) > MAX_FILES or largest > MAX_FILE_BYTES or total > MAX_TOTAL_BYTES:
        raise ReceiptError(
            f"{where}: {len(names)} files of {total} bytes, the largest of {largest}; an archive holds at most {MAX_FILES} "
            f"files of {MAX_FILE_BYTES} bytes, {MAX_TOTAL_BYTES} in all: take fewer campaigns at a time"
        )
    if len(set(names)) < len(names):
        raise ReceiptError(f"{where}: names a file twice; the archive was altered")
    for name in names:
        if not _is_inside_a_store(name):
            raise ReceiptError(
                f"{where}: {one_line(repr(name))} is no file of a store; nothing was unpacked, and this archive should "
                "not be trusted"
            )


def _is_inside_a_store(name: str) -> bool:
    parts = name.split("/")
    if len(parts) == 1:
        return name in ROOT_FILES
    return (
        parts[0] in FOLDERS
        and len(parts) <= _MAX_PARTS
        and all(_PART.fullmatch(part) and part not in {".", ".."} for part in parts)
    )


def _unfold(tar: tarfile.TarFile, expected: ArchivedFile, into: Path, archive: Path) -> None:
    member = tar.next()
    if member is None or member.name != expected.name:
        raise ReceiptError(
            f"{archive}: {expected.name} is missing; the archive is truncated or was altered"
        )
    if member.type != tarfile.REGTYPE or member.size != expected.size_bytes:
        raise ReceiptError(
            f"{archive}: {expected.name} is not the file that its manifest names; it was altered"
        )
    source = tar.extractfile(member)
    assert source is not None, "a regular member has content"
    target = into / expected.name
    digest = hashlib.sha256()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("xb") as file:
            while chunk := source.read(_CHUNK_BYTES):
                digest.update(chunk)
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise StoreError(
            f"{into}: cannot be written ({error.strerror or error}); free some space or give another --store, then "
            "repeat the command; nothing stored was touched"
        ) from error
    if f"sha256:{digest.hexdigest()}" != expected.sha256:
        raise ReceiptError(f"{archive}: {expected.name} was altered; carry the archive over again")


class _Bounded(io.RawIOBase):
    """Reads a stream up to an allowance, so that a small archive cannot unfold into a full disk or memory."""

    def __init__(self, stream: IO[bytes] | gzip.GzipFile, allowance_bytes: int) -> None:
        super().__init__()
        self._stream = stream
        self._left = allowance_bytes

    def limit(self, num_bytes: int) -> None:
        """Let so many bytes more pass."""
        self._left = num_bytes

    def readable(self) -> bool:
        """It is for reading."""
        return True

    def read(self, size: int = -1) -> bytes:
        """The next bytes.

        Raises:
            tarfile.ReadError: the allowance is used up.
        """
        content = self._stream.read(size if 0 <= size <= _CHUNK_BYTES else _CHUNK_BYTES)
        self._left -= len(content)
        if self._left < 0:
            raise tarfile.ReadError("holds more than it says")
        return content


@contextmanager
def _explained(archive: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise ReceiptError(f"no archive {archive}; check the path") from error
    except (tarfile.TarError, gzip.BadGzipFile, EOFError, zlib.error, ValueError) as error:
        reason = one_line(str(error)) or type(error).__name__
        raise ReceiptError(
            f"{archive}: truncated, altered or no archive of lanewise ({reason}); carry it over again"
        ) from error
    except OSError as error:
        raise StoreError(f"{archive}: cannot be read ({error.strerror or error})") from error
