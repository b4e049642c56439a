"""Did-you-mean: the nearest known name, in words."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

MAX_LISTED = 24
"""Known names are listed in full up to this many."""


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known name closest to `word`, or None when nothing is close."""
    by_folded = {name.lower(): name for name in known}
    matches = difflib.get_close_matches(word.lower(), by_folded, n=1, cutoff=0.6)
    return by_folded[matches[0]] if matches else None


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The sentence that follows `unknown …`: a suggestion, else the list of known names."""
    names = list(known)
    match = nearest(word, names)
    if match is not None:
        return f"Did you mean '{match}'?"
    if not names:
        return "None is known here."
    listed = ", ".join(names[:MAX_LISTED])
    return f"Known: {listed}{', …' if len(names) > MAX_LISTED else ''}."
