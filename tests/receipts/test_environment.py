"""The record names software and machine class, and never a person, a host or a path."""

import os
import platform
import subprocess
from pathlib import Path

import pytest

from lanewise.receipts import environment as env


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in (*env.READ_VARIABLES, *env.RECORDED_VARIABLES, *env.PATH_VARIABLES):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def git(folder: Path, *words: str) -> None:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    subprocess.run(["git", "-C", str(folder), *identity, *words], check=True, capture_output=True)


def test_variable_refuses_what_is_not_listed() -> None:
    with pytest.raises(ValueError, match="READ_VARIABLES"):
        env.variable("HOME")


def test_recorded_variables_hide_paths_and_skip_the_unlisted(bare: pytest.MonkeyPatch) -> None:
    bare.setenv("OMP_NUM_THREADS", "2")
    bare.setenv("TORCHINDUCTOR_CACHE_DIR", "/home/someone/cache")
    bare.setenv("CXX", "/home/someone/bin/c++")
    bare.setenv("SOME_TOKEN", "secret")
    assert env.recorded_variables() == {
        "CXX": "<set>",
        "OMP_NUM_THREADS": "2",
        "TORCHINDUCTOR_CACHE_DIR": "<set>",
    }


def test_exported_variables_reach_children_and_are_put_back(bare: pytest.MonkeyPatch) -> None:
    bare.setenv("OMP_NUM_THREADS", "7")
    before = dict(os.environ)
    with env.exported(env.child_environment(1)):
        assert os.environ["OMP_NUM_THREADS"] == "1"
        assert os.environ["OMP_WAIT_POLICY"] == "PASSIVE"
    assert dict(os.environ) == before


def test_child_environment_needs_a_thread() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        env.child_environment(0)


def test_environment_holds_no_host_name_and_no_path(bare: pytest.MonkeyPatch) -> None:
    bare.setenv("LD_PRELOAD", "")
    text = env.collect_environment(num_threads=1).model_dump_json()
    assert platform.node() not in text
    assert str(Path.home()) not in text


@pytest.mark.parametrize(
    "change",
    [
        {"num_threads": 2},
        {"variables": {"OMP_WAIT_POLICY": "ACTIVE"}},
        {"variables": {"CXX": "clang++"}},
        {"packages": {"torch": "0"}},
        {"python_version": "3.99.0"},
        {"os_description": "other"},
        {"device_driver_version": "1"},
    ],
    ids=str,
)
def test_environment_digest_moves_with_what_changes_a_computation(
    change: dict[str, object],
) -> None:
    here = env.collect_environment(num_threads=1)
    assert env.environment_digest(here.model_copy(update=change)) != env.environment_digest(here)


@pytest.mark.parametrize(
    "change",
    [
        {"vcs_dirty": None, "vcs_revision": None},
        {"host_memory_bytes": 1},
        {"host_cpu_model_name": "other"},
        {"device_model": "other"},
    ],
    ids=str,
)
def test_environment_digest_ignores_checkout_and_hardware(change: dict[str, object]) -> None:
    here = env.collect_environment(num_threads=1)
    assert env.environment_digest(here.model_copy(update=change)) == env.environment_digest(here)


def test_environment_digest_ignores_the_store(bare: pytest.MonkeyPatch) -> None:
    here = env.collect_environment()
    bare.setenv("LANEWISE_STORE", "elsewhere")
    there = env.collect_environment()
    assert there.variables == {"LANEWISE_STORE": "<set>"}
    assert env.environment_digest(here) == env.environment_digest(there)


def test_source_digest_moves_with_a_kernel_and_not_with_a_note(tmp_path: Path) -> None:
    (tmp_path / "kernel.py").write_text("a = 1\n")
    first = env.source_digest(tmp_path)
    (tmp_path / "README.md").write_text("words\n")
    assert env.source_digest(tmp_path) == first
    (tmp_path / "kernel.py").write_text("a = 2\n")
    assert env.source_digest(tmp_path) != first


def test_checkout_state_of_a_clean_and_a_changed_checkout(tmp_path: Path) -> None:
    git(tmp_path, "init", "--quiet")
    (tmp_path / "file.py").write_text("a = 1\n")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "--quiet", "-m", "first")
    revision, dirty = env.checkout_state(tmp_path)
    assert revision is not None
    assert len(revision) == 40
    assert dirty is False
    (tmp_path / "untracked.py").write_text("b = 1\n")
    assert env.checkout_state(tmp_path) == (revision, False)
    (tmp_path / "file.py").write_text("a = 2\n")
    assert env.checkout_state(tmp_path) == (revision, True)


def test_an_installed_package_is_no_checkout(tmp_path: Path) -> None:
    git(tmp_path, "init", "--quiet")
    installed = tmp_path / "site-packages" / "lanewise"
    installed.mkdir(parents=True)
    assert env.checkout_state(installed) == (None, None)
    assert env.checkout_state(tmp_path / "missing") == (None, None)


@pytest.mark.parametrize(
    ("library", "before", "expected"),
    [
        (("glibc", "2.36"), None, "glibc.malloc.hugetlb=1"),
        (("glibc", "2.35"), "glibc.malloc.check=1", "glibc.malloc.check=1:glibc.malloc.hugetlb=1"),
        (("glibc", "2.36"), "glibc.malloc.hugetlb=0", "glibc.malloc.hugetlb=0"),
        (("glibc", "2.31"), None, None),
        (("glibc", "2.9"), None, None),
        (("", ""), None, None),
    ],
)
def test_malloc_is_told_about_huge_pages_where_it_can_be(monkeypatch, library, before, expected):
    monkeypatch.setattr(env.platform, "libc_ver", lambda: library)
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    if before is not None:
        monkeypatch.setenv("GLIBC_TUNABLES", before)
    assert env.child_environment(1, starts_anew=True).get("GLIBC_TUNABLES") == expected
    assert "GLIBC_TUNABLES" not in env.child_environment(1), "malloc has read its own already"


@pytest.mark.parametrize(
    ("library", "value", "kernel", "said"),
    [
        (("", ""), None, "", "not asked for: the C library is not glibc"),
        (("glibc", "2.31"), None, "", "not asked for: glibc 2.31 is older than 2.35"),
        (("glibc", "2.36"), None, "", "not asked for: GLIBC_TUNABLES does not name"),
        (
            ("glibc", "2.36"),
            "a=1:glibc.malloc.hugetlb=1",
            "always [madvise] never",
            "glibc.malloc.hugetlb=1, the kernel offers madvise",
        ),
        (
            ("glibc", "2.36"),
            "glibc.malloc.hugetlb=1",
            "always madvise [never]",
            "glibc.malloc.hugetlb=1, the kernel offers never",
        ),
        (
            ("glibc", "2.36"),
            "glibc.malloc.hugetlb=1",
            None,
            "glibc.malloc.hugetlb=1, the kernel offers no transparent huge pages",
        ),
    ],
)
def test_what_malloc_was_told_is_said_with_what_the_kernel_offers(
    monkeypatch, tmp_path, library, value, kernel, said
):
    monkeypatch.setattr(env.platform, "libc_ver", lambda: library)
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    if value is not None:
        monkeypatch.setenv("GLIBC_TUNABLES", value)
    file = tmp_path / "enabled"
    if kernel is not None:
        file.write_text(kernel)
    monkeypatch.setattr(env, "_HUGE_PAGES_FILE", file)
    assert env.huge_pages_reason().startswith(said)
