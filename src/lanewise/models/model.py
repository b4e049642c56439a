"""The model: a pattern of block letters on one residual stream, with an untied head.

    carried, normed = residual.open(embedding[tokens] + n-gram and metadata embeddings)
    for each layer i:      delta = block_i(normed)
                           carried, normed = residual.add(delta, carried, i + 1)
    loss = linear_cross_entropy(normed, head, targets) + Σ auxiliary losses, those of MTP and STP among them

Every letter is one residual sub-layer with one pre-norm weight. Legend: B batch, T sequence, d hidden, W vocabulary.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lanewise.lane.index_layers import is_dense_warmup
from lanewise.lane.pattern import layer_letters
from lanewise.lane.schema import Lane
from lanewise.models.assemble import build_block, build_stream, wrap_block
from lanewise.models.indexer import freeze_all_but_indexers
from lanewise.models.layers import (
    IGNORE_INDEX,
    NO_LOSSES,
    Block,
    BlockState,
    Context,
    RunBlock,
    forked,
    init_normal,
    run_plainly,
)
from lanewise.models.metadata_embeddings import MetadataEmbeddings
from lanewise.models.moe import MixtureOfExperts
from lanewise.models.mtp import MultiTokenPrediction
from lanewise.models.ngram_embedding import NgramEmbedding
from lanewise.models.stp import TrajectoryPenalty
from lanewise.ops.opset import OpSet

NO_LAYER_LOSSES: Mapping[tuple[int, str], Tensor] = MappingProxyType({})


class Loss(NamedTuple):
    """Loss of one micro-batch, fp32 scalars.

    Attributes:
        total: what is differentiated: cross-entropy plus all parts.
        cross_entropy: nats per token.
        parts: auxiliary losses by name, already weighted, each the sum over the layers that have it.
        unweighted: those of the parts that mean something before they are weighted: the cross-entropy of MTP depth j
            as `mtp_<j>`, the penalty `stp`.
        expert_ids: routing that was followed in every E layer in order, int64 [S, k] each.
        of_layers: (layer, name) → what that layer added to the part of that name, cut from the graph.
    """

    total: Tensor
    cross_entropy: Tensor
    parts: Mapping[str, Tensor]
    unweighted: Mapping[str, Tensor] = NO_LOSSES
    expert_ids: tuple[Tensor, ...] = ()
    of_layers: Mapping[tuple[int, str], Tensor] = NO_LAYER_LOSSES

    def detach(self) -> Loss:
        """The same values, cut from the graph."""
        parts = {name: part.detach() for name, part in self.parts.items()}
        unweighted = {name: loss.detach() for name, loss in self.unweighted.items()}
        return Loss(
            self.total.detach(),
            self.cross_entropy.detach(),
            parts,
            unweighted,
            self.expert_ids,
            self.of_layers,
        )


class Trunk(NamedTuple):
    """What the layers made of a micro-batch.

    Attributes:
        hidden: final normed hidden states [B, T, d].
        losses: auxiliary losses by name, already weighted, summed over layers.
        expert_ids: routing of every E layer in order, int64 [S, k] each.
        embedded: input of the residual stream [B, T, d].
        paths: residual stream after each layer asked for, in the order of the layers [B, T, d].
        document_ids: int64 [B, T], documents of a row numbered 0, 1, …; None when rows are one document.
        losses_of_layers: (layer, name) → that layer's share of `losses`, cut from the graph.
    """

    hidden: Tensor
    losses: Mapping[str, Tensor]
    expert_ids: tuple[Tensor, ...]
    embedded: Tensor
    paths: tuple[Tensor, ...] = ()
    document_ids: Tensor | None = None
    losses_of_layers: Mapping[tuple[int, str], Tensor] = NO_LAYER_LOSSES


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
        model_switches: features read at assembly: `mtp`, `extra_aux_losses` and the other taxes.
        ops: the op set, resolved for this lane and device.
        token_facts: int16 [W, facts], what `train.data.token_facts` says of the tokenizer; needed by metadata embeddings.

    Attributes:
        blocks: one module per layer, in order.
        residual: the stream between them, or several, with the norms.
        run_block: how layer i is run in training, one per layer.
        mtp: the MTP depths; None without them.
        stp: the trajectory penalty; None without it.

    Raises:
        ValueError: metadata embeddings are on and there are no token facts.
    """

    def __init__(
        self,
        lane: Lane,
        *,
        model_switches: Mapping[str, bool],
        ops: OpSet,
        token_facts: Tensor | None = None,
    ) -> None:
        super().__init__()
        spec = lane.model
        self.spec = spec
        self.ops = ops
        self.letters = layer_letters(spec)
        self.embedding = nn.Parameter(torch.empty(spec.vocab_size, spec.hidden_size))
        self.ngram = (
            NgramEmbedding(
                spec.ngram_embedding, hidden_size=spec.hidden_size, vocab_size=spec.vocab_size
            )
            if spec.ngram_embedding
            else None
        )
        self.metadata: MetadataEmbeddings | None = None
        if model_switches.get("metadata_embeddings", False):
            if token_facts is None:
                raise ValueError(
                    "metadata embeddings need token_facts, a table of the tokenizer and none was given; "
                    "pass train.data.token_facts.token_facts(tokenizer, vocab_size)"
                )
            self.metadata = MetadataEmbeddings(
                spec.metadata_embeddings,
                hidden_size=spec.hidden_size,
                vocab_size=spec.vocab_size,
                token_facts=token_facts,
            )
        seen: Counter[str] = Counter()
        self.blocks = nn.ModuleList()
        for index, letter in enumerate(self.letters):
            block = build_block(
                letter, lane, model_switches=model_switches, ops=ops, rank=seen[letter]
            )
            self.blocks.append(
                wrap_block(block, letter, index, lane, model_switches=model_switches)
            )
            seen[letter] += 1
        self.residual = build_stream(lane, model_switches=model_switches, ops=ops)
        self.head = nn.Parameter(torch.empty(spec.vocab_size, spec.hidden_size))
        self.run_block: list[RunBlock] = [run_plainly] * len(self.letters)
        self.mtp = MultiTokenPrediction(lane, ops=ops) if model_switches.get("mtp") else None
        self.stp = (
            TrajectoryPenalty(spec.stp, seed=lane.seed) if model_switches.get("stp") else None
        )
        if is_dense_warmup(spec):
            freeze_all_but_indexers(self)

    def reset_parameters(self, generator: torch.Generator) -> None:
        """Draw start values in layer order: N(0, init_std²), output projections ÷ sqrt(2 · num_layers).

        The MTP depths come last, so that the trunk of a seed is the same with and without them.

        Args:
            generator: CPU generator, the only source of randomness of the weights.
        """
        std = self.spec.init_std
        output_std = std / (2 * self.spec.num_layers) ** 0.5
        init_normal(self.embedding, std, generator)
        if self.ngram is not None:
            self.ngram.reset_parameters(std=std, generator=forked(generator))
        if self.metadata is not None:
            self.metadata.reset_parameters()
        for block in self.layers:
            block.reset_parameters(std=std, output_std=output_std, generator=generator)
        init_normal(self.head, std, generator)
        if self.mtp is not None:
            self.mtp.reset_parameters(std=std, output_std=output_std, generator=generator)

    @property
    def layers(self) -> list[Block]:
        """The blocks, typed."""
        return [block for block in self.blocks if isinstance(block, Block)]

    @property
    def sub_layers(self) -> list[Block]:
        """Every block: those of the layers, then those of the MTP depths."""
        return [*self.layers, *(self.mtp.sub_layers if self.mtp is not None else ())]

    def forward(
        self,
        tokens: Tensor,
        targets: Tensor,
        *,
        document_ids: Tensor | None = None,
        expert_ids: Sequence[Tensor] | None = None,
        step: int = 0,
    ) -> Loss:
        """Loss of a micro-batch.

        Args:
            tokens: int64 [B, T].
            targets: int64 [B, T]; `IGNORE_INDEX` does not count.
            document_ids: int64 [B, T], equal within a document and changing at its end; None when rows are one document.
            expert_ids: routing to follow instead of choosing, int64 [S, k] for every E layer in order, or None.
            step: the optimizer step, 0-based; STP has a window of steps and draws its spans by it.

        Raises:
            ValueError: `expert_ids` is not one tensor per E layer.
        """
        stp = self.stp if self.stp is not None and self.stp.is_active(step) else None
        trunk = self.trunk(
            tokens,
            document_ids=document_ids,
            expert_ids=expert_ids,
            path_layers=stp.layers if stp is not None else (),
        )
        head = self.head.to(trunk.hidden.dtype)
        cross_entropy = self.ops.linear_cross_entropy(
            trunk.hidden.flatten(0, 1), head, targets.flatten(), IGNORE_INDEX
        )
        parts, unweighted = dict(trunk.losses), {}
        if self.mtp is not None:
            depths = self.mtp(trunk.hidden, trunk.embedded, targets, head, trunk.document_ids)
            for j, (weight, loss) in enumerate(zip(self.mtp.weights, depths, strict=True), start=1):
                unweighted[f"mtp_{j}"] = loss
                parts[f"mtp_{j}"] = weight * loss
        if stp is not None:
            unweighted["stp"] = stp(trunk.paths or (trunk.hidden,), step, trunk.document_ids)
            parts["stp"] = stp.coefficient * unweighted["stp"]
        total = cross_entropy + sum(parts.values())
        return Loss(
            total, cross_entropy, parts, unweighted, trunk.expert_ids, trunk.losses_of_layers
        )

    def trunk(
        self,
        tokens: Tensor,
        *,
        document_ids: Tensor | None = None,
        expert_ids: Sequence[Tensor] | None = None,
        path_layers: Collection[int] = (),
    ) -> Trunk:
        """All layers over a micro-batch; arguments as `forward`, and the layers whose residual stream is kept."""
        followed = self._ids_of_layers(expert_ids)
        context = Context(
            document_ids=None if document_ids is None else count_documents(document_ids)
        )
        losses: dict[str, Tensor] = {}
        of_layers: dict[tuple[int, str], Tensor] = {}
        routed, paths = [], []
        embedded = self.embed(tokens, context.document_ids)
        carried, normed = self.residual.open(embedded)
        for index, block in enumerate(self.layers):
            layer_context = context._replace(expert_ids=followed[index])
            output = self.run_block[index](block, normed, layer_context)
            if self.training:
                block.observe(output)
            for name, loss in output.aux_losses.items():
                losses[name] = losses[name] + loss if name in losses else loss
                of_layers[index, name] = loss.detach()
            if output.key_ids is not None:
                context = context._replace(key_ids=output.key_ids)
            if output.expert_ids is not None:
                routed.append(output.expert_ids)
            carried, normed = self.residual.add(output.delta, carried, index + 1)
            if index in path_layers:
                paths.append(self.residual.stream(carried))
        return Trunk(
            normed,
            losses,
            tuple(routed),
            embedded,
            tuple(paths),
            context.document_ids,
            of_layers,
        )

    def _ids_of_layers(self, expert_ids: Sequence[Tensor] | None) -> list[Tensor | None]:
        """The routing that each layer is to follow, None where it has none."""
        num_expert_layers = self.letters.count("E")
        if expert_ids is None:
            return [None] * len(self.letters)
        if len(expert_ids) != num_expert_layers:
            raise ValueError(
                f"expert_ids holds the routing of {len(expert_ids)} layers and the model has {num_expert_layers} "
                "E layers; give one int64 [S, k] for each"
            )
        left = iter(expert_ids)
        return [next(left) if letter == "E" else None for letter in self.letters]

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
        carried, normed = self.residual.open(self.embed(all_tokens, last=tokens.shape[1]))
        for index, (block, block_state) in enumerate(zip(self.layers, before, strict=True)):
            output, new_state = block.extend(normed, block_state, context)
            after.append(new_state)
            if output.key_ids is not None:
                context = context._replace(key_ids=output.key_ids)
            carried, normed = self.residual.add(output.delta, carried, index + 1)
        return normed, ModelState(all_tokens, tuple(after))

    def embed(
        self, tokens: Tensor, document_ids: Tensor | None = None, *, last: int | None = None
    ) -> Tensor:
        """Input of the residual stream.

        Args:
            tokens: int64 [B, T], a row or a text from its start.
            document_ids: int64 [B, T], changing where a document begins; None when rows are one document.
            last: how many of the positions are wanted, from the end; None is all.

        Returns:
            [B, last, d].
        """
        wanted = tokens if last is None else tokens[:, -last:]
        embedded = F.embedding(wanted, self.embedding)
        if self.ngram is not None:
            embedded = embedded + self.ngram(tokens, document_ids, last=last)
        if self.metadata is not None:
            embedded = embedded + self.metadata(tokens, document_ids, last=last)
        return embedded

    def logits(self, hidden: Tensor) -> Tensor:
        """[..., d] → fp32 [..., W]."""
        return F.linear(hidden, self.head.to(hidden.dtype)).float()

    def update_expert_bias(self) -> Tensor | None:
        """Rebalance every E layer after an optimizer step.

        Returns:
            int64 [E layers, E + 1]: picks per expert since the last call, those of null slots last; None without E layers.
        """
        loads = [m.update_bias() for m in self.modules() if isinstance(m, MixtureOfExperts)]
        return torch.stack(loads) if loads else None


def count_documents(document_ids: Tensor) -> Tensor:
    """Number the documents of every row 0, 1, … in order.

    Args:
        document_ids: int64 [B, T], equal within a document and changing at its end.
    """
    changes = document_ids[:, 1:] != document_ids[:, :-1]
    return F.pad(changes.to(torch.int64).cumsum(dim=1), (1, 0))
