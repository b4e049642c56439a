"""Which machine: its class is comparable, its instance is a keyed hash that tells two machines of a class apart."""

from __future__ import annotations

import hmac
import os
import platform
import re
import subprocess
from pathlib import Path
from typing import Literal

import psutil

from lanewise.lane.digest import digest
from lanewise.lane.gpu import Gpu
from lanewise.receipts.schema import Machine

INSTALLATION_ID_FILES: tuple[Path, ...] = (
    Path("/etc/machine-id"),
    Path("/var/lib/dbus/machine-id"),
)
"""128-bit random ids of an installation, in order of preference."""
BOOT_ID_FILE = Path("/proc/sys/kernel/random/boot_id")
"""For containers without an installation's id; lives until the next boot."""
_INSTANCE_LABEL = b"lanewise machine instance v1"


def collect_machine(class_name: str, *, gpu: Gpu | None = None) -> Machine:
    """Identify the machine: its class is comparable, its instance is a keyed hash.

    Args:
        class_name: e.g. `cpu-x86_64-2c` or `h100-sxm-80gb`.
        gpu: the accelerator; None on a CPU. Another card is another instance.
    """
    kind = {
        "class_name": class_name,
        "host_arch": platform.machine(),
        "host_cpu_model_name": cpu_model_name(),
        "host_cpu_count": os.cpu_count() or 0,
        "device_model": None if gpu is None else gpu.name,
    }
    instance = _installation_id(INSTALLATION_ID_FILES) if gpu is None else gpu.uuid
    source: Literal["gpu_uuid", "installation", "boot"] = (
        "boot" if instance is None else "installation" if gpu is None else "gpu_uuid"
    )
    return Machine(
        class_name=class_name,
        class_digest=digest(kind),
        instance_digest=_instance_digest(instance or _boot_id(BOOT_ID_FILE)),
        instance_source=source,
    )


def cpu_model_name() -> str | None:
    """Name of the CPU, or None where the system does not tell."""
    if platform.system() == "Darwin":
        return command_output("sysctl", "-n", "machdep.cpu.brand_string")
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return platform.processor() or None
    found = re.search(r"^(?:model name|Model|cpu model)\s*:\s*(.+)$", text, re.MULTILINE)
    return found.group(1).strip() if found else platform.processor() or None


def _installation_id(files: tuple[Path, ...]) -> str | None:
    """A random id of this installation, never written anywhere unhashed; None where there is none."""
    for path in files:
        found = _id_in(path)
        if found is not None:
            return found
    platform_id = command_output("ioreg", "-rd1", "-c", "IOPlatformExpertDevice") or ""
    uuid = re.search(r'"IOPlatformUUID" = "([0-9A-Fa-f-]{36})"', platform_id)
    return uuid.group(1) if uuid else None


def _boot_id(file: Path) -> str:
    """The last resort: stable until the next boot, and it names nothing."""
    return _id_in(file) or f"booted {psutil.boot_time():.0f}"


def _id_in(path: Path) -> str | None:
    try:
        text = path.read_text(encoding="ascii", errors="replace").strip().replace("-", "")
    except OSError:
        return None
    return text if re.fullmatch(r"[0-9a-f]{32}", text) else None


def _instance_digest(machine_id: str) -> str:
    # A random 128-bit id is its own salt: keyed by it, the label's hash is neither reversible nor shared with other
    # programs (the construction of sd_id128_get_machine_app_specific in systemd).
    return "sha256:" + hmac.new(machine_id.encode(), _INSTANCE_LABEL, "sha256").hexdigest()


def command_output(*command: str) -> str | None:
    """What a command prints, or None where it fails, prints nothing or takes over ten seconds."""
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=False, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() or None if answer.returncode == 0 else None
