"""The model: a pattern of block letters on one residual stream, with an untied head.

    carried, normed = residual.open(embedding[tokens])
    for each layer i:      delta = block_i(normed)
                           carried, normed = residual.add(delta, carried, i + 1)
    loss = linear_cross_entropy(normed, head, targets) + Σ auxiliary losses

Every letter is one residual sub-layer with one pre-norm weight. Legend: B batch, T sequence, d hidden, W vocabulary.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lanewise.lane.index_layers import is_dense_warmup
from lanewise.lane.pattern import layer_letters
from lanewise.lane.schema import Lane
from lanewise.models.assemble import build_block
from lanewise.models.indexer import freeze_all_but_indexers
from lanewise.models.layers import Block, BlockOutput, BlockState, Context, init_normal
from lanewise.models.moe import MixtureOfExperts
from lanewise.models.residual import ResidualStream
from lanewise.ops.opset import OpSet

IGNORE_INDEX = -100
"""Target that does not count towards the loss."""

DTYPES: Mapping[str, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16}

RunBlock = Callable[[Block, Tensor, Context], BlockOutput]
"""How a layer is run in training; replaced from outside, e.g. by one that computes it again in the backward pass."""


class Loss(NamedTuple):
    """Loss of one micro-batch, fp32 scalars.

    Attributes:
        total: what is differentiated: cross-entropy plus all parts.
        cross_entropy: nats per token.
        parts: auxiliary losses by name, already weighted, each the sum over the layers that have it.
    """

    total: Tensor
    cross_entropy: Tensor
    parts: Mapping[str, Tensor]


class Trunk(NamedTuple):
    """What the layers made of a micro-batch.

    Attributes:
        hidden: final normed hidden states [B, T, d].
        losses: auxiliary losses by name, already weighted, summed over layers.
        expert_ids: routing of every E layer in order, int64 [S, k] each.
    """

    hidden: Tensor
    losses: Mapping[str, Tensor]
    expert_ids: tuple[Tensor, ...]


class ModelState(NamedTuple):
    """What decoding carries from call to call; never changed in place, so an earlier state can be taken up again.

    Attributes:
        tokens: int64 [B, T], all tokens so far.
        blocks: state of every layer.
    """

    tokens: Tensor
    blocks: tuple[BlockState, ...]


class HybridModel(nn.Module):
    """A hybrid language model assembled from a lane.

    Args:
        lane: the lane; only its model, batch and precision tables are read.
        model_switches: features read at assembly (`extra_aux_losses`).
        ops: the op set, resolved for this lane and device.

    Attributes:
        blocks: one module per layer, in order.
        residual: the stream between them, with the norms.
        run_block: how layer i is run in training, one per layer.
    """

    def __init__(self, lane: Lane, *, model_switches: Mapping[str, bool], ops: OpSet) -> None:
        super().__init__()
        spec = lane.model
        self.spec = spec
        self.ops = ops
        self.letters = layer_letters(spec)
        # Casts are made only where the lane mixes dtypes, so that an fp64 copy of an fp32 model stays fp64.
        mixed = lane.precision.compute != lane.precision.residual
        self.embedding = nn.Parameter(torch.empty(spec.vocab_size, spec.hidden_size))
        seen: Counter[str] = Counter()
        self.blocks = nn.ModuleList()
        for letter in self.letters:
            self.blocks.append(
                build_block(letter, lane, model_switches=model_switches, ops=ops, rank=seen[letter])
            )
            seen[letter] += 1
        self.residual = ResidualStream(
            num_layers=spec.num_layers,
            hidden_size=spec.hidden_size,
            eps=spec.norm_eps,
            compute_dtype=DTYPES[lane.precision.compute] if mixed else None,
            residual_dtype=(
                DTYPES[lane.precision.residual] if lane.precision.residual != "fp32" else None
            ),
            ops=ops,
        )
        self.head = nn.Parameter(torch.empty(spec.vocab_size, spec.hidden_size))
        self.run_block: list[RunBlock] = [_run_plainly] * len(self.letters)
        if is_dense_warmup(spec):
            freeze_all_but_indexers(self)

    def reset_parameters(self, generator: torch.Generator) -> None:
        """Draw start values in layer order: N(0, init_std²), output projections ÷ sqrt(2 · num_layers).

        Args:
            generator: CPU generator, the only source of randomness of the weights.
        """
        std = self.spec.init_std
        output_std = std / (2 * self.spec.num_layers) ** 0.5
        init_normal(self.embedding, std, generator)
        for block in self.layers:
            block.reset_parameters(std=std, output_std=output_std, generator=generator)
        init_normal(self.head, std, generator)

    @property
    def layers(self) -> list[Block]:
        """The blocks, typed."""
        return [block for block in self.blocks if isinstance(block, Block)]

    def forward(
        self, tokens: Tensor, targets: Tensor, *, document_ids: Tensor | None = None
    ) -> Loss:
        """Loss of a micro-batch.

        Args:
            tokens: int64 [B, T].
            targets: int64 [B, T]; `IGNORE_INDEX` does not count.
            document_ids: int64 [B, T], equal within a document and changing at its end; None when rows are one document.
        """
        trunk = self.trunk(tokens, document_ids=document_ids)
        cross_entropy = self.ops.linear_cross_entropy(
            trunk.hidden.reshape(-1, self.spec.hidden_size),
            self.head.to(trunk.hidden.dtype),
            targets.reshape(-1),
            IGNORE_INDEX,
        )
        parts = dict(trunk.losses)
        return Loss(cross_entropy + sum(parts.values()), cross_entropy, parts)

    def trunk(self, tokens: Tensor, *, document_ids: Tensor | None = None) -> Trunk:
        """All layers over a micro-batch; arguments as `forward`."""
        context = Context(
            document_ids=None if document_ids is None else count_documents(document_ids)
        )
        losses: dict[str, Tensor] = {}
        expert_ids = []
        carried, normed = self.residual.open(self.embed(tokens))
        for index, block in enumerate(self.layers):
            output = self.run_block[index](block, normed, context)
            if self.training:
                block.observe(output)
            for name, loss in output.aux_losses.items():
                losses[name] = losses[name] + loss if name in losses else loss
            if output.key_ids is not None:
                context = context._replace(key_ids=output.key_ids)
            if output.expert_ids is not None:
                expert_ids.append(output.expert_ids)
            carried, normed = self.residual.add(output.delta, carried, index + 1)
        return Trunk(normed, losses, tuple(expert_ids))

    def extend(self, tokens: Tensor, state: ModelState | None = None) -> tuple[Tensor, ModelState]:
        """The next tokens of B texts in inference.

        Args:
            tokens: int64 [B, T], T ≥ 1.
            state: what the last call returned, or None at the start of the texts.

        Returns:
            Final normed hidden states of these tokens [B, T, d], and the state after them.
        """
        before = state.blocks if state is not None else (None,) * len(self.letters)
        all_tokens = tokens if state is None else torch.cat([state.tokens, tokens], dim=1)
        context = Context()
        after = []
        carried, normed = self.residual.open(self.embed(all_tokens)[:, -tokens.shape[1] :])
        for index, (block, block_state) in enumerate(zip(self.layers, before, strict=True)):
            output, new_state = block.extend(normed, block_state, context)
            after.append(new_state)
            if output.key_ids is not None:
                context = context._replace(key_ids=output.key_ids)
            carried, normed = self.residual.add(output.delta, carried, index + 1)
        return normed, ModelState(all_tokens, tuple(after))

    def embed(self, tokens: Tensor) -> Tensor:
        """Input of the residual stream [B, T, d] for int64 [B, T]."""
        return F.embedding(tokens, self.embedding)

    def logits(self, hidden: Tensor) -> Tensor:
        """[..., d] → fp32 [..., W]."""
        return F.linear(hidden, self.head.to(hidden.dtype)).float()

    def update_expert_bias(self) -> Tensor | None:
        """Rebalance every E layer after an optimizer step.

        Returns:
            Mean over E layers of the coefficient of variation of tokens per expert, or None without E layers.
        """
        cvs = [m.update_bias() for m in self.modules() if isinstance(m, MixtureOfExperts)]
        return torch.stack(cvs).mean() if cvs else None


def count_documents(document_ids: Tensor) -> Tensor:
    """Number the documents of every row 0, 1, … in order.

    Args:
        document_ids: int64 [B, T], equal within a document and changing at its end.
    """
    changes = document_ids[:, 1:] != document_ids[:, :-1]
    return F.pad(changes.to(torch.int64).cumsum(dim=1), (1, 0))


def _run_plainly(block: Block, x: Tensor, context: Context) -> BlockOutput:
    output: BlockOutput = block(x, context)
    return output
