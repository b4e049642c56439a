"""The identity of a machine: class and instance."""

from pathlib import Path

import pytest

from lanewise.lane.gpu import Gpu
from lanewise.receipts import machine


def test_machine_class_moves_with_the_class_and_the_instance_does_not() -> None:
    one, other = machine.collect_machine("cpu-x86_64-2c"), machine.collect_machine("cpu-x86_64-4c")
    assert one.class_digest != other.class_digest
    assert one.instance_digest == other.instance_digest
    card, twin = (
        Gpu(name="NVIDIA H100 80GB HBM3", memory_mib=81559, driver_version="580.1", uuid=uuid)
        for uuid in ("GPU-1", "GPU-2")
    )
    with_card = machine.collect_machine("h100-sxm-80gb", gpu=card)
    with_twin = machine.collect_machine("h100-sxm-80gb", gpu=twin)
    assert with_card.class_digest == with_twin.class_digest
    assert with_card.instance_digest != with_twin.instance_digest
    assert "GPU-1" not in with_card.model_dump_json()
    assert with_card.class_digest != machine.collect_machine("h100-sxm-80gb").class_digest


def test_machine_id_is_hashed_and_files_are_tried_in_order(tmp_path: Path) -> None:
    bad, good = tmp_path / "bad", tmp_path / "good"
    bad.write_text("uninitialized\n")
    good.write_text("0123456789abcdef0123456789abcdef\n")
    found = machine._installation_id((tmp_path / "missing", bad, good))
    assert found == "0123456789abcdef0123456789abcdef"
    assert found not in machine._instance_digest(found)


def test_a_container_without_an_id_says_that_only_its_boot_tells_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(machine, "command_output", lambda *_: None)
    monkeypatch.setattr(machine, "INSTALLATION_ID_FILES", (tmp_path / "missing",))
    boot = tmp_path / "boot"
    monkeypatch.setattr(machine, "BOOT_ID_FILE", boot)
    seen = []
    for content in ("0123456789abcdef0123456789abcdef", "fedcba9876543210fedcba9876543210"):
        boot.write_text(content)
        seen.append(machine.collect_machine("cpu-x86_64-2c"))
    assert [one.instance_source for one in seen] == ["boot", "boot"]
    assert seen[0].instance_digest != seen[1].instance_digest
    (tmp_path / "missing").write_text("0123456789abcdef0123456789abcdef")
    assert machine.collect_machine("cpu-x86_64-2c").instance_source == "installation"
