"""Where documents come from: the Python standard library, text, JSONL or Parquet.

Every reader yields non-empty documents as UTF-8 bytes in a fixed order and notes each file it read, so that the same
bytes give the same corpus and the same digest wherever they lie. Names are relative to what the user named: no machine
path enters a receipt.
"""

from __future__ import annotations

import hashlib
import json
import os
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from lanewise.errors import DataError

STDLIB: Final = "stdlib"

STDLIB_SKIPPED_FOLDERS: Final = frozenset(
    {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}
)
STDLIB_SKIPPED_PREFIXES: Final = ("config-", "_sysconfigdata")
"""Written when Python was built, so they differ between machines that have the same Python."""

JSONL_SUFFIXES: Final = frozenset({".jsonl", ".ndjson"})
PARQUET_SUFFIXES: Final = frozenset({".parquet"})


@dataclass(frozen=True, slots=True)
class FileEntry:
    """One file that was read: its name relative to the source, its size and its content."""

    name: str
    size_bytes: int
    sha256: str


@dataclass(slots=True)
class Documents:
    """An iterable of documents; `files` is complete once it has been iterated to the end.

    Attributes:
        label: how receipts name the source: `stdlib`, or the last part of a path.
        root: folder that file names are relative to.
        paths: every file, in order.
        text_field: JSONL field or Parquet column that holds the text.
        skip_undecodable: leave out files that are not UTF-8 text instead of refusing them.
        files: what was read.
    """

    label: str
    root: Path
    paths: tuple[Path, ...]
    text_field: str
    skip_undecodable: bool = False
    files: list[FileEntry] = field(default_factory=list)

    def __iter__(self) -> Iterator[bytes]:
        """Yield every non-empty document as UTF-8 bytes.

        Raises:
            DataError: a file is binary, damaged, or lacks the text field; the message names place and remedy.
        """
        self.files.clear()
        for path in self.paths:
            content = path.read_bytes()
            name = path.relative_to(self.root).as_posix()
            if path.suffix in JSONL_SUFFIXES:
                texts = _jsonl(content, name, self.text_field)
            elif path.suffix in PARQUET_SUFFIXES:
                texts = _parquet(content, name, self.text_field)
            else:
                fault = _not_text(content)
                if fault and self.skip_undecodable:
                    continue
                if fault:
                    raise DataError(
                        f"{name}: {fault}; give UTF-8 text, .jsonl or .parquet files to --data"
                    )
                texts = iter((content,))
            self.files.append(FileEntry(name, len(content), hashlib.sha256(content).hexdigest()))
            yield from (text for text in texts if text)


def find_documents(source: str, *, text_field: str) -> Documents:
    """The documents of `source`: `stdlib`, a file, or a folder read recursively (hidden files are left out).

    Raises:
        DataError: the path does not exist, cannot be read, or holds no files.
    """
    if source == STDLIB:
        return standard_library(Path(sysconfig.get_path("stdlib")))
    path = Path(source).expanduser()
    if not path.exists():
        raise DataError(
            f"no data at {source!r}; give a text, .jsonl or .parquet file, a folder of them, "
            f"or leave --data out to train on the Python standard library's sources"
        )
    if path.is_dir():
        paths = tuple(
            file
            for file in _files_below(path)
            if not any(part.startswith(".") for part in file.relative_to(path).parts)
        )
        if not paths:
            raise DataError(f"folder {source!r} holds no files; give one that holds text")
        return Documents(path.resolve().name, path, paths, text_field)
    return Documents(path.name, path.parent, (path,), text_field)


def standard_library(root: Path) -> Documents:
    """The .py sources below `root` without packages, tests, build leftovers and files that are not UTF-8."""
    paths = tuple(
        file
        for file in _files_below(root, skipped_folders=STDLIB_SKIPPED_FOLDERS)
        if file.suffix == ".py"
        and not any(
            part.startswith(STDLIB_SKIPPED_PREFIXES) for part in file.relative_to(root).parts
        )
    )
    if not paths:
        raise DataError(
            "this Python carries no standard library sources; give text, .jsonl or .parquet with --data"
        )
    return Documents(STDLIB, root, paths, "text", skip_undecodable=True)


def _files_below(root: Path, skipped_folders: frozenset[str] = frozenset()) -> list[Path]:
    found: list[Path] = []
    for folder, folders, files in os.walk(root):
        folders[:] = [name for name in folders if name not in skipped_folders]
        found.extend(Path(folder, name) for name in files if Path(folder, name).is_file())
    return sorted(found, key=lambda file: file.relative_to(root).as_posix())


def _not_text(content: bytes) -> str | None:
    """Why `content` is not UTF-8 text, or None."""
    nul = content.find(b"\0")
    if nul >= 0:
        return f"binary, NUL byte at offset {nul}"
    try:
        content.decode("utf-8")
    except UnicodeDecodeError as error:
        return f"not UTF-8, byte 0x{content[error.start]:02x} at offset {error.start}"
    return None


def _jsonl(content: bytes, name: str, text_field: str) -> Iterator[bytes]:
    for number, line in enumerate(content.splitlines(), start=1):
        if not line.strip():
            continue
        where = f"{name}:{number}"
        try:
            entry: Any = json.loads(line)
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise DataError(f"{where}: not JSON ({error}); every line must be an object") from None
        if not isinstance(entry, dict):
            raise DataError(f"{where}: a JSON {type(entry).__name__}; every line must be an object")
        yield _text_of(entry, text_field, where)


def _text_of(entry: dict[str, Any], text_field: str, where: str) -> bytes:
    if text_field not in entry:
        raise DataError(
            f"{where}: no field {text_field!r}; it has {', '.join(sorted(entry)) or 'none'}; "
            "set data.text_field (`lanewise data`: --text-field) to the one that holds text"
        )
    text = entry[text_field]
    if not isinstance(text, str):
        raise DataError(f"{where}: field {text_field!r} is a {type(text).__name__}, not a string")
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(
            f"{where}: field {text_field!r} has a lone surrogate at {error.start}; "
            "repair the escape sequence"
        ) from None


def _parquet(content: bytes, name: str, text_field: str) -> Iterator[bytes]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise DataError(
            f"{name}: reading Parquet needs pyarrow; install it with `pip install 'lanewise[parquet]'`"
        ) from None
    try:
        table = pq.ParquetFile(pa.BufferReader(content))
    except (OSError, ValueError) as error:  # Arrow's own errors derive from these
        raise DataError(f"{name}: not a Parquet file ({error})") from None
    columns = table.schema_arrow.names
    if text_field not in columns:
        raise DataError(
            f"{name}: no column {text_field!r}; it has {', '.join(columns)}; "
            "set data.text_field (`lanewise data`: --text-field) to the one that holds text"
        )
    kind = table.schema_arrow.field(text_field).type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        raise DataError(f"{name}: column {text_field!r} is {kind}, not a string column")
    try:
        for batch in table.iter_batches(columns=[text_field]):
            for text in batch.column(0).to_pylist():
                yield (text or "").encode("utf-8")
    except (OSError, ValueError) as error:
        raise DataError(f"{name}: damaged Parquet file ({error}); copy it again") from None
