import importlib.metadata
from pathlib import Path

from lanewise.receipts.versions import present_version


def test_a_distribution_and_a_file_have_versions_and_strangers_have_none(tmp_path: Path) -> None:
    assert present_version("numpy") == importlib.metadata.version("numpy")
    assert present_version("no-such-distribution") is None
    (tmp_path / "kernel.py").write_text("x = 1\n", encoding="utf-8")
    first = present_version("kernel.py", tmp_path)
    assert first is not None
    assert first.startswith("sha256:")
    (tmp_path / "kernel.py").write_text("x = 2\n", encoding="utf-8")
    assert present_version("kernel.py", tmp_path) not in (first, None)
    assert present_version("gone.py", tmp_path) is None
