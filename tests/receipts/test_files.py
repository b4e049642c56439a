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
