import pytest
import torch
from torch import Tensor

import lanewise.kernels.mimo_scan_torch  # noqa: F401  registers the op


@pytest.mark.parametrize("has_documents", [False, True], ids=["one_document", "documents"])
@pytest.mark.parametrize("num_chunks", [1, 3])
def test_the_op_is_registered_right(num_chunks: int, has_documents: bool) -> None:
    rng = torch.Generator().manual_seed(0)
    batch, heads, rank, chunk, state, head_dim = 2, 2, 2, 3, 4, 3

    def draw(*size: int) -> Tensor:
        return torch.randn(num_chunks, batch * heads, *size, generator=rng)

    rows = rank * chunk
    args = (
        draw(rows, state),
        draw(rows, state),
        draw(rows, head_dim),
        -draw(chunk).abs(),
        draw(chunk).abs(),
        draw(chunk).abs(),
    )
    length = num_chunks * chunk
    documents = (torch.arange(length) >= 2).to(torch.int64).expand(batch, -1).contiguous()
    torch.library.opcheck(
        torch.ops.lanewise.mimo_scan_core.default,
        (
            *(a.requires_grad_() for a in args),
            documents if has_documents else None,
            rank,
        ),
    )
