"""Machine classes: the comparable part of a machine's identity, as a checked name.

`cpu-<arch>-<cores>c` (`cpu-x86_64-2c`) or `<model>-<form>-<memory>gb` (`h100-sxm-80gb`). A bare nickname such as `h200`
is refused: it hides form factor and memory, and timings of such machines must not meet in one test.
"""

from __future__ import annotations

import math
import os
import platform
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from lanewise.errors import UsageError
from lanewise.lane.gpu import ask_nvidia_smi, has_gpu

DeviceType = Literal["cpu", "cuda"]

CPU_CLASS = re.compile(r"cpu-[a-z0-9_]+-[1-9][0-9]*c")
GPU_CLASS = re.compile(r"(?!cpu-)[a-z0-9]+-[a-z0-9]+-[1-9][0-9]*gb")
RULE = (
    "a machine class is `<model>-<form>-<memory>gb`, e.g. h200-sxm-141gb, or `cpu-<arch>-<cores>c`, "
    "e.g. cpu-x86_64-2c; `lanewise doctor` prints the class of this machine"
)
_FORMS = ("sxm", "pcie", "nvl", "oam")
_SXM_ONLY = frozenset({"h200", "b200", "b300", "gb200", "gb300"})
"""Models whose marketing name leaves out the form when it is SXM (their other forms say so)."""


def fault(machine_class: str) -> str | None:
    """Why a name is no machine class, or None."""
    if CPU_CLASS.fullmatch(machine_class) or GPU_CLASS.fullmatch(machine_class):
        return None
    return f"is a nickname, not a machine class: {RULE}"


def is_scope(name: str) -> bool:
    """Whether a default may hold for this: a machine class, or one of a GPU without its memory, such as `h100-sxm`."""
    return fault(name) is None or fault(f"{name}-1gb") is None


def require_machine_class(machine_class: str) -> None:
    """Refuse a name that is no machine class.

    Raises:
        UsageError: with the rule and examples.
    """
    reason = fault(machine_class)
    if reason is not None:
        raise UsageError(f"machine '{machine_class}' {reason}")


def device_type_of(machine_class: str) -> DeviceType:
    """`cpu` or `cuda`, read off a valid machine class."""
    return "cpu" if machine_class.startswith("cpu-") else "cuda"


def detect_machine_class(
    device_type: DeviceType,
    *,
    query_gpu: Callable[[], str] | None = None,
) -> str:
    """The class of the present machine, without importing torch.

    Args:
        device_type: which device of the machine is meant.
        query_gpu: returns `name, memory in MiB` of the first GPU; None asks `nvidia-smi`.

    Raises:
        UsageError: `cuda` was asked for and no GPU answers.
    """
    if device_type == "cpu":
        return f"cpu-{_arch(platform.machine())}-{usable_cores()}c"
    line = query_gpu() if query_gpu else ask_nvidia_smi("name,memory.total")
    return gpu_class(line)


def choose_device(asked: Literal["auto", "cpu", "cuda"]) -> DeviceType:
    """The device a run uses: what was asked for; `auto` takes a GPU where one answers."""
    if asked == "auto":
        return "cuda" if has_gpu() else "cpu"
    return asked


STAND_IN_GPU_CLASS = "h100-sxm-80gb"
"""Names a GPU machine where a lane is only shown and none is known."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ShownMachine:
    """The machine a lane is shown for.

    Attributes:
        machine_class: its class.
        here: whether it is this machine, whose software can be looked at.
        notes: what cannot be known here.
    """

    machine_class: str
    here: bool
    notes: tuple[str, ...] = ()

    @property
    def device_type(self) -> DeviceType:
        """The device of the class."""
        return device_type_of(self.machine_class)


def machine_to_show(
    device: Literal["auto", "cpu", "cuda"],
    *,
    asked: str | None,
    named: str | None,
    gpu_answers: Callable[[], bool] = has_gpu,
    detect: Callable[[DeviceType], str] | None = None,
) -> ShownMachine:
    """Which machine a lane is resolved for when it is shown, which needs no device of that kind.

    Args:
        device: what was asked for; `auto` follows the class, else takes a GPU where one answers.
        asked: class asked for.
        named: class the lane names.
        gpu_answers: whether a GPU answers that the installed torch can use.
        detect: class of this machine by device; None looks at it.

    Raises:
        UsageError: a class is no machine class, or has no such device.
    """
    chosen = asked or named
    answers = gpu_answers()
    notes: tuple[str, ...] = ()
    if chosen is not None:
        require_machine_class(chosen)
        if device not in ("auto", device_type_of(chosen)):
            raise UsageError(
                f"machine {chosen} has no device '{device}'; use --device {device_type_of(chosen)}, or another --machine"
            )
    elif device == "cuda" and not answers:
        chosen = STAND_IN_GPU_CLASS
        notes = (
            f"no GPU answers here, so name and ledger are those of {chosen}; --machine CLASS shows another",
        )
    if chosen is None:
        wanted: DeviceType = "cuda" if device == "cuda" or (device == "auto" and answers) else "cpu"
        return ShownMachine(machine_class=(detect or detect_machine_class)(wanted), here=True)
    if device_type_of(chosen) == "cuda" and not answers:
        notes = (
            *notes,
            "backends are those asked for, in order; which of them run cannot be known here, without a GPU that torch can "
            "use: `lanewise doctor` tests them there",
        )
    return ShownMachine(machine_class=chosen, here=False, notes=notes)


DEFAULT_CPU_THREADS = 1
"""Threads of a training process on a CPU unless the user says otherwise. The ops of a lane that a CPU can train are short,
and a second thread waits at every barrier for a core that something else may hold: docs/LOG.md, 2026-11-23."""


def usable_cores() -> int:
    """Cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def gpu_class(nvidia_smi_line: str) -> str:
    """Machine class from one CSV line `name, memory.total [MiB]` of nvidia-smi.

    >>> gpu_class("NVIDIA H100 80GB HBM3, 81559")
    'h100-sxm-80gb'
    """
    name, _, memory_mib = nvidia_smi_line.rpartition(",")
    words = [word for word in re.split(r"[^a-z0-9]+", name.lower()) if word and word != "nvidia"]
    if not words or not memory_mib.strip().isdigit():
        raise UsageError(
            f"nvidia-smi answered {nvidia_smi_line!r}; name the machine yourself: {RULE}"
        )
    model = words[0] if words[0] != "geforce" else "".join(words[1:3])
    # Nominal sizes are what is usable plus a reserve below 1 GiB: 81559 MiB is the 80 GB part.
    memory_gb = math.ceil(int(memory_mib) / 1024)
    return f"{model}-{_form(model, words)}-{memory_gb}gb"


def _form(model: str, words: Sequence[str]) -> str:
    named = next((form for form in _FORMS for word in words if word.startswith(form)), None)
    if named:
        return named
    # NVIDIA names the SXM parts by their memory technology ("H100 80GB HBM3") or not at all ("H200").
    if model in _SXM_ONLY or any(word.startswith("hbm") for word in words):
        return "sxm"
    return "pcie"


def _arch(machine: str) -> str:
    lowered = machine.lower()
    return {"amd64": "x86_64", "arm64": "aarch64"}.get(lowered, lowered or "unknown")
