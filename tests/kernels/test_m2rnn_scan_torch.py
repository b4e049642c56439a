import torch

import lanewise.kernels.m2rnn_scan_torch  # noqa: F401  registers the op


def test_the_op_is_registered_right() -> None:
    rng = torch.Generator().manual_seed(0)
    q, k, v, weight = (
        torch.randn(size, generator=rng).requires_grad_()
        for size in ((2, 5, 3), (2, 5, 3), (2, 5, 2, 4), (2, 4, 4))
    )
    forget = torch.rand(2, 5, 2, generator=rng).requires_grad_()
    inputs = (q, k, v, weight, forget, 0.5)
    document_ids = torch.tensor([[0, 0, 1, 1, 2], [0, 1, 1, 1, 1]])
    for ids in (None, document_ids):
        torch.library.opcheck(torch.ops.lanewise.m2rnn_fused.default, (*inputs, ids))
