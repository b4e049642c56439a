"""Published dense matmul peaks of devices, by machine class and compute precision, in FLOP/s of one device.

Dense figures: the data sheets print twice as much with structured sparsity. fp32 is the rate without tensor cores, since
torch multiplies fp32 in full precision unless told otherwise.
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


_H100: Final = "NVIDIA H100 data sheet, dense"
_H200: Final = "NVIDIA H200 data sheet, dense"
_A100: Final = "NVIDIA A100 data sheet, dense"
_PEAKS: Final[Mapping[tuple[str, str], Mapping[str, Peak]]] = MappingProxyType(
    {
        (model, form): {
            "bf16": Peak(flops_per_second=bf16, source=source),
            "fp32": Peak(flops_per_second=fp32, source=source),
        }
        for model, form, bf16, fp32, source in (
            ("h100", "sxm", 989.4e12, 66.9e12, _H100),
            ("h100", "pcie", 756e12, 51e12, _H100),
            ("h100", "nvl", 835e12, 60e12, _H100),
            ("h200", "sxm", 989.4e12, 66.9e12, _H200),
            ("h200", "nvl", 835e12, 60e12, _H200),
            ("a100", "sxm", 312e12, 19.5e12, _A100),
            ("a100", "pcie", 312e12, 19.5e12, _A100),
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
