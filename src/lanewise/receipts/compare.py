"""When two receipts may meet in one test, and in which fields they differ.

A pair is comparable iff lane, protocol, environment, data and machine-class digests match and the features differ only in
declared keys. With the features the backends asked for must match too, except those of ops a declared feature sets:
a backend named by hand is a difference nobody declared.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from lanewise.lane.features import FEATURES
from lanewise.receipts.extension_keys import INITIAL_WEIGHTS_KEY, PROTOCOL_KEY
from lanewise.receipts.schema import RunReceipt

DIGEST_FIELDS: tuple[str, ...] = (
    "lane.digest",
    "protocol_digest",
    "environment_digest",
    "data_digest",
    "machine.class_digest",
)

_COVERED_BY: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "lane.digest": ("lane.spec",),
        "protocol_digest": (f"extensions.{PROTOCOL_KEY}",),
        "environment_digest": (
            "environment.os_description",
            "environment.python_version",
            "environment.device_driver_version",
            "environment.packages",
            "environment.variables",
            "environment.num_threads",
        ),
        "data_digest": ("data",),
        "machine.class_digest": (
            "machine.class_name",
            "environment.host_arch",
            "environment.host_cpu_model_name",
            "environment.host_cpu_count",
            "environment.device_model",
        ),
    }
)
"""Digest → recorded fields that it is made of, so that a refusal can name them."""

_ALWAYS_DIFFERENT = frozenset({"receipt_id", "created_at", "artifacts"})


@dataclass(frozen=True, kw_only=True, slots=True)
class Difference:
    """One field in which two receipts differ.

    Attributes:
        field: dotted path; features and backends are named by key and op, not by position.
        a: value in the first, None when it has no such field.
        b: value in the second.
        blocks: whether it makes the pair incomparable.
    """

    field: str
    a: Any
    b: Any
    blocks: bool


def declared_features(a: RunReceipt, b: RunReceipt) -> frozenset[str]:
    """The features under test in either receipt: those two arms may differ in."""
    return frozenset(
        receipt.experiment.ablation_id for receipt in (a, b) if receipt.experiment is not None
    )


def comparable(
    a: RunReceipt, b: RunReceipt, *, declared: Iterable[str] | None = None
) -> list[Difference]:
    """The fields that forbid to compare two receipts; an empty list means they are comparable.

    Args:
        a: one receipt.
        b: another.
        declared: features that may differ; None takes those the receipts say were under test.
    """
    allowed = declared_features(a, b) if declared is None else frozenset(declared)
    left, right = _by_name(a), _by_name(b)
    differences = [
        Difference(field=field, a=_at(left, field), b=_at(right, field), blocks=True)
        for field in DIGEST_FIELDS
        if _at(left, field) != _at(right, field)
    ]
    for key in sorted((left["features"].keys() | right["features"].keys()) - allowed):
        differences += _blocking(left, right, f"features.{key}.effective")
    free_ops = _ops_set_by(allowed)
    for op in sorted((left["backends"].keys() | right["backends"].keys()) - free_ops):
        differences += _blocking(left, right, f"backends.{op}.requested")
    return differences


def diff(
    a: RunReceipt, b: RunReceipt, *, declared: Iterable[str] | None = None
) -> list[Difference]:
    """Every field in which two receipts differ, those that forbid a comparison first.

    Ids, times of writing and artifacts are left out: they differ in any two runs.
    """
    blocking = comparable(a, b, declared=declared)
    named = {difference.field for difference in blocking}
    left, right = _leaves(_by_name(a)), _leaves(_by_name(b))
    others = [
        Difference(field=field, a=left.get(field), b=right.get(field), blocks=False)
        for field in [*left, *(field for field in right if field not in left)]
        if left.get(field) != right.get(field) and field not in named
    ]
    return [*blocking, *others]


def named_differences(a: RunReceipt, b: RunReceipt, field: str) -> list[str]:
    """The recorded fields behind a differing digest, as `path a → b`; empty for other fields or where none differs.

    Args:
        a: one receipt.
        b: another.
        field: one of `DIGEST_FIELDS`.
    """
    left, right = _leaves(_by_name(a)), _leaves(_by_name(b))
    covered = _COVERED_BY.get(field, ())
    paths = [
        path for path in dict.fromkeys([*left, *right]) if any(_within(path, c) for c in covered)
    ]
    return [
        f"{path} {left.get(path)} → {right.get(path)}"
        for path in paths
        if left.get(path) != right.get(path)
    ]


def _within(path: str, parent: str) -> bool:
    return path == parent or path.startswith(parent + ".")


def unmatched_starts(a: RunReceipt, b: RunReceipt) -> tuple[str, ...]:
    """Why losses of two runs may not be compared step by step, one phrase each; empty when they began alike.

    The same seeds, data and first weights make two runs one experiment; otherwise a difference of losses is luck.
    """
    reasons = []
    left, right = a.lane.spec, b.lane.spec
    for path in ("seed", "data.seed"):
        seeds = (_at(left, path), _at(right, path))
        if seeds[0] != seeds[1]:
            reasons.append(f"seeds differ ({path} {seeds[0]} and {seeds[1]})")
    if a.data_digest != b.data_digest:
        reasons.append("they read other data")
    if a.extensions.get(INITIAL_WEIGHTS_KEY) != b.extensions.get(INITIAL_WEIGHTS_KEY):
        reasons.append("they started with other weights")
    return tuple(reasons)


def _blocking(left: Mapping[str, Any], right: Mapping[str, Any], field: str) -> list[Difference]:
    a, b = _at(left, field), _at(right, field)
    return [] if a == b else [Difference(field=field, a=a, b=b, blocks=True)]


def _by_name(receipt: RunReceipt) -> dict[str, Any]:
    document = receipt.model_dump(mode="json")
    document["features"] = {entry["key"]: entry for entry in document["features"]}
    document["backends"] = {entry["op"]: entry for entry in document["backends"]}
    return {name: value for name, value in document.items() if name not in _ALWAYS_DIFFERENT}


def _at(document: Mapping[str, Any], field: str) -> Any:
    value: Any = document
    for part in field.split("."):
        if not isinstance(value, Mapping):
            return None
        value = value.get(part)
    return value


def _ops_set_by(features: frozenset[str]) -> frozenset[str]:
    return frozenset(
        op
        for feature in FEATURES
        if feature.key in features
        for setting in feature.settings.values()
        for op in setting.ops
    )


def _leaves(value: Any, path: str = "") -> dict[str, Any]:
    if not isinstance(value, Mapping):
        return {path: value}
    leaves: dict[str, Any] = {}
    for name, item in value.items():
        leaves.update(_leaves(item, f"{path}.{name}" if path else str(name)))
    return leaves
