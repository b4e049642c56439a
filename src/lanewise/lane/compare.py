"""In which fields two lanes differ, and whether their runs may be compared."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from lanewise.lane.digest import lane_identity
from lanewise.lane.schema import Lane


@dataclass(frozen=True, kw_only=True, slots=True)
class FieldDifference:
    """One field in which two lanes differ; a value a lane does not have is None."""

    path: str
    a: Any
    b: Any


@dataclass(frozen=True, kw_only=True, slots=True)
class LaneDiff:
    """Differences of two lanes.

    Attributes:
        identity: fields of the lane digest; any of them makes runs not comparable.
        other: names, features, ops, observability, machine and paths.
    """

    identity: tuple[FieldDifference, ...]
    other: tuple[FieldDifference, ...]

    @property
    def is_comparable(self) -> bool:
        """Whether both lanes have the same digest."""
        return not self.identity


def diff_lanes(a: Lane, b: Lane) -> LaneDiff:
    """Compare two lanes field by field."""
    identity = tuple(_differences(lane_identity(a), lane_identity(b)))
    decisive = {difference.path for difference in identity}
    everything = _differences(a.model_dump(mode="json"), b.model_dump(mode="json"))
    return LaneDiff(
        identity=identity,
        other=tuple(difference for difference in everything if difference.path not in decisive),
    )


def flatten(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted path and value of every leaf; an empty table is a leaf."""
    if isinstance(value, Mapping) and value:
        for key, item in value.items():
            yield from flatten(item, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, value


def _differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> Iterator[FieldDifference]:
    flat_a, flat_b = dict(flatten(a)), dict(flatten(b))
    for path in dict.fromkeys((*flat_a, *flat_b)):
        if flat_a.get(path) != flat_b.get(path):
            yield FieldDifference(path=path, a=flat_a.get(path), b=flat_b.get(path))
