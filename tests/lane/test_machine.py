import os
import platform
from typing import Literal

import pytest

from lanewise.errors import UsageError
from lanewise.lane import gpu, machine


@pytest.mark.parametrize(
    "name",
    ["cpu-x86_64-2c", "cpu-aarch64-128c", "h100-sxm-80gb", "h200-sxm-141gb", "a100-pcie-40gb"],
)
def test_machine_classes(name: str) -> None:
    assert machine.fault(name) is None


@pytest.mark.parametrize(
    "name",
    ["h200", "H100", "h100-sxm", "h100-80gb", "cpu", "cpu-x86_64", "cpu-x86_64-0c", "", "auto"],
)
def test_nicknames_are_refused_with_the_rule(name: str) -> None:
    with pytest.raises(
        UsageError, match=r"nickname.*h200-sxm-141gb.*cpu-x86_64-2c.*lanewise doctor"
    ):
        machine.require_machine_class(name)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("NVIDIA H100 80GB HBM3, 81559", "h100-sxm-80gb"),
        ("NVIDIA H100 PCIe, 81559", "h100-pcie-80gb"),
        ("NVIDIA H100 NVL, 95830", "h100-nvl-94gb"),
        ("NVIDIA H200, 143771", "h200-sxm-141gb"),
        ("NVIDIA H200 NVL, 143771", "h200-nvl-141gb"),
        ("NVIDIA A100-SXM4-40GB, 40960", "a100-sxm-40gb"),
        ("NVIDIA GeForce RTX 4090, 24564", "rtx4090-pcie-24gb"),
    ],
)
def test_gpu_class_of_what_nvidia_smi_prints(line: str, expected: str) -> None:
    assert machine.detect_machine_class("cuda", query_gpu=lambda: line) == expected
    assert machine.fault(expected) is None
    assert machine.device_type_of(expected) == "cuda"


def test_nonsense_from_nvidia_smi_is_an_error() -> None:
    with pytest.raises(UsageError, match="nvidia-smi answered 'No devices'"):
        machine.gpu_class("No devices")


def test_cpu_class_counts_usable_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "AMD64")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {0, 2, 5}, raising=False)
    assert machine.detect_machine_class("cpu") == "cpu-x86_64-3c"


def test_cores_without_affinity_come_from_cpu_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 7)
    assert machine.usable_cores() == 7


def test_the_present_machine_has_a_class() -> None:
    assert machine.fault(machine.detect_machine_class("cpu")) is None


def test_a_missing_gpu_is_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu.shutil, "which", lambda _name: None)
    with pytest.raises(UsageError, match="nvidia-smi is not on PATH; use device cpu"):
        machine.detect_machine_class("cuda")


H100 = "h100-sxm-80gb"
HERE = {"cpu": "cpu-x86_64-2c", "cuda": "l4-pcie-24gb"}


@pytest.mark.parametrize(
    ("device", "asked", "named", "gpu_answers", "expected", "here", "num_notes"),
    [
        ("auto", None, None, False, "cpu-x86_64-2c", True, 0),
        ("auto", None, None, True, "l4-pcie-24gb", True, 0),
        ("cpu", None, None, True, "cpu-x86_64-2c", True, 0),
        ("cuda", None, None, True, "l4-pcie-24gb", True, 0),
        ("cuda", None, None, False, machine.STAND_IN_GPU_CLASS, False, 2),
        ("auto", H100, None, False, H100, False, 1),
        ("cuda", H100, None, True, H100, False, 0),
        ("auto", None, H100, False, H100, False, 1),
        ("auto", "cpu-x86_64-8c", H100, True, "cpu-x86_64-8c", False, 0),
    ],
)
def test_a_lane_is_shown_for_what_was_asked_and_says_what_it_cannot_know(
    device: Literal["auto", "cpu", "cuda"],
    asked: str | None,
    named: str | None,
    gpu_answers: bool,
    expected: str,
    here: bool,
    num_notes: int,
) -> None:
    shown = machine.machine_to_show(
        device, asked=asked, named=named, gpu_answers=lambda: gpu_answers, detect=HERE.__getitem__
    )
    assert (shown.machine_class, shown.here) == (expected, here)
    assert shown.device_type == ("cpu" if expected.startswith("cpu") else "cuda")
    assert len(shown.notes) == num_notes
    assert all("here" in note for note in shown.notes)


def test_a_class_without_the_device_is_refused() -> None:
    with pytest.raises(UsageError, match="has no device 'cpu'; use --device cuda"):
        machine.machine_to_show("cpu", asked=H100, named=None, gpu_answers=lambda: False)
