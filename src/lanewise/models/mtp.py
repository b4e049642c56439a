"""Multi-token prediction: every position also predicts the tokens after the next one.

With x[t] the token at position t, e[t] its input embedding and h⁰ the final hidden states of the trunk, depth j = 1 … K:

    u[t] = W_p [RMSNorm(h^{j−1}[t]) ; RMSNorm(e[t+j])]
    h^j  = RMSNorm(r + MLP(RMSNorm(r)))    with    r = u + Attention(RMSNorm(u))
    L_j  = mean over t of the cross-entropy of (head · h^j[t]) against x[t+j+1]

    loss = loss_weight · Σ_j w_j L_j       with    w_j = decay^{j−1} / Σ_i decay^{i−1}

Depth j is given x[t+j], the token that depth j − 1 (the head, for j = 1) predicts at t, and never what it must predict
itself. Gradients flow into trunk, embedding and head.

A position whose x[t+j] or x[t+j+1] lies behind the end of the row has no loss at depth j; such positions are the last
ones of the row, so causal attention keeps them from all that count. With documents, x[t+j] must belong to the document
of t: where it does not, its embedding is zero and the position has no loss. As in the main loss, the separator that
follows a document is a target of that document: it says where the document ends.

Sources: DeepSeek-V3 (arXiv 2412.19437, §2.2) for the depths; FastMTP (arXiv 2509.18362) for one block shared by all.
Legend: B batch, T sequence, d hidden, K depths, W vocabulary.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from lanewise.lane.schema import Lane, MlpSpec, MtpSpec
from lanewise.models.assemble import build_block
from lanewise.models.layers import (
    DTYPES,
    IGNORE_INDEX,
    Block,
    BlockState,
    Context,
    Linear,
    RMSNorm,
    RunBlock,
    init_normal,
    run_plainly,
)
from lanewise.models.residual import ResidualStream
from lanewise.ops.opset import OpSet


class MtpState(NamedTuple):
    """What one depth carries in decoding; never changed in place."""

    attention: BlockState
    mlp: BlockState


class MtpDepth(nn.Module):
    """The block of one depth, or of all depths when they share it.

    Args:
        lane: a validated lane with the table [model.mtp].
        ops: the op set of the model.

    Attributes:
        run_block: how the two sub-layers are run in training; replaced from outside, as the trunk's.
    """

    def __init__(self, lane: Lane, *, ops: OpSet) -> None:
        super().__init__()
        spec = lane.model
        hidden, eps = spec.hidden_size, spec.norm_eps
        self.hidden_norm = RMSNorm(hidden, eps)
        self.embedding_norm = RMSNorm(hidden, eps)
        self.projection = Linear(2 * hidden, hidden)
        plain = _plain_lane(lane)
        letter = "G" if spec.attention is None else "A"
        self.attention = build_block(letter, plain, model_switches={}, ops=ops)
        self.mlp = build_block("D", plain, model_switches={}, ops=ops)
        precision = lane.precision
        mixed = precision.compute != precision.residual
        self.residual = ResidualStream(
            num_layers=2,
            hidden_size=hidden,
            eps=eps,
            compute_dtype=DTYPES[precision.compute] if mixed else None,
            # The hidden states come in the compute dtype, so a mixed lane must widen them again.
            residual_dtype=(
                DTYPES[precision.residual] if mixed or precision.residual != "fp32" else None
            ),
            ops=ops,
        )
        self.run_block: RunBlock = run_plainly

    def reset_parameters(
        self, *, std: float, output_std: float, generator: torch.Generator
    ) -> None:
        """Draw start values in place; arguments as `Block.reset_parameters`."""
        init_normal(self.projection.weight, std, generator)
        for block in self.sub_layers:
            block.reset_parameters(std=std, output_std=output_std, generator=generator)

    @property
    def sub_layers(self) -> tuple[Block, Block]:
        """Attention and MLP."""
        return self.attention, self.mlp

    def forward(self, hidden: Tensor, embedded: Tensor, context: Context) -> Tensor:
        """h^j [B, T, d] of whole rows.

        Args:
            hidden: h^{j−1} [B, T, d].
            embedded: e[t+j] at position t [B, T, d].
            context: `document_ids` only.
        """
        carried, normed = self.residual.open(self._combine(hidden, embedded))
        for index, block in enumerate(self.sub_layers):
            output = self.run_block(block, normed, context)
            carried, normed = self.residual.add(output.delta, carried, index + 1)
        return normed

    def extend(
        self, hidden: Tensor, embedded: Tensor, state: MtpState | None
    ) -> tuple[Tensor, MtpState]:
        """h^j of the next positions of B texts, given what came before.

        Args:
            hidden: h^{j−1} [B, T, d], T ≥ 1.
            embedded: e[t+j] at position t [B, T, d].
            state: of this depth after the last call; None at the start of the texts.
        """
        before = (None, None) if state is None else state
        after = []
        carried, normed = self.residual.open(self._combine(hidden, embedded))
        for index, (block, block_state) in enumerate(zip(self.sub_layers, before, strict=True)):
            output, new_state = block.extend(normed, block_state)
            after.append(new_state)
            carried, normed = self.residual.add(output.delta, carried, index + 1)
        return normed, MtpState(*after)

    def _combine(self, hidden: Tensor, embedded: Tensor) -> Tensor:
        pair = [self.hidden_norm(hidden), self.embedding_norm(embedded.to(hidden.dtype))]
        combined: Tensor = self.projection(torch.cat(pair, dim=-1))
        return combined


class MultiTokenPrediction(nn.Module):
    """All depths and their losses.

    Args:
        lane: a validated lane with the table [model.mtp].
        ops: the op set of the model.

    Attributes:
        num_depths: K.
        weights: what the cross-entropy of each depth is multiplied by, `loss_weight` included.
        blocks: one per depth, or a single one that all share.
    """

    def __init__(self, lane: Lane, *, ops: OpSet) -> None:
        super().__init__()
        spec = lane.model.mtp
        if spec is None:
            raise ValueError("multi-token prediction was asked for and the lane has no [model.mtp]")
        self.num_depths = spec.depth
        self.weights = depth_weights(spec)
        self.ops = ops
        num_blocks = 1 if spec.sharing == "shared" else spec.depth
        self.blocks = nn.ModuleList(MtpDepth(lane, ops=ops) for _ in range(num_blocks))

    def reset_parameters(
        self, *, std: float, output_std: float, generator: torch.Generator
    ) -> None:
        """Draw start values in place; arguments as `Block.reset_parameters`."""
        for block in self._blocks:
            block.reset_parameters(std=std, output_std=output_std, generator=generator)

    @property
    def depths(self) -> tuple[MtpDepth, ...]:
        """The block of depth 1, 2, … K; the same one K times when they share it."""
        blocks = self._blocks
        return blocks if len(blocks) == self.num_depths else blocks * self.num_depths

    @property
    def sub_layers(self) -> tuple[Block, ...]:
        """Attention and MLP of every block, each once."""
        return tuple(sub_layer for block in self._blocks for sub_layer in block.sub_layers)

    @property
    def _blocks(self) -> tuple[MtpDepth, ...]:
        return tuple(block for block in self.blocks if isinstance(block, MtpDepth))

    def forward(
        self,
        hidden: Tensor,
        embedded: Tensor,
        targets: Tensor,
        head: Tensor,
        document_ids: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        """Unweighted cross-entropy of every depth, nats per token that counts; 0 where none does.

        Args:
            hidden: h⁰ [B, T, d].
            embedded: e [B, T, d], as the trunk read it.
            targets: int64 [B, T], x[t+1] at position t; `IGNORE_INDEX` does not count.
            head: [W, d] in the dtype of `hidden`.
            document_ids: int64 [B, T], rising by one where a document begins; None when rows are one document.
        """
        context = Context(document_ids=document_ids)
        losses = []
        for j, depth in enumerate(self.depths, start=1):
            is_known = _reaches(targets, j, document_ids)
            ahead = torch.where(is_known.unsqueeze(-1), embedded.roll(-j, dims=1), 0.0)
            hidden = depth(hidden, ahead, context)
            targets_j = torch.where(is_known, targets.roll(-j, dims=1), IGNORE_INDEX)
            losses.append(
                self.ops.linear_cross_entropy(
                    hidden.flatten(0, 1), head, targets_j.flatten(), IGNORE_INDEX
                )
            )
        return tuple(losses)


def depth_weights(spec: MtpSpec) -> tuple[float, ...]:
    """`loss_weight · decay^{j−1} / Σ_i decay^{i−1}` of depth j = 1 … K."""
    decays = [spec.loss_decay**i for i in range(spec.depth)]
    return tuple(spec.loss_weight * decay / sum(decays) for decay in decays)


def _reaches(tokens: Tensor, j: int, document_ids: Tensor | None) -> Tensor:
    """Whether position t + j is in the row, and in the document of t: bool [B, T]."""
    length = tokens.shape[1]
    in_row = (torch.arange(length, device=tokens.device) < length - j).expand_as(tokens)
    if document_ids is None:
        return in_row
    return in_row & (document_ids.roll(-j, dims=1) == document_ids)


def _plain_lane(lane: Lane) -> Lane:
    """The lane as an MTP block reads it: dense attention, and the MLP of [model.mtp]."""
    model, mtp = lane.model, lane.model.mtp
    assert mtp is not None, "checked by MultiTokenPrediction"
    attention = model.attention and model.attention.model_copy(update={"sparse": None})
    mlp = MlpSpec(mlp_hidden_size=mtp.mlp_hidden_size, activation=mtp.activation)
    return lane.model_copy(
        update={"model": model.model_copy(update={"attention": attention, "mlp": mlp})}
    )
