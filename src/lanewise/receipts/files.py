"""Bytes on disk or on any fsspec URI: written whole or not at all, listed with what tells a change.

A location is a path, or a URI such as `s3://bucket/folder/file.json`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from lanewise.errors import StoreError

_FULL_DISK = {errno.ENOSPC, errno.EDQUOT}


SETTLED_NS = 2_000_000_000
"""Age from which a folder's modification time is trusted; clocks of network file systems are coarse."""


ABANDONED_SECONDS = 86_400.0
"""Age from which a temporary file is taken for what a killed writer left."""

_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{16}\.tmp")
"""Names that `write_bytes` gives its temporary files."""


class FileStamp(NamedTuple):
    """A file in a listing; a tuple, because listings of ten thousand are compared as sets.

    Attributes:
        name: path relative to the root that was listed, with `/` between its parts.
        size_bytes: its length.
        stamp: changes when the file does: modification time in ns, or what the remote store offers.
    """

    name: str
    size_bytes: int
    stamp: str

    @property
    def stem(self) -> str:
        """The last part of the name without `.json`."""
        return self.name.rsplit("/", 1)[-1].removesuffix(".json")


def is_remote(location: str) -> bool:
    """Whether a location is a URI rather than a path."""
    return "://" in location and not location.startswith("file://")


def normal_root(root: str | os.PathLike[str]) -> str:
    """A root as it is joined to names: no trailing slash, no `file://`."""
    text = os.fspath(root).removeprefix("file://")
    return text.rstrip("/") or text


def read_bytes(location: str) -> bytes:
    """The content of a file.

    Raises:
        FileNotFoundError: there is none.
        StoreError: it cannot be read.
    """
    with _explained("read", location):
        if is_remote(location):
            content: bytes = _filesystem(location).cat_file(location)
            return content
        return Path(location).read_bytes()


def write_bytes(location: str, content: bytes) -> None:
    """Write a file whole or not at all.

    A path gets a temporary file of a unique name in the same folder, fsync, rename, fsync of the folder; readers see
    the old file or the new one. A URI gets one put, which object stores make visible whole.

    Raises:
        StoreError: the disk is full or the folder cannot be written; nothing that existed was touched.
    """
    with _explained("write", location):
        if is_remote(location):
            filesystem = _filesystem(location)
            filesystem.makedirs(location.rsplit("/", 1)[0], exist_ok=True)
            filesystem.pipe_file(location, content)
        else:
            _replace(Path(location), content)


def remove(location: str) -> None:
    """Delete a file; one that is gone already is fine."""
    with _explained("delete", location), contextlib.suppress(FileNotFoundError):
        if is_remote(location):
            _filesystem(location).rm_file(location)
        else:
            Path(location).unlink()


def exists(location: str) -> bool:
    """Whether there is a file."""
    with _explained("read", location):
        if is_remote(location):
            return bool(_filesystem(location).exists(location))
        return Path(location).is_file()


def list_json(root: str, folder: str, *, but_not: str | None = None) -> list[FileStamp]:
    """Every `*.json` below a folder of a root, in no order; a missing folder is empty.

    Names with a leading dot are temporary files of writers and left out.

    Args:
        root: what the names are relative to.
        folder: path below the root.
        but_not: leave out names with this ending, such as `.steps.json`, before looking at them.
    """
    with _explained("list", f"{root}/{folder}"):
        list_found = _list_remote if is_remote(root) else _list_local
        return list(list_found(root, folder, but_not or "/"))


class FoldersFound:
    """Folders met by a listing that leaves out the files of folders that have not changed since an earlier one.

    Files of a store are made and replaced by renaming, which changes the modification time of their folder; so a folder
    of an old enough, unchanged time holds what it held.

    Args:
        recorded: folder → modification time in ns of the earlier listing.
        now_ns: time of this listing.

    Attributes:
        times_ns: folder → modification time, of every folder met.
    """

    def __init__(self, recorded: Mapping[str, int], now_ns: int) -> None:
        self.times_ns: dict[str, int] = {}
        self._recorded = recorded
        self._now_ns = now_ns

    def note(self, folder: str, modified_ns: int) -> bool:
        """Note a folder; returns whether its files are those of the earlier listing."""
        self.times_ns[folder] = modified_ns
        return self._recorded.get(folder) == modified_ns

    @property
    def settled(self) -> dict[str, int]:
        """Folders to record: a file made in the same clock tick as the listing would not show in a younger time."""
        return {
            folder: modified_ns
            for folder, modified_ns in self.times_ns.items()
            if self._now_ns - modified_ns > SETTLED_NS
        }


def list_changed_json(
    root: str, folder: str, found: FoldersFound, *, but_not: str | None = None
) -> list[FileStamp]:
    """As `list_json`, without the files of folders that `found` knows to be unchanged; for paths, not URIs."""
    with _explained("list", f"{root}/{folder}"):
        return list(_list_local(root, folder, but_not or "/", found))


def make_folder(folder: Path) -> None:
    """Make a folder and its parents, each on the disk before anything is put into it.

    Raises:
        OSError: it cannot be made.
    """
    if folder.is_dir():
        return
    make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    sync_folder(folder.parent)


def remove_abandoned(root: str, *, now_seconds: float) -> int:
    """Delete temporary files that killed writers left below a root; returns how many are gone.

    A writer needs its file for moments, so one that nobody has written to for `ABANDONED_SECONDS` has no writer; one from the
    future of this clock is left alone. Hidden folders are not looked into, and what cannot be deleted stays. A URI has no
    temporary files.

    Args:
        root: folder or URI.
        now_seconds: wall-clock time, in seconds since 1970.
    """
    if is_remote(root):
        return 0
    removed = 0
    for folder, inner, names in os.walk(root):
        inner[:] = [name for name in inner if not name.startswith(".")]
        for path in (Path(folder, name) for name in names if _TEMPORARY.fullmatch(name)):
            with contextlib.suppress(OSError):
                if now_seconds - path.lstat().st_mtime > ABANDONED_SECONDS:
                    path.unlink()
                    removed += 1
    return removed


def _replace(path: Path, content: bytes) -> None:
    make_folder(path.parent)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on the disk.

    Raises:
        OSError: the disk refuses it.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _list_local(
    root: str, folder: str, but_not: str, folders_found: FoldersFound | None = None
) -> Iterator[FileStamp]:
    folders = [folder]
    while folders:
        inside = folders.pop()
        try:
            modified_ns = os.stat(f"{root}/{inside}").st_mtime_ns
            entries = os.scandir(f"{root}/{inside}")
        except FileNotFoundError:
            continue
        unchanged = folders_found is not None and folders_found.note(inside, modified_ns)
        with entries:
            for entry in entries:
                name = entry.name
                if name.endswith(".json"):
                    if unchanged or name.endswith(but_not) or name.startswith("."):
                        continue
                    try:
                        status = entry.stat()
                    except FileNotFoundError:  # it vanished after the listing
                        continue
                    yield FileStamp(f"{inside}/{name}", status.st_size, str(status.st_mtime_ns))
                elif entry.is_dir(follow_symlinks=False) and not name.startswith("."):
                    folders.append(f"{inside}/{name}")


def _list_remote(root: str, folder: str, but_not: str) -> Iterator[FileStamp]:
    filesystem = _filesystem(root)
    start = len(filesystem._strip_protocol(root)) + 1
    with contextlib.suppress(FileNotFoundError):
        for path, details in filesystem.find(f"{root}/{folder}", detail=True).items():
            last = path.rsplit("/", 1)[-1]
            if not last.endswith(".json") or last.endswith(but_not) or last.startswith("."):
                continue
            keys = ("ETag", "etag", "mtime", "LastModified", "created")
            stamp = next((str(details[key]) for key in keys if details.get(key) is not None), "")
            yield FileStamp(path[start:], int(details["size"]), stamp)


def _filesystem(location: str) -> Any:
    import fsspec

    try:
        return fsspec.url_to_fs(location)[0]
    except ImportError as error:
        raise StoreError(
            f"{location}: this kind of address needs one more package ({error}); install it, or give a folder"
        ) from error
    except ValueError as error:
        raise StoreError(
            f"{location}: no store address fsspec knows ({error}); give a folder"
        ) from error


@contextlib.contextmanager
def _explained(action: str, location: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        raise StoreError(f"cannot {action} {location}: {_advice(error)}") from error


def _advice(error: OSError) -> str:
    if error.errno in _FULL_DISK:
        return (
            "the disk is full: free some space or give another --store, then repeat the command; "
            "nothing stored was touched"
        )
    if isinstance(error, FileExistsError | NotADirectoryError):
        return "a file stands where a folder is needed; move it away, or give another --store"
    return f"{error.strerror or error}; check the permissions, or give another --store"
