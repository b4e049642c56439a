from pathlib import Path

import pytest

from lanewise.errors import StoreError
from lanewise.lab.arms import ArmBuilder
from lanewise.lab.caches import CompileCaches
from lanewise.lane.load import load_lane


@pytest.fixture(name="arms", scope="module")
def arms_fixture():
    return ArmBuilder(
        lane=load_lane("nam56r-tiny"),
        machine_class="cpu-x86_64-2c",
        device_type="cpu",
        design="leave-one-out",
    ).build("regional_compile")


def test_a_warm_cache_is_one_folder_per_configuration_and_filled_once(tmp_path, arms):
    caches = CompileCaches.of(str(tmp_path), "c", "warm")
    assert caches.folder(arms.treated) == caches.folder(arms.treated)
    assert caches.folder(arms.treated) != caches.folder(arms.control)
    assert not caches.needs_filling(arms.control), "it compiles nothing"
    assert caches.needs_filling(arms.treated)
    caches.filled(arms.treated)
    assert not caches.needs_filling(arms.treated)
    caches.clear()
    assert caches.needs_filling(arms.treated)


def test_every_cold_run_finds_an_empty_folder_of_its_own(tmp_path, arms):
    caches = CompileCaches.of(str(tmp_path), "c", "cold")
    one, other = caches.folder(arms.treated), caches.folder(arms.treated)
    assert one != other
    assert list(Path(one).iterdir()) == []
    assert not caches.needs_filling(arms.treated)
    caches.clear_cold()
    assert not Path(one).exists()


def test_a_disk_that_refuses_is_named(tmp_path, arms):
    (tmp_path / "file").touch()
    caches = CompileCaches.of(str(tmp_path / "file"), "c", "cold")
    with pytest.raises(StoreError, match="free some space"):
        caches.folder(arms.treated)
