"""Pattern strings such as `AEMEAEMEAEMR`: one letter per residual sub-layer, tiled over the depth."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from lanewise.lane.schema import ModelSpec
from lanewise.lane.suggest import nearest

LETTERS: Mapping[str, str] = MappingProxyType(
    {
        "A": "attention (MLA, dense or sparse)",
        "E": "mixture of experts",
        "M": "Mamba",
        "R": "M2RNN recurrence",
        "G": "grouped-query attention",
        "D": "dense MLP",
    }
)
"""Every letter a pattern may hold."""

TABLE_OF_LETTER: Mapping[str, str] = MappingProxyType(
    {
        "A": "attention",
        "E": "moe",
        "M": "mamba",
        "R": "recurrent",
        "G": "grouped_query",
        "D": "mlp",
    }
)
"""The table of `[model]` that each block reads."""


def fault(pattern: str) -> str | None:
    """Why a pattern string is impossible, or None."""
    if not pattern:
        return f"is empty; use the letters {_listed()}"
    for position, letter in enumerate(pattern, start=1):
        if letter not in LETTERS:
            match = nearest(letter, LETTERS)
            hint = f" Did you mean '{match}'?" if match else ""
            return (
                f"has the impossible letter {letter!r} at position {position}.{hint} "
                f"Letters: {_listed()}"
            )
    return None


def tile(pattern: str, num_layers: int) -> tuple[str, ...]:
    """Block letters of all layers: layer i is `pattern[i mod len(pattern)]`.

    Raises:
        ValueError: the pattern is impossible (see `fault`) or there are no layers.
    """
    reason = fault(pattern)
    if reason is not None:
        raise ValueError(f"pattern {pattern!r} {reason}")
    if num_layers < 1:
        raise ValueError(f"num_layers = {num_layers} must be at least 1")
    return tuple(pattern[index % len(pattern)] for index in range(num_layers))


def layer_letters(model: ModelSpec) -> tuple[str, ...]:
    """Block letters of a model's layers, from the input to the output."""
    return tile(model.pattern, model.num_layers)


def _listed() -> str:
    return ", ".join(f"{letter} {meaning}" for letter, meaning in LETTERS.items())
