"""Names of what a plan asks. Usually a feature; a campaign from both bases and a screen of many features need more.

fused_moe                  one feature, in a campaign of one design
fused_moe.add-one          the same on the bare lane, in a campaign of design `both`
fused_moe.leave-one-out    the same in the full stack
row-03                     row 3 of a screening design beside its mirror image
"""

from __future__ import annotations

import re
from typing import Final, Literal

BaseDesign = Literal["leave-one-out", "add-one"]
Design = Literal["leave-one-out", "add-one", "both"]
Verb = Literal["ablate", "calibrate", "screen"]
"""Which command started a campaign, and alone may resume it."""

BASES: Final[tuple[BaseDesign, ...]] = ("add-one", "leave-one-out")

_ROW: Final = re.compile(r"row-(\d{2})")


def key_at(feature: str, design: BaseDesign) -> str:
    """The key of a feature on one base of a campaign that uses both."""
    return f"{feature}.{design}"


def split_key(key: str) -> tuple[str, BaseDesign | None]:
    """Feature of a key, and its base where the key names one."""
    feature, _dot, design = key.partition(".")
    return (feature, design) if design in BASES else (key, None)


def row_key(index: int) -> str:
    """The key of a design's row, counted from 0."""
    return f"row-{index + 1:02d}"


def row_index(key: str) -> int | None:
    """Which row a key means, counted from 0; None for a feature."""
    found = _ROW.fullmatch(key)
    return int(found.group(1)) - 1 if found else None
