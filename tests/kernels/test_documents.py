import pytest
import torch

from lanewise.kernels.documents import ChunkDocuments, cumsum_step_by_step

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
    sums = documents.cumsum(padded)
    torch.testing.assert_close(sums[:, :, : IDS.shape[1]], direct_sum(x))
    upstream = torch.randn(sums.shape, generator=rng, dtype=torch.float64)
    (expected,) = torch.autograd.grad(sums, padded, upstream)
    torch.testing.assert_close(documents.reverse_cumsum(upstream), expected)
    step_by_step = cumsum_step_by_step(x.transpose(1, 2), IDS).transpose(1, 2)
    torch.testing.assert_close(step_by_step, direct_sum(x))


def test_masks_of_chunks() -> None:
    documents = ChunkDocuments.of(IDS[:1], 3, 3)
    assert documents.before_CBL[:, 0].int().tolist() == [[0, 0, 0], [0, 0, 0], [1, 0, 0]]
    assert documents.last_CBL[:, 0].int().tolist() == [[0, 0, 1], [1, 1, 1], [0, 1, 1]]
    assert documents.continues_BT[0].int().tolist() == [1, 0, 0, 1, 1, 1, 0, 1, 0]
    assert documents.same_CBLL[0, 0].int().tolist() == [[1, 0, 0], [1, 1, 0], [0, 0, 1]]
