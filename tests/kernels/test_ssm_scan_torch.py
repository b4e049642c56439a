import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import lanewise.kernels.ssm_scan_torch  # noqa: F401  registers the op


@pytest.mark.parametrize("is_full", [False, True], ids=["bare", "gate_and_documents"])
@pytest.mark.parametrize("chunk_size", [2, 8], ids=["padded_chunks", "one_chunk"])
def test_the_op_is_registered_right(chunk_size: int, is_full: bool) -> None:
    rng = torch.Generator().manual_seed(0)

    def draw(*size: int) -> Tensor:
        return torch.randn(size, generator=rng)

    batch, length, groups, heads, state, head_dim, num_pairs = 2, 5, 1, 2, 4, 3, 1
    dt = F.softplus(draw(batch, length, heads))
    args = (
        draw(batch, length, groups, state),
        draw(batch, length, groups, state),
        draw(batch, length, heads, head_dim),
        dt,
        -dt,
        draw(batch, length, heads),
        draw(batch, length, num_pairs),
        draw(heads, state),
        draw(heads, state),
        draw(heads),
    )
    z = draw(batch, length, heads, head_dim).requires_grad_() if is_full else None
    documents = torch.tensor([[0, 1, 1, 2, 2]] * batch) if is_full else None
    torch.library.opcheck(
        torch.ops.lanewise.ssm_scan_chunked.default,
        (*(a.detach().requires_grad_() for a in args), z, chunk_size, documents),
    )
