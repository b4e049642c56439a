"""The machine, its software, and every environment variable the program reads (the only module that reads them).

Nothing recorded names a person, a host or a path: machine ids are hashed, and a variable that holds a path is
recorded as set, not by value.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import os
import platform
import re
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil

from lanewise import __version__
from lanewise.lane.digest import digest
from lanewise.lane.gpu import Gpu
from lanewise.receipts.machine import cpu_model_name
from lanewise.receipts.schema import Environment

READ_VARIABLES: tuple[str, ...] = ("LANEWISE_STORE", "LANEWISE_DEBUG", "CXX")
"""Variables that change what lanewise does. They change no computation and stay out of the environment digest."""

RECORDED_VARIABLES: tuple[str, ...] = (
    "ATEN_CPU_CAPABILITY",
    "CUDA_DEVICE_MAX_CONNECTIONS",
    "CUDA_LAUNCH_BLOCKING",
    "DNNL_MAX_CPU_ISA",
    "GLIBC_TUNABLES",
    "GOMP_CPU_AFFINITY",
    "GOMP_SPINCOUNT",
    "KMP_AFFINITY",
    "KMP_BLOCKTIME",
    "MALLOC_ARENA_MAX",
    "MKL_DYNAMIC",
    "MKL_NUM_THREADS",
    "NVIDIA_TF32_OVERRIDE",
    "OMP_DYNAMIC",
    "OMP_NUM_THREADS",
    "OMP_PLACES",
    "OMP_PROC_BIND",
    "OMP_WAIT_POLICY",
    "ONEDNN_MAX_CPU_ISA",
    "OPENBLAS_NUM_THREADS",
    "PYTHONHASHSEED",
    "PYTHONMALLOC",
    "PYTHONOPTIMIZE",
    "PYTORCH_ALLOC_CONF",
    "PYTORCH_CUDA_ALLOC_CONF",
    "TORCHDYNAMO_DISABLE",
    "TORCH_COMPILE_DISABLE",
    "TRITON_INTERPRET",
)
"""Variables of other programs that change how fast a step is; recorded by value."""

PATH_VARIABLES: tuple[str, ...] = (
    "LANEWISE_STORE",
    "LD_PRELOAD",
    "TORCHINDUCTOR_CACHE_DIR",
    "TRITON_CACHE_DIR",
)
"""Variables that hold paths; recorded as `<set>`, like every value with a slash, because a path can name a person."""

RECORDED_PACKAGES: tuple[str, ...] = (
    "causal-conv1d",
    "flash-attn",
    "flash-linear-attention",
    "liger-kernel",
    "mamba-ssm",
    "numpy",
    "pyarrow",
    "quack-kernels",
    "tilelang",
    "tokenizers",
    "torch",
    "transformer-engine",
    "triton",
)
"""Distributions that can take part in a step; those not installed are left out of the record."""

PACKAGE_FOLDER = Path(__file__).resolve().parents[1]
_HUGE_PAGES_FILE = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def variable(name: str) -> str | None:
    """The value of an allow-listed environment variable, or None when unset or empty."""
    if name not in READ_VARIABLES:
        raise ValueError(
            f"{name!r} is not in READ_VARIABLES; add it there so that receipts record it"
        )
    return os.environ.get(name) or None


def recorded_variables() -> dict[str, str]:
    """Allow-listed variables that are set, sorted by name; paths are shown as `<set>`."""
    found: dict[str, str] = {}
    for name in sorted({*READ_VARIABLES, *RECORDED_VARIABLES, *PATH_VARIABLES}):
        value = os.environ.get(name)
        if value:
            found[name] = "<set>" if name in PATH_VARIABLES or "/" in value else value
    return found


HUGE_PAGES_TUNABLE = "glibc.malloc.hugetlb=1"
"""glibc 2.35 and later: malloc asks the kernel for transparent huge pages (glibc manual, "Memory Allocation Tunables")."""

_HUGE_PAGES_GLIBC = (2, 35)


def child_environment(num_threads: int, *, starts_anew: bool = False) -> dict[str, str]:
    """Variables to set in a training process before any thread pool exists.

    Idle workers sleep (`OMP_WAIT_POLICY=PASSIVE`): arms of a lockstep block share the cores in turns, and the
    spinning workers of the waiting arm would slow the other one down. malloc asks for huge pages where it can: which
    pages a process happens to get is one of the ways in which two equal processes differ.

    Args:
        num_threads: intra-op threads, at least 1.
        starts_anew: the variables are set before the program starts, the only moment at which malloc reads its own.
    """
    if num_threads < 1:
        raise ValueError(f"num_threads is {num_threads}; a process needs at least 1 thread")
    count = str(num_threads)
    malloc = _malloc_tunables() if starts_anew else None
    return {
        **({} if malloc is None else {"GLIBC_TUNABLES": malloc}),
        "OMP_NUM_THREADS": count,
        "MKL_NUM_THREADS": count,
        "OPENBLAS_NUM_THREADS": count,
        "OMP_DYNAMIC": "FALSE",
        "OMP_WAIT_POLICY": "PASSIVE",
    }


def huge_pages_reason() -> str:
    """What this process's malloc was told about huge pages when the program started, in words, and what the kernel offers."""
    library, version = platform.libc_ver()
    if library != "glibc":
        return "not asked for: the C library is not glibc"
    if not _has_huge_pages_tunable(version):
        return f"not asked for: glibc {version} is older than 2.35"
    asked = [
        part
        for part in os.environ.get("GLIBC_TUNABLES", "").split(":")
        if part.startswith("glibc.malloc.hugetlb=")
    ]
    if not asked:
        return "not asked for: GLIBC_TUNABLES does not name glibc.malloc.hugetlb"
    return f"{asked[-1]}, the kernel offers {_kernel_huge_pages()}"


def _malloc_tunables() -> str | None:
    """GLIBC_TUNABLES with huge pages asked for; a value the user set keeps its word. None where malloc knows none."""
    library, version = platform.libc_ver()
    if library != "glibc" or not _has_huge_pages_tunable(version):
        return None
    before = os.environ.get("GLIBC_TUNABLES", "")
    if "glibc.malloc.hugetlb=" in before:
        return before
    return f"{before}:{HUGE_PAGES_TUNABLE}" if before else HUGE_PAGES_TUNABLE


def _has_huge_pages_tunable(glibc_version: str) -> bool:
    parts = glibc_version.split(".")
    numbers = tuple(int(part) for part in parts[:2] if part.isdigit())
    return numbers >= _HUGE_PAGES_GLIBC


def _kernel_huge_pages() -> str:
    """`always`, `madvise` or `never`, as the kernel's own file marks it."""
    try:
        text = _HUGE_PAGES_FILE.read_text(encoding="ascii")
    except OSError:
        return "no transparent huge pages"
    found = re.search(r"\[(\w+)\]", text)
    return found.group(1) if found else "an unknown mode"


@contextlib.contextmanager
def exported(variables: Mapping[str, str]) -> Iterator[None]:
    """Set variables in this process while child processes are started, then put the old values back.

    `multiprocessing` takes no environment of its own: a child inherits what stands when it is started.
    """
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def collect_environment(
    *,
    num_threads: int | None = None,
    gpu: Gpu | None = None,
) -> Environment:
    """Describe software and host for a receipt.

    Args:
        num_threads: intra-op threads of the run; None when it has no fixed number.
        gpu: the accelerator; None on a CPU.
    """
    revision, dirty = checkout_state(PACKAGE_FOLDER)
    return Environment(
        host_arch=platform.machine(),
        host_cpu_model_name=cpu_model_name(),
        host_cpu_count=os.cpu_count() or 0,
        host_memory_bytes=psutil.virtual_memory().total,
        os_description=_os_description(),
        python_version=platform.python_version(),
        vcs_revision=revision,
        vcs_dirty=dirty,
        device_model=None if gpu is None else gpu.name,
        device_driver_version=None if gpu is None else gpu.driver_version,
        packages=package_versions(),
        variables=recorded_variables(),
        num_threads=num_threads,
    )


def environment_digest(environment: Environment) -> str:
    """Digest of what must match for two runs to be comparable.

    In: operating system, Python, driver, package versions, threads, and the variables that change a computation.
    Out: the host's CPU, memory and device, which the machine class covers; and the git revision and dirty flag,
    because `packages["lanewise"]` carries a digest of the very sources that ran, which an edited README leaves alone
    and an edited kernel does not.
    """
    return digest(compared_fields(environment))


def compared_fields(environment: Environment) -> dict[str, Any]:
    """What the environment digest covers, by name."""
    return {
        "os_description": environment.os_description,
        "python_version": environment.python_version,
        "device_driver_version": environment.device_driver_version,
        "packages": environment.packages,
        "variables": {
            name: value
            for name, value in environment.variables.items()
            if not name.startswith("LANEWISE_")
        },
        "num_threads": environment.num_threads,
    }


def package_versions() -> dict[str, str]:
    """Installed versions of `RECORDED_PACKAGES`, and lanewise with a digest of its own sources.

    lanewise is written as a local version (PEP 440), e.g. `0.1.0+source.3f2a9c0d1e5b7a64`.
    """
    versions = {"lanewise": f"{__version__}+source.{source_digest(PACKAGE_FOLDER)[:16]}"}
    for name in RECORDED_PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions


def source_digest(folder: Path) -> str:
    """SHA-256 in hex over the sources (Python, CUDA, TOML) of a package, their relative names included."""
    total = hashlib.sha256()
    paths = sorted(
        (path.relative_to(folder).as_posix(), path)
        for path in folder.rglob("*")
        if path.suffix in {".py", ".cu", ".cuh", ".cpp", ".h", ".toml"}
    )
    for name, path in paths:
        content = path.read_bytes()
        total.update(f"{name}\0{len(content)}\0".encode())
        total.update(content)
    return total.hexdigest()


def checkout_state(folder: Path) -> tuple[str | None, bool | None]:
    """Git revision of the checkout a folder belongs to, and whether tracked files were changed.

    (None, None) when the folder is installed rather than checked out, when git is missing, or when git refuses.
    """
    if {"site-packages", "dist-packages"} & set(folder.parts):
        return None, None
    command = ["git", "-C", str(folder), "--no-optional-locks", "status", "--porcelain=v2"]
    try:
        answer = subprocess.run(
            [*command, "--branch", "--untracked-files=no"],
            capture_output=True,
            text=True,
            check=False,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None, None
    found = re.search(r"^# branch\.oid ([0-9a-f]{40,64})$", answer.stdout, re.MULTILINE)
    if answer.returncode != 0 or found is None:
        return None, None
    changed = any(not line.startswith("#") for line in answer.stdout.splitlines())
    return found.group(1), changed


def _os_description() -> str:
    if platform.system() == "Darwin":
        return f"macOS {platform.mac_ver()[0]}"
    kernel = f"{platform.system()} {platform.release()}"
    try:
        return f"{platform.freedesktop_os_release()['PRETTY_NAME']}, {kernel}"
    except OSError:
        return kernel
