"""Published dense matmul peaks of devices, by machine class and compute precision, in FLOP/s of one device.

The vendor prints bf16 with structured sparsity, which doubles it; the peak here is half of what is printed. fp32 is the
rate without tensor cores, since torch multiplies fp32 in full precision unless told otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final


@dataclass(frozen=True, kw_only=True, slots=True)
class Peak:
    """A published peak.

    Attributes:
        flops_per_second: of one device.
        source: where it is printed.
    """

    flops_per_second: float
    source: str


_H100: Final = "https://www.nvidia.com/en-us/data-center/h100/"
_H100_PCIE: Final = "NVIDIA H100 PCIe data sheet"
_H200: Final = "https://www.nvidia.com/en-us/data-center/h200/"
_A100: Final = "https://www.nvidia.com/en-us/data-center/a100/"
_TERA: Final = 1e12
_PEAKS: Final[Mapping[tuple[str, str], Mapping[str, Peak]]] = MappingProxyType(
    {
        (model, form): {
            "bf16": Peak(
                flops_per_second=sparse_bf16 / 2 * _TERA,
                source=f"dense, half of {sparse_bf16:,} TFLOPS with sparsity, {source}",
            ),
            "fp32": Peak(flops_per_second=fp32 * _TERA, source=f"dense, {source}"),
        }
        for model, form, sparse_bf16, fp32, source in (
            ("h100", "sxm", 1979, 67.0, _H100),
            ("h100", "pcie", 1513, 51.0, _H100_PCIE),
            ("h100", "nvl", 1671, 60.0, _H100),
            ("h200", "sxm", 1979, 67.0, _H200),
            ("h200", "nvl", 1671, 60.0, _H200),
            ("a100", "sxm", 624, 19.5, _A100),
            ("a100", "pcie", 624, 19.5, _A100),
        )
    }
)


def peak(machine_class: str, compute: str) -> Peak | None:
    """The published peak of a machine class such as `h100-sxm-80gb`; None where none is known, as for a CPU.

    Args:
        machine_class: a checked class (`lane.machine`).
        compute: `fp32` or `bf16`.
    """
    model, _, rest = machine_class.partition("-")
    form = rest.partition("-")[0]
    return _PEAKS.get((model, form), {}).get(compute)
