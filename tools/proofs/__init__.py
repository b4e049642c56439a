"""Proofs: what the documentation claims about the lab itself, measured at full counts by `make prove`.

A proof is a module of this package with `run(scale: float) -> Proof`. `scale` 1 takes the counts that are claimed; tests
call the same function with a small fraction. `python -m tools.prove` runs them all and writes the committed summary.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True, slots=True)
class Claim:
    """One line of a proof.

    Attributes:
        text: what is claimed, in words a reader can check.
        measured: what was found, with unit.
        required: the bound it must keep, in words.
        holds: whether it does.
    """

    text: str
    measured: str
    required: str
    holds: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Proof:
    """What one module proved.

    Attributes:
        name: module name.
        title: words for the summary.
        counts: how much was tried, e.g. `{"campaigns": 200}`.
        claims: its lines.
        tables: title → rows of a table (header first), for documents that quote them.
        seconds: wall time.
    """

    name: str
    title: str
    counts: dict[str, int]
    claims: tuple[Claim, ...]
    seconds: float
    tables: dict[str, list[list[str]]] = field(default_factory=dict)
