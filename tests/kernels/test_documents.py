import math

import pytest
import torch

from lanewise.kernels.documents import ChunkDocuments, cumsum_step_by_step, cumulated_angle

IDS = torch.tensor([[0, 0, 1, 2, 2, 2, 2, 3, 3], [0, 1, 2, 3, 4, 5, 6, 7, 8]])


def direct_sum(x_BHTn: torch.Tensor) -> torch.Tensor:
    """Every pair of steps looked at once."""
    length = IDS.shape[1]
    total = torch.zeros_like(x_BHTn)
    for row in range(IDS.shape[0]):
        for t in range(length):
            for s in range(t + 1):
                if IDS[row, s] == IDS[row, t]:
                    total[row, :, t] += x_BHTn[row, :, s]
    return total


@pytest.mark.parametrize(("num_chunks", "chunk"), [(1, 9), (3, 3), (2, 5), (9, 1), (5, 2)])
def test_sums_over_a_document_however_it_is_cut(num_chunks: int, chunk: int) -> None:
    rng = torch.Generator().manual_seed(0)
    padding = num_chunks * chunk - IDS.shape[1]
    x = torch.randn(2, 3, IDS.shape[1], 2, generator=rng, dtype=torch.float64)
    padded = torch.nn.functional.pad(x, (0, 0, 0, padding)).requires_grad_()
    documents = ChunkDocuments.of(IDS, num_chunks, chunk)
    sums = cumulated_angle(padded, num_chunks, documents)
    torch.testing.assert_close(sums[:, :, : IDS.shape[1]].cos(), direct_sum(x).cos())
    torch.testing.assert_close(sums[:, :, : IDS.shape[1]].sin(), direct_sum(x).sin())
    upstream = torch.randn(sums.shape, generator=rng, dtype=torch.float64)
    (expected,) = torch.autograd.grad(sums, padded, upstream)
    torch.testing.assert_close(documents.reverse_cumsum(upstream), expected)
    step_by_step = cumsum_step_by_step(x.transpose(1, 2), IDS).transpose(1, 2)
    torch.testing.assert_close(step_by_step, direct_sum(x))


@pytest.mark.parametrize("with_documents", [False, True], ids=["one_document", "documents"])
def test_the_rounding_of_an_angle_does_not_grow_with_the_row(with_documents: bool) -> None:
    rng = torch.Generator().manual_seed(0)
    turn = 3 * torch.rand(1, 8, 4096, 8, generator=rng)  # about 1,000 whole turns
    truth, documents = turn.double().cumsum(2), None
    if with_documents:
        documents = ChunkDocuments.of((torch.arange(4096)[None] >= 100).long(), 64, 64)
        truth[:, :, 100:] -= truth[:, :, 99:100].clone()
    theta = cumulated_angle(turn, 64, documents)
    error = ((theta.double() - truth) / 2).sin().square().mean((0, 1, 3)).sqrt()
    assert error[-128:].mean() < 1.5 * error[:128].mean()
    assert theta.max() < 2 * math.pi + 64 * 3


def test_masks_of_chunks() -> None:
    documents = ChunkDocuments.of(IDS[:1], 3, 3)
    assert documents.before_CBL[:, 0].int().tolist() == [[0, 0, 0], [0, 0, 0], [1, 0, 0]]
    assert documents.last_CBL[:, 0].int().tolist() == [[0, 0, 1], [1, 1, 1], [0, 1, 1]]
    assert documents.same_CBLL[0, 0].int().tolist() == [[1, 0, 0], [1, 1, 0], [0, 0, 1]]
