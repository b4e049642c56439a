"""What every block with a decoding state must show: `extend` in any pieces equals `forward`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lanewise.models.layers import Block, BlockState

PIECES: tuple[tuple[int, ...], ...] = ((16,), (1,) * 16, (3, 1, 4, 8), (1, 15), (15, 1), (5, 6, 5))
"""Ways to cut 16 tokens."""


def extend_in_pieces(block: Block, x: Tensor, pieces: Sequence[int]) -> tuple[Tensor, BlockState]:
    """Outputs of all pieces [B, T, d] and the last state."""
    state: BlockState | None = None
    deltas = []
    with torch.no_grad():
        for piece in x.split(list(pieces), dim=1):
            output, state = block.extend(piece, state)
            deltas.append(output.delta)
    assert state is not None
    return torch.cat(deltas, dim=1), state
