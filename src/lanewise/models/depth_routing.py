"""Depth routing: a share of the tokens passes through a token-wise block, the others skip it (a tax; MoD).

    s_t      = w · x_t                                                       router score, fp32
    wanted_t = s_t is among the ⌈c·(i+1)⌉ best of s_0 … s_i                  i: position in the document
    taken_t  = wanted_t and fewer than ⌊c·(i+1)⌋ of s_0 … s_{i−1} were taken
    delta_t  = σ(s_t) · block(x_t)  if taken_t,  else 0

Mixture-of-Depths, arXiv 2404.02258, with a selection that is causal. The published form takes the ⌊c·T⌋ best of the whole
row (expert choice): whether a token is computed then depends on tokens after it, and generation needs a predictor. Here a
token is compared with the earlier tokens of its document alone (equal scores: the earlier is the better), first come,
first served; the capacity grows with the text. So a token's fate never changes later, no document touches another's
capacity, `extend` needs nothing but past scores and a count, and since Σ ⌊c·ℓ⌋ over documents is at most ⌊c·T⌋, every row
fits into the published static capacity, whatever its documents are. c = 1 takes every token.

The block sees max(1, ⌊c·T⌋) tokens of every row: those taken, in order, then others as filling, whose result is discarded,
whose routing reads −2 (skipped) and does not count as load. Filling is rare (of the order of √T tokens, where scores do
not trend), but as it is computed, it takes part in the auxiliary losses of an `E` block. Legend: B batch, T sequence, d hidden, C capacity, S = B·T.
"""

from __future__ import annotations

from fractions import Fraction
from typing import NamedTuple

import torch
from torch import Tensor

from lanewise.lane.tax_rules import exact_share, slots
from lanewise.lane.taxes import DepthRoutingSpec
from lanewise.models.layers import (
    NO_CONTEXT,
    SKIPPED_ID,
    Block,
    BlockOutput,
    BlockState,
    Context,
    Linear,
    forked,
    init_normal,
    keep_fp32,
)
from lanewise.models.segments import (
    document_boundaries,
    latest_starts,
    running_min,
    running_sum,
)

_QUERIES_AT_ONCE = 512
"""Scores are compared with all earlier ones in slices, so that no [B, T, T] is held."""


class DepthRoutingState(NamedTuple):
    """What decoding carries.

    Attributes:
        scores: fp32 [B, t], of all tokens so far.
        num_taken: int64 [B], how many of them were taken.
    """

    scores: Tensor
    num_taken: Tensor


class Selection(NamedTuple):
    """Which of the new tokens pass, and how many have passed in all.

    Attributes:
        taken: bool [B, T].
        num_taken: int64 [B], at the last token, in its document.
    """

    taken: Tensor
    num_taken: Tensor


class DepthRouted(Block):
    """A token-wise block (`E` or `D`) that only some tokens pass through.

    Args:
        block: the block; its result for a token must not depend on other tokens.
        spec: capacity.
        hidden_size: d.
    """

    def __init__(self, block: Block, spec: DepthRoutingSpec, *, hidden_size: int) -> None:
        super().__init__()
        self.capacity_factor = exact_share(spec.capacity_factor)
        self.block = block
        self.depth_router = Linear(hidden_size, 1)
        keep_fp32(self.depth_router.weight)

    def reset_parameters(
        self, *, std: float, output_std: float, generator: torch.Generator
    ) -> None:
        """The block as without routing; the router from N(0, std²)."""
        own = forked(generator)
        self.block.reset_parameters(std=std, output_std=output_std, generator=generator)
        init_normal(self.depth_router.weight, std, own)

    def forward(self, x: Tensor, context: Context = NO_CONTEXT) -> BlockOutput:
        """Select, gather, transform, scatter [B, T, d]; every shape is static."""
        batch, length, width = x.shape
        scores = self._scores(x)
        taken, _ = select(scores.detach(), self.capacity_factor, document_ids=context.document_ids)
        capacity = slots(self.capacity_factor, length)
        # A stable sort puts the taken tokens first and leaves both kinds in their order.
        positions = torch.argsort((~taken).to(torch.int8), dim=1, stable=True)[:, :capacity]
        is_taken = taken.gather(1, positions)
        output = self.block(
            x.gather(1, positions.unsqueeze(-1).expand(-1, -1, width)),
            Context(expert_ids=_gather_rows(context.expert_ids, positions, length)),
        )
        gates = torch.sigmoid(scores.gather(1, positions)) * is_taken
        delta = torch.zeros_like(x).scatter(
            1,
            positions.unsqueeze(-1).expand(-1, -1, width),
            (output.delta * gates.unsqueeze(-1)).to(x.dtype),
        )
        expert_ids = None
        if output.expert_ids is not None:
            chosen = output.expert_ids.view(batch, capacity, -1)
            chosen = torch.where(is_taken.unsqueeze(-1), chosen, SKIPPED_ID)
            expert_ids = _scatter_rows(chosen, positions, length)
        return BlockOutput(delta, output.aux_losses, expert_ids=expert_ids)

    def extend(
        self,
        x: Tensor,
        state: BlockState | None,
        context: Context = NO_CONTEXT,  # noqa: ARG002  a text is one document and has no recorded routing
    ) -> tuple[BlockOutput, BlockState]:
        """As `Block.extend`; only the tokens taken are computed."""
        before = (
            DepthRoutingState(*state)
            if state is not None
            else DepthRoutingState(
                x.new_zeros(x.shape[0], 0, dtype=self.depth_router.weight.dtype),
                torch.zeros(x.shape[0], dtype=torch.int64, device=x.device),
            )
        )
        new_scores = self._scores(x)
        scores = torch.cat([before.scores, new_scores.detach()], dim=1)
        taken, num_taken = select(
            scores, self.capacity_factor, num_new=x.shape[1], num_taken_before=before.num_taken
        )
        delta, expert_ids = torch.zeros_like(x), None
        if taken.any():
            # The block is token-wise, so the tokens of all texts may stand in one.
            output, _ = self.block.extend(x[taken].unsqueeze(0), None, NO_CONTEXT)
            gates = torch.sigmoid(new_scores[taken]).unsqueeze(-1)
            delta[taken] = (output.delta[0] * gates).to(x.dtype)
            if output.expert_ids is not None:
                chosen = torch.full(
                    (*taken.shape, output.expert_ids.shape[-1]), SKIPPED_ID, device=x.device
                )
                chosen[taken] = output.expert_ids
                expert_ids = chosen.flatten(0, 1)
        return (
            BlockOutput(delta, expert_ids=expert_ids),
            DepthRoutingState(scores, num_taken),
        )

    def observe(self, output: BlockOutput) -> None:
        """The block's affair; tokens that skipped it read −2."""
        self.block.observe(output)

    def _scores(self, x: Tensor) -> Tensor:
        """[B, T], in the dtype of the router."""
        scores: Tensor = self.depth_router(x.to(self.depth_router.weight.dtype))
        return scores.squeeze(-1)


def select(
    scores: Tensor,
    capacity_factor: Fraction,
    *,
    num_new: int | None = None,
    num_taken_before: Tensor | None = None,
    document_ids: Tensor | None = None,
) -> Selection:
    """The causal selection of the module's formula.

    Args:
        scores: [B, L], of all tokens so far.
        capacity_factor: c.
        num_new: T, how many tokens at the end are to be decided on; None is all.
        num_taken_before: int64 [B], tokens taken before those; None is 0. Not together with `document_ids`.
        document_ids: int64 [B, L], changing where a document begins; None when all is one document.
    """
    length = scores.shape[1]
    first = 0 if num_new is None else length - num_new
    starts = latest_starts(document_boundaries(document_ids, scores.shape, scores.device))
    ordinals = torch.arange(first + 1, length + 1, device=scores.device) - starts[:, first:]
    products = ordinals * capacity_factor.numerator
    rank_limit = -(-products // capacity_factor.denominator)
    capacity = products // capacity_factor.denominator
    wanted = _ranks(scores, starts, first) < rank_limit
    # used_i = min(used_{i−1} + wanted_i, capacity_i), solved: the sum so far, lowered by its worst excess so far.
    starts = (starts[:, first:] - first).clamp(min=0)
    sums = running_sum(wanted, starts)
    excess = running_min(capacity - sums, starts)
    before = sums.new_zeros(len(sums)) if num_taken_before is None else num_taken_before
    used = sums + torch.minimum(excess, before.unsqueeze(1))
    positions = torch.arange(used.shape[1], device=used.device)
    used_before = torch.cat([before.unsqueeze(1), used[:, :-1]], dim=1)
    if document_ids is not None:
        used_before = torch.where(positions == starts, 0, used_before)
    return Selection(used > used_before, used[:, -1])


def _ranks(scores: Tensor, starts: Tensor, first: int) -> Tensor:
    """How many earlier tokens of the document score at least as much, int64 [B, L − first]."""
    length = scores.shape[1]
    places = torch.arange(length, device=scores.device)
    ranks = []
    for begin in range(first, length, _QUERIES_AT_ONCE):
        end = min(begin + _QUERIES_AT_ONCE, length)
        query = places[begin:end].unsqueeze(-1)
        earlier = (places[:end] < query) & (places[:end] >= starts[:, begin:end].unsqueeze(-1))
        better = scores[:, None, :end] >= scores[:, begin:end, None]
        ranks.append((earlier & better).sum(-1))
    return torch.cat(ranks, dim=1)


def _gather_rows(expert_ids: Tensor | None, positions: Tensor, length: int) -> Tensor | None:
    """Rows of [B·T, k] at positions [B, C] → [B·C, k]."""
    if expert_ids is None:
        return None
    rows = expert_ids.view(len(positions), length, -1)
    index = positions.unsqueeze(-1).expand(-1, -1, rows.shape[-1])
    return rows.gather(1, index).flatten(0, 1)


def _scatter_rows(chosen: Tensor, positions: Tensor, length: int) -> Tensor:
    """[B, C, k] at positions [B, C] → [B·T, k], −2 elsewhere."""
    rows = chosen.new_full((len(chosen), length, chosen.shape[-1]), SKIPPED_ID)
    index = positions.unsqueeze(-1).expand_as(chosen)
    return rows.scatter(1, index, chosen).flatten(0, 1)
