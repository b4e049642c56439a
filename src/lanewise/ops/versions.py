"""What a backend is built of: versions of the distributions it runs on and digests of its own source files.

Evidence about a backend holds while these stay as they were; `receipts.versions` reads the present ones again.
"""

from __future__ import annotations

import ast
from pathlib import Path

from lanewise.ops.registry import SPECS
from lanewise.receipts.environment import PACKAGE_FOLDER
from lanewise.receipts.profile import BackendVersion
from lanewise.receipts.versions import present_version

OWN_CODE = ("lanewise.kernels.", "lanewise.vendors.")
"""Modules whose sources belong to a backend; what binds and checks a launch is the same for all."""

COMPILER_PACKAGES = ("torch", "triton")


def backend_version(op: str, backend: str) -> BackendVersion:
    """Versions of torch and of the packages a backend needs, and digests of its module and the kernels that imports.

    Args:
        op: op name.
        backend: name in the op's table.
    """
    row = SPECS[op].backend(backend)
    assert row is not None, "a chosen backend is in the table"
    module = row.target.partition(":")[0]
    names = ["torch", *row.needs.packages, *_source_files(module)]
    return _versions(names)


def compiler_version() -> BackendVersion:
    """Versions of what compiles blocks."""
    return _versions([*COMPILER_PACKAGES, "parallel/compile_regions.py"])


def _versions(names: list[str]) -> BackendVersion:
    found = {name: present_version(name) for name in dict.fromkeys(names)}
    return {name: version for name, version in found.items() if version is not None}


def _source_files(module: str) -> list[str]:
    """Files of a module and of the kernels it imports, by path below the package."""
    files: list[str] = []
    waiting = [module]
    while waiting:
        name = _relative(waiting.pop())
        path = PACKAGE_FOLDER / name
        if name in files or not path.is_file():
            continue
        files.append(name)
        waiting += _imported(path)
    return sorted(files)


def _relative(module: str) -> str:
    return module.removeprefix("lanewise.").replace(".", "/") + ".py"


def _imported(path: Path) -> list[str]:
    """Modules of `OWN_CODE` that a file imports, anywhere in it."""
    names: list[str] = []
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return [name for name in names if name.startswith(OWN_CODE)]
