"""Running totals that start anew at boundaries inside a row: what a token can know of its document or its line.

Every function takes `starts` [B, T]: for each position the index of the latest boundary at or before it. All shapes are
static and nothing is read on the host, so they may stand inside a compiled block. Legend: B batch, T sequence.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def document_boundaries(
    document_ids: Tensor | None, shape: torch.Size, device: torch.device
) -> Tensor:
    """Where a document begins, bool [B, T]; the first position of a row always does.

    Args:
        document_ids: int64 [B, T], changing where a document begins; None when every row is one document.
        shape: (B, T).
        device: of the result when there are no ids.
    """
    if document_ids is None:
        return (torch.arange(shape[1], device=device) == 0).expand(shape)
    return F.pad(document_ids[:, 1:] != document_ids[:, :-1], (1, 0), value=True)


def latest_starts(boundaries: Tensor) -> Tensor:
    """Index of the latest boundary at or before each position, int64 [B, T].

    Args:
        boundaries: bool [B, T], true at position 0.
    """
    positions = torch.arange(boundaries.shape[1], device=boundaries.device)
    return torch.where(boundaries, positions, 0).cummax(dim=1).values


def running_sum(values: Tensor, starts: Tensor) -> Tensor:
    """Sum of `values` from the latest start up to and including each position, int64 [B, T]."""
    inclusive = values.to(torch.int64).cumsum(dim=1)
    return inclusive - F.pad(inclusive, (1, -1)).gather(1, starts)


def running_min(values: Tensor, starts: Tensor) -> Tensor:
    """Least of `values` (int64) from the latest start up to and including each position, int64 [B, T].

    Every segment is lowered by more than the span of all values for each position its start lies further right, so that
    no earlier segment can hold the minimum.
    """
    span = values.max() - values.min() + 1
    lowering = starts * span
    return (values - lowering).cummin(dim=1).values + lowering
