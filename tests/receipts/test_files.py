"""Files appear whole or not at all, and a full disk leaves everything as it was."""

import errno
import os
from pathlib import Path

import pytest

from lanewise.errors import StoreError
from lanewise.receipts import files


def failing(code: int):
    def fail(*_arguments: object) -> None:
        raise OSError(code, os.strerror(code))

    return fail


def everything(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_write_makes_folders_and_replaces(tmp_path: Path) -> None:
    location = f"{tmp_path}/a/b/c.json"
    files.write_bytes(location, b"one")
    files.write_bytes(location, b"two")
    assert everything(tmp_path) == {"a/b/c.json": b"two"}


@pytest.mark.parametrize("broken", ["fsync", "replace"])
def test_a_full_disk_touches_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    location = f"{tmp_path}/c.json"
    files.write_bytes(location, b"old")
    monkeypatch.setattr(files.os, broken, failing(errno.ENOSPC))
    with pytest.raises(StoreError, match="disk is full: free some space or give another --store"):
        files.write_bytes(location, b"new")
    assert everything(tmp_path) == {"c.json": b"old"}


def test_a_folder_that_cannot_be_made_is_explained(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StoreError, match=r"cannot write .*: a file stands where"):
        files.write_bytes(f"{tmp_path}/file/c.json", b"new")


def test_an_interrupt_leaves_no_temporary_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(files.os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        files.write_bytes(f"{tmp_path}/c.json", b"new")
    assert everything(tmp_path) == {}


@pytest.mark.parametrize("root", ["{tmp}", "memory://{name}"])
def test_listing_shows_json_below_a_folder_and_no_temporary_files(
    tmp_path: Path, root: str
) -> None:
    place = root.format(tmp=tmp_path, name=tmp_path.name)
    for name in ("x/a.json", "x/y/b.json", "x/y/b.steps.json", "x/.c.json.0f.tmp", "x/.d.json"):
        files.write_bytes(f"{place}/{name}", b"{}")
    files.write_bytes(f"{place}/other/e.json", b"{}")
    found = files.list_json(place, "x", but_not=".steps.json")
    assert sorted(file.name for file in found) == ["x/a.json", "x/y/b.json"]
    assert {file.size_bytes for file in found} == {2}
    assert sorted(file.stem for file in found) == ["a", "b"]
    assert files.list_json(place, "missing") == []


@pytest.mark.parametrize("root", ["{tmp}", "memory://{name}"])
def test_read_exists_remove(tmp_path: Path, root: str) -> None:
    location = root.format(tmp=tmp_path, name=tmp_path.name) + "/a.json"
    files.write_bytes(location, b"one")
    assert files.exists(location)
    assert files.read_bytes(location) == b"one"
    files.remove(location)
    files.remove(location)
    assert not files.exists(location)
    with pytest.raises(FileNotFoundError):
        files.read_bytes(location)


def test_an_unknown_protocol_is_explained() -> None:
    with pytest.raises(StoreError, match="no store address fsspec knows"):
        files.read_bytes("nonsense://a/b.json")


@pytest.mark.parametrize(
    ("root", "normal"),
    [
        ("a/b/", "a/b"),
        ("file:///a/b", "/a/b"),
        ("s3://bucket/a/", "s3://bucket/a"),
        (Path("a"), "a"),
        ("/", "/"),
    ],
)
def test_roots_are_normalised(root: str | Path, normal: str) -> None:
    assert files.normal_root(root) == normal


def abandoned(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What a writer that is killed between its write and its rename leaves."""
    left: list[Path] = []

    def killed(temporary: Path, _target: Path) -> None:
        left.append(temporary)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(files.os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            files.write_bytes(f"{folder}/c.json", b"{}")
    left[0].write_bytes(b"half")
    return left[0]


@pytest.mark.parametrize(
    ("age_seconds", "gone"), [(86_401.0, True), (86_399.0, False), (0.0, False), (-1e9, False)]
)
def test_only_what_a_writer_has_left_alone_for_a_day_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, age_seconds: float, gone: bool
) -> None:
    left = abandoned(tmp_path / "receipts" / "lane", monkeypatch)
    os.utime(left, (1e9, 1e9))
    assert files.remove_abandoned(str(tmp_path), now_seconds=1e9 + age_seconds) == int(gone)
    assert left.exists() is not gone


def test_nothing_else_is_removed_however_old(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = ["c.json", "notes.tmp", ".hidden", f".cache/.x.{'0' * 16}.tmp", f".x.{'0' * 15}.tmp"]
    for name in kept:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "link").symlink_to(tmp_path / ".cache", target_is_directory=True)
    left = abandoned(tmp_path, monkeypatch)
    assert files.remove_abandoned(str(tmp_path), now_seconds=1e11) == 1
    assert not left.exists()
    assert everything(tmp_path).keys() >= set(kept)
    assert files.remove_abandoned("memory://store", now_seconds=1e11) == 0
    assert files.remove_abandoned(f"{tmp_path}/nowhere", now_seconds=1e11) == 0


def test_what_cannot_be_removed_stays_and_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = abandoned(tmp_path, monkeypatch)
    monkeypatch.setattr(Path, "unlink", failing(errno.EACCES))
    assert files.remove_abandoned(str(tmp_path), now_seconds=1e11) == 0
    assert left.exists()
