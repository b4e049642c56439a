import pytest
import torch

from lanewise.kernels.documents import ChunkDocuments


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_masks_of_chunks_compile_to_the_same_masks() -> None:
    ids = torch.tensor([[0] * 20 + [1] * 12 + [2] * 32, [0] * 48 + [3] * 16])
    compiled = torch.compile(lambda given: ChunkDocuments.of(given, 4, 16))
    for eager, got in zip(ChunkDocuments.of(ids, 4, 16), compiled(ids), strict=True):
        assert torch.equal(eager, got)
    assert not ChunkDocuments.of(ids, 4, 16).before_CBL[0].any()
