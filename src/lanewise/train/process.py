"""What a process sets about itself before it trains: its threads, its processors, and that it keeps the memory it frees.

A training step allocates and frees the same large tensors again and again, and glibc may return large blocks to the
system in between. Whether a feature then looks slower depends on the allocator and not on its arithmetic: with glibc's
default, `fused_residual` was 4 to 8 % slower on a CPU lane; with freed memory kept, as GPU frameworks keep theirs, there was
no effect to see (docs/LOG.md, 2026-11-23). Verdicts hold for processes that keep it, which every receipt states.
"""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Collection
from typing import Final

import torch

from lanewise.measure.host import SystemHost
from lanewise.receipts.environment import huge_pages_reason

# From <malloc.h>; ctypes has no headers to read them from.
_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3
_KEEP_BYTES: Final = 2**31 - 1
"""Free memory at the top of the heap that is kept: as much as mallopt's int holds."""
_MMAP_BYTES: Final = 2**30
"""Blocks up to this size come from the heap and can be kept."""
_MMAP_BYTES_OLD_GLIBC: Final = 2**25
"""The most that older versions of glibc accept."""

ALLOCATOR_KEY: Final = "io.lanewise.host_allocator"
"""Key in a receipt's `extensions` that says what `prepare_process` did."""

HUGE_PAGES_KEY: Final = "io.lanewise.huge_pages"
"""Key in a receipt's `extensions`: what malloc was told about huge pages, and what the kernel offers."""


def pin(cores: Collection[int]) -> None:
    """Keep this process, with every thread it has and will have, to these processors.

    Called when the lane is built and before its first step. Until then a campaign's child is on the lab's processors, which
    the fork server was started on: both arms are built at the same time, and compile workers that stay alive stay there.
    """
    SystemHost().restrict(cores)


def huge_pages() -> str:
    """What malloc was told about huge pages."""
    return huge_pages_reason()


def prepare_process(num_threads: int) -> str:
    """Fix this process's intra-op threads and let malloc keep freed memory; call once, before any tensor is made.

    Args:
        num_threads: intra-op threads.

    Returns:
        What the allocator was told, in words, for the receipt.
    """
    torch.set_num_threads(num_threads)
    return keep_freed_memory()


def keep_freed_memory() -> str:
    """Ask glibc to keep freed memory; on other C libraries nothing is changed and the answer says so."""
    library, _ = platform.libc_ver()
    if library != "glibc":
        return "the C library's default"
    libc = ctypes.CDLL(None)
    mmap_bytes = next(
        (
            size
            for size in (_MMAP_BYTES, _MMAP_BYTES_OLD_GLIBC)
            if libc.mallopt(_M_MMAP_THRESHOLD, size)
        ),
        None,
    )
    if mmap_bytes is None or not libc.mallopt(_M_TRIM_THRESHOLD, _KEEP_BYTES):
        return "glibc malloc refused to keep freed memory"
    return f"glibc malloc keeps freed blocks up to {mmap_bytes} bytes"
