"""The rules that hold the house up, checked on the files themselves."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FILE_BUDGET = 400
KERNEL_BUDGET = 500
TEST_BUDGET = 600
TORCH_FREE = ["lane", "receipts", "lab", "dash", "cli.main", "measure.stats", "train.request"]


def source_files() -> list[Path]:
    return [p for folder in ("src", "tests", "benchmarks") for p in (ROOT / folder).rglob("*.py")]


def budget(path: Path) -> int:
    relative = path.relative_to(ROOT)
    if relative.parts[0] == "tests":
        return TEST_BUDGET
    return KERNEL_BUDGET if "kernels" in relative.parts else FILE_BUDGET


@pytest.mark.parametrize("path", source_files(), ids=lambda p: str(p.relative_to(ROOT)))
def test_file_stays_within_its_budget(path: Path) -> None:
    num_lines = len(path.read_text(encoding="utf-8").splitlines())
    assert num_lines <= budget(path), f"{num_lines} lines, budget {budget(path)}: redesign the file"


@pytest.mark.parametrize("package", TORCH_FREE)
def test_package_imports_no_torch(package: str) -> None:
    code = (
        "import importlib, pkgutil, sys\n"
        f"module = importlib.import_module('lanewise.{package}')\n"
        "for found in pkgutil.iter_modules(getattr(module, '__path__', [])):\n"
        "    importlib.import_module(f'{module.__name__}.{found.name}')\n"
        "sys.exit('torch' in sys.modules)\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_environment_is_read_in_one_module() -> None:
    readers = [
        str(path.relative_to(ROOT))
        for path in (ROOT / "src").rglob("*.py")
        if "os.environ" in path.read_text(encoding="utf-8")
        or "getenv" in path.read_text(encoding="utf-8")
    ]
    assert readers == ["src/lanewise/receipts/environment.py"]
