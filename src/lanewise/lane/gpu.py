"""The first GPU of this machine as `nvidia-smi` describes it. Imports no torch, so a campaign's driver can ask."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from lanewise.errors import UsageError

Query = Callable[[str], str]
"""Field names of `nvidia-smi --query-gpu` → its first line of values."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Gpu:
    """One GPU.

    Attributes:
        name: as the driver gives it, e.g. `NVIDIA H100 80GB HBM3`.
        memory_mib: total memory.
        driver_version: of the NVIDIA driver.
        uuid: the card's own id; receipts keep a keyed hash of it.
    """

    name: str
    memory_mib: int
    driver_version: str
    uuid: str


def find_gpu(query: Query | None = None) -> Gpu:
    """The first GPU.

    Args:
        query: asks the driver; None calls `nvidia-smi`.

    Raises:
        UsageError: no GPU answers, or it answers something that is no description.
    """
    line = (query or ask_nvidia_smi)("name,memory.total,driver_version,uuid")
    parts = [part.strip() for part in line.split(",")]
    if len(parts) != 4 or not parts[1].isdigit():
        raise UsageError(
            f"nvidia-smi answered {line!r}, not name, memory, driver and id of a GPU; use --device cpu"
        )
    return Gpu(name=parts[0], memory_mib=int(parts[1]), driver_version=parts[2], uuid=parts[3])


def free_gpu_bytes(query: Query | None = None) -> int | None:
    """Memory of the first GPU that is free now, or None when the driver does not tell."""
    try:
        line = (query or ask_nvidia_smi)("memory.free")
    except UsageError:
        return None
    return int(line) * 2**20 if line.strip().isdigit() else None


def torch_has_cuda() -> bool:
    """Whether the installed torch was built for CUDA, read off its files: importing it takes seconds."""
    spec = importlib.util.find_spec("torch")
    folders = spec.submodule_search_locations if spec is not None else None
    return any(next(Path(folder, "lib").glob("*torch_cuda*"), None) for folder in folders or ())


def has_gpu() -> bool:
    """Whether a GPU answers and the installed torch can use it."""
    if not torch_has_cuda():
        return False
    try:
        ask_nvidia_smi("name")
    except UsageError:
        return False
    return True


def ask_nvidia_smi(fields: str) -> str:
    """First line of `nvidia-smi --query-gpu=<fields>`, without units.

    Raises:
        UsageError: it is not installed or finds no GPU.
    """
    program = shutil.which("nvidia-smi")
    if program is None:
        raise UsageError(
            "device cuda was asked for, but nvidia-smi is not on PATH; use device cpu, or install the NVIDIA driver"
        )
    answer = subprocess.run(
        [program, f"--query-gpu={fields}", "--format=csv,noheader,nounits"],
        capture_output=True,
        text=True,
        check=False,
    )
    lines = answer.stdout.strip().splitlines()
    if answer.returncode != 0 or not lines:
        reason = (answer.stderr or answer.stdout).strip().splitlines()
        raise UsageError(
            f"nvidia-smi found no GPU ({reason[0] if reason else 'no output'}); use device cpu, or check the driver"
        )
    return lines[0]
