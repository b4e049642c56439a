"""Document boundaries inside a packed row, for scans that work in chunks: what belongs together, as masks.

A sum over a document is a product with a mask of zeros and ones, so nothing of another document enters it, not even as
rounding; no boundary is made of a huge negative decay, which would cost the precision of the sums around it.

Shapes: B batch, T sequence (padded to C·L), C chunks, L steps a chunk, H heads, n any.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


class ChunkDocuments(NamedTuple):
    """Which steps of a row share a document.

    Attributes:
        same_CBLL: whether step s ≤ t of a chunk is in the document of t.
        before_CBL: whether a step is in the document of the last step of the chunk before; false in the first chunk.
        last_CBL: whether a step is in the document of the last step of its chunk.
    """

    same_CBLL: Tensor
    before_CBL: Tensor
    last_CBL: Tensor

    @classmethod
    def of(cls, document_ids: Tensor, num_chunks: int, chunk_size: int) -> ChunkDocuments:
        """Masks of `document_ids` [B, T], rising where a document begins; padding belongs to the last one."""
        batch, length = document_ids.shape
        padding = document_ids[:, -1:].expand(batch, num_chunks * chunk_size - length)
        ids_BT = torch.cat([document_ids, padding], dim=1)
        ids_CBL = ids_BT.unflatten(1, (num_chunks, chunk_size)).transpose(0, 1)
        last_CB1 = ids_CBL[..., -1:]
        # Ids are shifted, never the mask: C++ that Inductor writes for a mask of int64 filled in part does not compile.
        before_CB1 = torch.cat([ids_CBL[:1, :, :1] - 1, last_CB1[:-1]])
        return cls(
            (ids_CBL.unsqueeze(-1) == ids_CBL.unsqueeze(-2)).tril(),
            ids_CBL == before_CB1,
            ids_CBL == last_CB1,
        )

    def per_head(self, mask_CBL: Tensor, num_heads: int) -> Tensor:
        """[C, B, …] → [C, B·H, …], the same for all heads."""
        return mask_CBL.repeat_interleave(num_heads, dim=1)

    def cumulated_angle(self, turn_BHTn: Tensor) -> Tensor:
        """Σ over this and all earlier steps of the document, up to whole turns; differentiable."""
        same, before = self._against(turn_BHTn)
        sums, carried_BH1n = [], None
        for chunk, turn_BHLn in enumerate(turn_BHTn.unflatten(2, self._chunks).unbind(2)):
            sum_BHLn = same[chunk] @ turn_BHLn
            last_BH1n = same[chunk, :, :, -1:].double() @ turn_BHLn.double()
            if carried_BH1n is not None:
                sum_BHLn = sum_BHLn + before[chunk] * carried_BH1n.to(sum_BHLn.dtype)
                last_BH1n = last_BH1n + before[chunk, :, :, -1:] * carried_BH1n
            carried_BH1n = last_BH1n.remainder(2 * math.pi)
            sums.append(sum_BHLn)
        return torch.cat(sums, dim=2)

    def reverse_cumsum(self, x_BHTn: Tensor) -> Tensor:
        """Σ over this and all later steps of the document: the gradient of `cumulated_angle`."""
        same, before = self._against(x_BHTn)
        chunks = list(x_BHTn.unflatten(2, self._chunks).unbind(2))
        for chunk in range(len(chunks) - 1, 0, -1):
            into_last = (before[chunk] * chunks[chunk]).sum(2)
            earlier = chunks[chunk - 1].clone()
            earlier[:, :, -1] += into_last
            chunks[chunk - 1] = earlier
        return torch.cat([same[chunk].mT @ x_BHLn for chunk, x_BHLn in enumerate(chunks)], dim=2)

    @property
    def _chunks(self) -> tuple[int, int]:
        return self.same_CBLL.shape[0], self.same_CBLL.shape[-1]

    def _against(self, x_BHTn: Tensor) -> tuple[Tensor, Tensor]:
        """`same` and `before` in the dtype of x, to be used against [B, H, L, n] of a chunk."""
        return (
            self.same_CBLL.unsqueeze(2).to(x_BHTn.dtype),
            self.before_CBL[:, :, None, :, None].to(x_BHTn.dtype),
        )


def cumulated_angle(turn_BHTn: Tensor, num_chunks: int, documents: ChunkDocuments | None) -> Tensor:
    """θ: Σ of the turns up to each step of its document, up to whole turns; differentiable.

    Only the sum inside a chunk is left to the dtype of `turn_BHTn`. What enters a chunk is carried in fp64 and stripped of
    whole turns, so that the rounding of θ does not grow with the row. (In fp32 the remainder would itself be in error, by
    2·10⁻⁷ for each turn taken off.)
    """
    if documents is not None:
        return documents.cumulated_angle(turn_BHTn)
    turn_BHCLn = turn_BHTn.unflatten(2, (num_chunks, -1))
    after_BHCn = turn_BHCLn.sum(3, dtype=torch.float64).cumsum(2)
    before_BHC1n = F.pad(after_BHCn, (0, 0, 1, -1)).remainder(2 * math.pi).unsqueeze(3)
    return (turn_BHCLn.cumsum(3) + before_BHC1n.to(turn_BHTn.dtype)).flatten(2, 3)


def cumsum_step_by_step(x_BTHn: Tensor, document_ids: Tensor | None) -> Tensor:
    """Σ over this and all earlier steps of the document, for scans that go step by step anyway."""
    if document_ids is None:
        return x_BTHn.cumsum(dim=1)
    stays = stays_in_document(document_ids, x_BTHn.dtype)[:, :, None, None]
    total = torch.zeros_like(x_BTHn[:, 0])
    sums = []
    for x_BHn, stays_B11 in zip(x_BTHn.unbind(1), stays.unbind(1), strict=True):
        total = total * stays_B11 + x_BHn
        sums.append(total)
    return torch.stack(sums, dim=1)


def stays_in_document(document_ids: Tensor, dtype: torch.dtype) -> Tensor:
    """[B, T]: 1 where a step is in the document of the step before it, else 0; 0 at the start of a row."""
    stays = torch.zeros_like(document_ids, dtype=dtype)
    stays[:, 1:] = (document_ids[:, 1:] == document_ids[:, :-1]).to(dtype)
    return stays
