"""Private caches of torch's compilers: a run finds what its campaign put there, and nothing else.

Inductor and Triton read their folders from the environment at the first compilation. Both arms of a block have the
variables, compiled or not, because receipts record them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from lanewise.lane.digest import digest
from lanewise.receipts.environment import exported


@contextlib.contextmanager
def private_cache(folder: str | None) -> Iterator[str | None]:
    """Point the compilers at a folder until the block ends; yields the digest of what is in it now.

    Args:
        folder: made if it is not there; None leaves the caches where they are and yields None.
    """
    if folder is None:
        yield None
        return
    root = Path(folder)
    root.mkdir(parents=True, exist_ok=True)
    found = cache_digest(root)
    variables = {
        "TORCHINDUCTOR_CACHE_DIR": str(root / "inductor"),
        "TRITON_CACHE_DIR": str(root / "triton"),
    }
    with exported(variables):
        yield found


def cache_digest(folder: Path) -> str:
    """Digest of the names and sizes of all files below a folder.

    Names stand for content: both compilers name what they keep by a hash of what it was made from.
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return digest([[path.relative_to(folder).as_posix(), path.stat().st_size] for path in files])
