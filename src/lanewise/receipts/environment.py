"""The machine, its software, and every environment variable the program reads (the only module that reads them)."""

from __future__ import annotations

import os

READ_VARIABLES: tuple[str, ...] = ("LANEWISE_STORE", "LANEWISE_DEBUG", "CXX")
"""Variables that change what lanewise does."""


def variable(name: str) -> str | None:
    """The value of an allow-listed environment variable, or None when unset or empty."""
    if name not in READ_VARIABLES:
        raise ValueError(
            f"{name!r} is not in READ_VARIABLES; add it there so that receipts record it"
        )
    return os.environ.get(name) or None
