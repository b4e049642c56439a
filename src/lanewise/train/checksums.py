"""Digests of a checkpoint's files: torch loads a tensor with a flipped bit as if nothing had happened."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from lanewise.errors import UsageError

CHECKSUMS_FILE = "checksums.json"
FORMAT = 1


def write_checksums(folder: Path) -> None:
    """Write the SHA-256 of every file of a folder beside them.

    Raises:
        OSError: the disk refuses it.
    """
    digests = {
        path.name: _sha256(path) for path in sorted(folder.iterdir()) if path.name != CHECKSUMS_FILE
    }
    text = json.dumps({"format": FORMAT, "sha256": digests}, indent=1)
    (folder / CHECKSUMS_FILE).write_text(text, encoding="utf-8")


def require_unaltered(folder: Path) -> None:
    """Compare the files of a checkpoint with their digests; one of an earlier version, which has none, passes.

    Raises:
        UsageError: a file is missing or altered.
    """
    path = folder / CHECKSUMS_FILE
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if document["format"] != FORMAT:
            raise UsageError(
                f"checkpoint {folder.name} has checksums of format {document['format']}, this version reads {FORMAT}; use "
                "the version that wrote it"
            )
        altered = [
            name
            for name, digest in dict(document["sha256"]).items()
            if not (folder / name).is_file() or _sha256(folder / name) != digest
        ]
    except FileNotFoundError:
        return
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UsageError(
            f"checkpoint {folder.name} cannot be read: {CHECKSUMS_FILE} is damaged ({type(error).__name__}); remove the "
            "checkpoint to resume from the one before"
        ) from error
    if altered:
        raise UsageError(
            f"checkpoint {folder.name} cannot be read: {', '.join(altered[:3])} was altered since it was written; remove "
            "the checkpoint to resume from the one before, or restore it from a copy"
        )


def notes(folder: Path) -> tuple[str, ...]:
    """What a person should know before a checkpoint is loaded."""
    if (folder / CHECKSUMS_FILE).exists():
        return ()
    return (f"{folder.name} has no checksums, so damaged weights would not be noticed",)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
