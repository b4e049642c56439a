"""Budgets as people write them."""

from __future__ import annotations

import math
import re

from lanewise.errors import UsageError

_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}


def parse_budget(text: str) -> float:
    """Seconds of a budget such as `90s`, `5m`, `1h` or `2m30s`; a bare number is seconds.

    Raises:
        UsageError: it is not a positive duration.
    """
    number = r"[0-9]+(?:\.[0-9]+)?"
    seconds = 0.0
    if re.fullmatch(rf"\s*{number}\s*", text):
        seconds = float(text)
    elif re.fullmatch(rf"\s*({number}\s*h\s*)?({number}\s*m\s*)?({number}\s*s\s*)?", text):
        parts = re.findall(rf"({number})\s*([hms])", text)
        seconds = math.fsum(float(count) * _UNITS[unit] for count, unit in parts)
    if seconds <= 0:
        raise UsageError(
            f"--budget {text!r} is not a duration; write positive numbers with units: 90s, 5m or 1h30m"
        )
    return seconds
