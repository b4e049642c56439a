"""Under which conditions a calibration holds, and what has changed since. Names every difference.

What expires a calibration: another lane digest, machine class (its processor and core count too), operating system, Python,
driver, torch, numpy, Triton, lanewise's own sources, kernel libraries on a GPU, the variables that steer threads and
allocators, the number of threads, the measurement protocol, and 30 days. What does not: packages that prepare data before
the first step (the data digest covers their result), kernel libraries that a CPU run cannot use, the git revision, where
files are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from lanewise.lane.gpu import find_gpu
from lanewise.lane.machine import device_type_of
from lanewise.receipts.calibration import CalibrationRecord
from lanewise.receipts.environment import (
    child_environment,
    collect_environment,
    compared_fields,
    exported,
)
from lanewise.receipts.machine import collect_machine
from lanewise.receipts.schema import Environment, Machine

VALID_DAYS: Final = 30

DATA_PACKAGES: Final = frozenset({"pyarrow", "tokenizers"})
"""They work before the first step."""

GPU_PACKAGES: Final = frozenset(
    {
        "causal-conv1d",
        "flash-attn",
        "flash-linear-attention",
        "liger-kernel",
        "mamba-ssm",
        "quack-kernels",
        "tilelang",
        "transformer-engine",
    }
)
"""No backend of theirs runs on a CPU."""

CACHE_VARIABLES: Final = frozenset({"TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"})
"""Where compiled code lies; torch sets the first one itself while it builds a lane."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Conditions:
    """What a training process of this machine would write into its receipt now."""

    machine: Machine
    environment: Environment


def current_conditions(machine_class: str, num_threads: int) -> Conditions:
    """The conditions a child started now would run under.

    Args:
        machine_class: class of this machine.
        num_threads: threads of a child.
    """
    gpu = find_gpu() if device_type_of(machine_class) == "cuda" else None
    with exported(child_environment(num_threads, starts_anew=True)):
        environment = collect_environment(num_threads=num_threads, gpu=gpu)
    return Conditions(machine=collect_machine(machine_class, gpu=gpu), environment=environment)


def valid_until(created_at: str) -> str:
    """When a calibration of this time expires."""
    return (_time(created_at) + timedelta(days=VALID_DAYS)).isoformat().replace("+00:00", "Z")


def why_not(
    calibration: CalibrationRecord,
    *,
    lane_digest: str,
    block_design: str,
    protocol: Mapping[str, Any],
    conditions: Conditions,
    now: str,
) -> tuple[str, ...]:
    """Every reason why a calibration says nothing about a campaign planned now; empty when it holds.

    Args:
        calibration: the candidate.
        lane_digest: of the lane to be measured.
        block_design: of the campaign.
        protocol: parameters behind the protocol digest of the campaign's runs.
        conditions: of the machine now.
        now: RFC 3339 time.
    """
    reasons = []
    if calibration.lane.digest != lane_digest:
        reasons.append(
            f"it is of another lane ({calibration.lane.digest[:15]} → {lane_digest[:15]})"
        )
    if calibration.block_design != block_design:
        reasons.append(f"it is of {calibration.block_design} blocks, this plan has {block_design}")
    reasons += _machine(calibration.machine, conditions, calibration.environment)
    reasons += _changes(
        {k: v for k, v in calibration.protocol.items() if k != "design"},
        {k: v for k, v in protocol.items() if k != "design"},
        "protocol ",
    )
    device_type = device_type_of(calibration.machine.class_name)
    reasons += environment_changes(calibration.environment, conditions.environment, device_type)
    reasons += _age(calibration, now)
    return tuple(reasons)


def environment_changes(was: Environment, now: Environment, device_type: str) -> list[str]:
    """Changes of software that may change the noise of a step, each as `torch 2.12 → 2.13`."""
    before, after = (compared_fields(environment) for environment in (was, now))
    ignored = (
        DATA_PACKAGES | CACHE_VARIABLES | (GPU_PACKAGES if device_type == "cpu" else frozenset())
    )
    changes: list[str] = []
    for name in sorted(before.keys() | after.keys()):
        old, new = before.get(name), after.get(name)
        if isinstance(old, Mapping) or isinstance(new, Mapping):
            kept = [
                {key: value for key, value in (side or {}).items() if key not in ignored}
                for side in (old, new)
            ]
            changes += _changes(kept[0], kept[1], "")
        elif old != new:
            changes.append(f"{name} {_shown(old)} → {_shown(new)}")
    return changes


def _machine(was: Machine, conditions: Conditions, environment: Environment) -> list[str]:
    now = conditions.machine
    if was.class_name != now.class_name:
        return [f"machine {was.class_name} → {now.class_name}"]
    if was.class_digest == now.class_digest:
        return []
    named = [
        f"{name} {_shown(old)} → {_shown(new)}"
        for name in ("host_cpu_model_name", "host_cpu_count", "host_arch", "device_model")
        if (old := getattr(environment, name)) != (new := getattr(conditions.environment, name))
    ]
    return named or ["other hardware of the same machine class"]


def _changes(was: Mapping[str, Any], now: Mapping[str, Any], prefix: str) -> list[str]:
    return [
        f"{prefix}{key} {_shown(was.get(key))} → {_shown(now.get(key))}"
        for key in sorted(was.keys() | now.keys())
        if was.get(key) != now.get(key)
    ]


def _age(calibration: CalibrationRecord, now: str) -> list[str]:
    moment, created, end = (
        _time(text) for text in (now, calibration.created_at, calibration.valid_until)
    )
    if moment < created:
        return [f"it is dated {_days(created - moment)} in the future; check the machine's clock"]
    return [f"it expired {_days(moment - end)} ago"] if moment > end else []


def _days(span: timedelta) -> str:
    hours = span / timedelta(hours=1)
    if hours < 48:
        return f"{max(1, round(hours))} h"
    return f"{round(hours / 24)} days"


def _time(text: str) -> datetime:
    moment = datetime.fromisoformat(text)
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _shown(value: Any) -> str:
    return "none" if value is None else str(value)
