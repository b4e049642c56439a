"""Present versions of what backends are built of, and what changed since evidence was taken. Torch-free."""

from __future__ import annotations

import hashlib
import importlib.metadata
from pathlib import Path

from lanewise.receipts.environment import PACKAGE_FOLDER

SOURCE_SUFFIXES = (".py", ".cu", ".cuh", ".cpp", ".h")


def present_version(name: str, folder: Path = PACKAGE_FOLDER) -> str | None:
    """Version of a distribution, or digest of a source file of this package; None where there is none.

    Args:
        name: `torch`, or a path below the package such as `kernels/moe_experts_torch.py`.
        folder: the package.
    """
    if name.endswith(SOURCE_SUFFIXES):
        try:
            content = (folder / name).read_bytes()
        except OSError:
            return None
        return f"sha256:{hashlib.sha256(content).hexdigest()[:16]}"
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
