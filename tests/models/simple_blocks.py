"""The smallest blocks with the interface of a block: one that looks back, one that does not."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lanewise.models.layers import (
    NO_CONTEXT,
    Block,
    BlockOutput,
    BlockState,
    Context,
    Linear,
    init_normal,
)


class SumState(NamedTuple):
    total: Tensor


class RunningSum(Block):
    """delta_t = tanh(W Σ_{s ≤ t, same document} x_s)."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.map = Linear(hidden_size, hidden_size)

    def reset_parameters(
        self, *, std: float, output_std: float, generator: torch.Generator
    ) -> None:
        init_normal(self.map.weight, std, generator)

    def forward(self, x: Tensor, context: Context = NO_CONTEXT) -> BlockOutput:
        length = x.shape[1]
        visible = torch.ones(length, length, dtype=torch.bool).tril().expand(len(x), -1, -1)
        if context.document_ids is not None:
            ids = context.document_ids
            visible = visible & (ids[:, :, None] == ids[:, None, :])
        return BlockOutput(torch.tanh(self.map(visible.to(x.dtype) @ x)))

    def extend(
        self, x: Tensor, state: BlockState | None, context: Context = NO_CONTEXT
    ) -> tuple[BlockOutput, BlockState]:
        before = x.new_zeros(len(x), 1, x.shape[2]) if state is None else SumState(*state).total
        totals = before + x.cumsum(1)
        return BlockOutput(torch.tanh(self.map(totals))), SumState(totals[:, -1:])


class TokenWise(Block):
    """delta = tanh(W x), and two 'experts' per token; remembers the shape of every input."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.map = Linear(hidden_size, hidden_size)
        self.shapes: list[torch.Size] = []
        self.observed: list[Tensor] = []

    def reset_parameters(
        self, *, std: float, output_std: float, generator: torch.Generator
    ) -> None:
        init_normal(self.map.weight, std, generator)

    def forward(self, x: Tensor, context: Context = NO_CONTEXT) -> BlockOutput:
        self.shapes.append(x.shape)
        ids = context.expert_ids
        if ids is None:
            ids = (x.detach().flatten(0, 1)[:, :2] > 0).to(torch.int64)
        return BlockOutput(torch.tanh(self.map(x)), expert_ids=ids)

    def extend(
        self, x: Tensor, state: BlockState | None, context: Context = NO_CONTEXT
    ) -> tuple[BlockOutput, BlockState]:
        return self(x), ()

    def observe(self, output: BlockOutput) -> None:
        assert output.expert_ids is not None
        self.observed.append(output.expert_ids)


def pieces(length: int) -> list[list[int]]:
    """Ways to cut a text: whole, token by token, uneven."""
    uneven = [3, 1, 4]
    return [
        [length],
        [1] * length,
        [*uneven, length - sum(uneven)] if length > sum(uneven) else [length],
    ]


def extend_in_pieces(block: Block, x: Tensor, lengths: list[int]) -> Tensor:
    """`extend` over a text cut into pieces, [B, T, d]."""
    state: BlockState | None = None
    deltas = []
    for piece in x.split(lengths, dim=1):
        output, state = block.extend(piece, state)
        deltas.append(output.delta)
    return torch.cat(deltas, dim=1)
