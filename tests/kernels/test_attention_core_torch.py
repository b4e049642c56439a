import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from lanewise.kernels import attention_core_torch as kernel

FLASH = "aten::_scaled_dot_product_flash_attention_for_cpu"
MATH = "aten::_scaled_dot_product_attention_math"


def kernels_of(function, d_qk: int, d_v: int) -> set[str]:
    q, k = (torch.randn(1, 2, 8, d_qk, requires_grad=True) for _ in range(2))
    v = torch.randn(1, 2, 8, d_v, requires_grad=True)
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        function(q, k, v, 0.5).sum().backward()
    return {event.key for event in profiler.key_averages()}


@pytest.mark.parametrize(("d_qk", "d_v"), [(12, 8), (8, 12)])
def test_padding_makes_the_flash_kernel_eligible(d_qk: int, d_v: int) -> None:
    seen = kernels_of(kernel.padded, d_qk, d_v)
    assert {FLASH, f"{FLASH}_backward"} <= seen
    assert MATH not in seen


def test_unequal_head_dims_send_torch_to_its_math_path() -> None:
    """The reason for `padded.torch`; when torch learns unequal dims, retire it."""
    assert MATH in kernels_of(kernel.sdpa, 12, 8)
    assert FLASH in kernels_of(kernel.sdpa, 8, 8)


@pytest.mark.parametrize("t", [1, 31, 32, 64, 97, 512, 1_000])
def test_blocks_cover_every_query_once(t: int) -> None:
    blocks = kernel._blocks(t)
    assert [row for start, stop in blocks for row in range(start, stop)] == list(range(t))
    assert len(blocks) <= kernel.NUM_BLOCKS


def test_masked_key_blocks_are_never_multiplied(monkeypatch: pytest.MonkeyPatch) -> None:
    products: list[tuple[int, int]] = []
    real = torch.baddbmm

    def spy(mask, a, b, **kwargs):
        products.append((a.shape[1], b.shape[2]))
        return real(mask, a, b, **kwargs)

    monkeypatch.setattr(torch, "baddbmm", spy)
    q, k, v = (torch.randn(1, 1, 128, 4) for _ in range(3))
    kernel.blocked(q, k, v, 1.0)
    assert products == [(32, 32), (32, 64), (32, 96), (32, 128)]  # rows, visible keys
