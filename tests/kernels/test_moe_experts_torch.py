import pytest
import torch
from torch import Tensor

from lanewise.kernels import moe_experts_torch  # registers the ops


@pytest.mark.parametrize("activation", ["gelu", "swiglu", "relu2"])
@pytest.mark.parametrize("last", [2, -1])
def test_the_op_is_registered_right(activation: str, last: int) -> None:
    rng = torch.Generator().manual_seed(0)
    columns = 10 if activation == "swiglu" else 5

    def draw(*size: int) -> Tensor:
        return torch.randn(size, generator=rng).requires_grad_()

    ids = torch.tensor([[0, 2], [2, 0], [2, 1], [0, last]])
    args = (draw(4, 6), ids, draw(4, 2), draw(4, 6, columns), draw(4, 5, 6), activation)
    torch.library.opcheck(torch.ops.lanewise.moe_sorted.default, args)


def test_the_sorted_path_has_no_row_for_a_null_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    multiplied: list[tuple[int, int]] = []
    grouped_mm, grouped_outer = moe_experts_torch._grouped_mm, moe_experts_torch._grouped_outer

    def watched_mm(rows: Tensor, *args: object, **kwargs: object) -> None:
        multiplied.append((rows.shape[0], sum(args[1])))  # type: ignore[call-overload]
        grouped_mm(rows, *args, **kwargs)

    def watched_outer(left: Tensor, *args: object) -> Tensor:
        multiplied.append((left.shape[0], sum(args[1])))  # type: ignore[call-overload]
        return grouped_outer(left, *args)

    monkeypatch.setattr(moe_experts_torch, "_grouped_mm", watched_mm)
    monkeypatch.setattr(moe_experts_torch, "_grouped_outer", watched_outer)
    ids = torch.tensor([[0, -1], [-1, -1], [2, 1], [-1, 2]])
    x = torch.ones(4, 2, requires_grad=True)
    weights = torch.ones(3, 2, 2, requires_grad=True), torch.ones(3, 2, 2, requires_grad=True)
    moe_experts_torch.sorted_by_expert(x, ids, torch.ones(4, 2), *weights, "gelu").sum().backward()
    assert multiplied == [(4, 4)] * 6  # two products forward, two and two outer products backward


def test_the_padded_path_pads_to_the_largest_load() -> None:
    sizes: list[int] = []

    class Shapes(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            if func is torch.bmm:
                sizes.append(args[0].shape[1])
            return func(*args, **(kwargs or {}))

    ids = torch.tensor([[0], [0], [0], [1]])
    with Shapes():
        moe_experts_torch.padded(
            torch.ones(4, 2),
            ids,
            torch.ones(4, 1),
            torch.ones(3, 2, 2),
            torch.ones(3, 2, 2),
            "gelu",
        )
    assert sizes == [3, 3]
