import pytest

from lanewise.lane.peaks import peak


@pytest.mark.parametrize(
    ("machine_class", "compute", "expected"),
    [
        ("h100-sxm-80gb", "bf16", 989.5e12),
        ("h200-sxm-141gb", "bf16", 989.5e12),
        ("h100-pcie-80gb", "bf16", 756.5e12),
        ("h100-sxm-80gb", "fp32", 67.0e12),
    ],
)
def test_dense_peaks_of_data_sheets(machine_class: str, compute: str, expected: float) -> None:
    found = peak(machine_class, compute)
    assert found is not None
    assert found.flops_per_second == expected
    assert "dense" in found.source


@pytest.mark.parametrize("machine_class", ["cpu-x86_64-2c", "b300-sxm-288gb", "h100", ""])
def test_what_is_not_known_is_none(machine_class: str) -> None:
    assert peak(machine_class, "bf16") is None
