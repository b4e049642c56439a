"""The model: a pattern of block letters on one residual stream, with an untied head.

    residual, normed = add_norm(embedding[tokens], none, norm_0)
    for each layer i:      delta = block_i(normed)
                           residual, normed = add_norm(delta, residual, norm_{i+1})     the last norm is the final one
    loss = linear_cross_entropy(normed, head, targets) + Σ auxiliary losses

Every letter is one residual sub-layer with one pre-norm weight. Legend: B batch, T sequence, d hidden, W vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lanewise.lane.pattern import layer_letters
from lanewise.lane.schema import Lane, ModelSpec
from lanewise.models.attention import Attention
from lanewise.models.layers import Block, BlockOutput, init_normal, special_parameter
from lanewise.models.mamba import Mamba
from lanewise.models.moe import MixtureOfExperts
from lanewise.models.recurrent import Recurrent
from lanewise.ops.opset import OpSet

IGNORE_INDEX = -100
"""Target that does not count towards the loss."""

DTYPES: Mapping[str, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16}


class Loss(NamedTuple):
    """Loss of one micro-batch, fp32 scalars.

    Attributes:
        total: what is differentiated: cross-entropy plus auxiliary losses.
        cross_entropy: nats per token.
    """

    total: Tensor
    cross_entropy: Tensor


class HybridModel(nn.Module):
    """A hybrid language model assembled from a lane.

    Args:
        lane: the lane; only its model, batch and precision tables are read.
        model_switches: features read at assembly (`extra_aux_losses`).
        ops: the op set, resolved for this lane and device.

    Attributes:
        blocks: one module per layer, in order.
        norms: pre-norm weight of each layer, then the final norm's.
    """

    def __init__(self, lane: Lane, *, model_switches: Mapping[str, bool], ops: OpSet) -> None:
        super().__init__()
        spec = lane.model
        self.spec = spec
        self.ops = ops
        self.letters = layer_letters(spec)
        # Casts are made only where the lane mixes dtypes, so that an fp64 copy of an fp32 model stays fp64.
        mixed = lane.precision.compute != lane.precision.residual
        self.compute_dtype = DTYPES[lane.precision.compute] if mixed else None
        self.residual_dtype = (
            DTYPES[lane.precision.residual] if lane.precision.residual != "fp32" else None
        )
        self.embedding = nn.Parameter(torch.empty(spec.vocab_size, spec.hidden_size))
        self.blocks = nn.ModuleList(
            build_block(letter, lane, model_switches=model_switches, ops=ops)
            for letter in self.letters
        )
        self.norms = nn.ParameterList(
            special_parameter(torch.ones(spec.hidden_size)) for _ in range(spec.num_layers + 1)
        )
        self.head = nn.Parameter(torch.empty(spec.vocab_size, spec.hidden_size))

    def reset_parameters(self, generator: torch.Generator) -> None:
        """Draw start values in layer order: N(0, init_std²), output projections ÷ sqrt(2 · num_layers).

        Args:
            generator: CPU generator, the only source of randomness of the weights.
        """
        std = self.spec.init_std
        output_std = std / (2 * self.spec.num_layers) ** 0.5
        init_normal(self.embedding, std, generator)
        for block in self.blocks:
            assert isinstance(block, Block)
            block.reset_parameters(std=std, output_std=output_std, generator=generator)
        init_normal(self.head, std, generator)

    def forward(self, tokens: Tensor, targets: Tensor) -> Loss:
        """Loss of a micro-batch.

        Args:
            tokens: int64 [B, T].
            targets: int64 [B, T]; `IGNORE_INDEX` does not count.
        """
        hidden, aux_losses = self.hidden(tokens)
        cross_entropy = self.ops.linear_cross_entropy(
            hidden.reshape(-1, self.spec.hidden_size),
            self.head.to(hidden.dtype),
            targets.reshape(-1),
            IGNORE_INDEX,
        )
        return Loss(cross_entropy + sum(aux_losses), cross_entropy)

    def hidden(self, tokens: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Final normed hidden states [B, T, d] and the auxiliary losses of the layers that have one."""
        x = F.embedding(tokens, self.embedding)
        if self.residual_dtype is not None:
            x = x.to(self.residual_dtype)
        aux_losses: list[Tensor] = []
        residual, normed = self._add_norm(x, None, 0)
        for index, block in enumerate(self.blocks):
            output: BlockOutput = block(normed)
            if output.aux_loss is not None:
                aux_losses.append(output.aux_loss)
            residual, normed = self._add_norm(output.delta, residual, index + 1)
        return normed, aux_losses

    def _add_norm(
        self, delta: Tensor, residual: Tensor | None, index: int
    ) -> tuple[Tensor, Tensor]:
        if residual is not None and delta.dtype != residual.dtype:
            delta = delta.to(residual.dtype)
        weight = self.norms[index].to(delta.dtype)
        residual, normed = self.ops.add_norm(delta, residual, weight, self.spec.norm_eps)
        return residual, normed if self.compute_dtype is None else normed.to(self.compute_dtype)

    def update_expert_bias(self) -> Tensor | None:
        """Rebalance every E layer after an optimizer step.

        Returns:
            Mean over E layers of the coefficient of variation of tokens per expert, or None without E layers.
        """
        cvs = [block.update_bias() for block in self.blocks if isinstance(block, MixtureOfExperts)]
        return torch.stack(cvs).mean() if cvs else None


def build_block(
    letter: str, lane: Lane, *, model_switches: Mapping[str, bool], ops: OpSet
) -> Block:
    """The block of one pattern letter, with weights not yet drawn."""
    spec: ModelSpec = lane.model
    hidden, eps = spec.hidden_size, spec.norm_eps
    if letter == "A" and spec.attention is not None:
        return Attention(
            spec.attention,
            hidden_size=hidden,
            sequence_length=lane.batch.sequence_length,
            eps=eps,
            ops=ops,
        )
    if letter == "E" and spec.moe is not None:
        return MixtureOfExperts(
            spec.moe,
            hidden_size=hidden,
            extra_aux_losses=model_switches.get("extra_aux_losses", False),
            ops=ops,
        )
    if letter == "M" and spec.mamba is not None:
        return Mamba(spec.mamba, hidden_size=hidden, eps=eps, ops=ops)
    if letter == "R" and spec.recurrent is not None:
        return Recurrent(spec.recurrent, hidden_size=hidden, eps=eps, ops=ops)
    raise ValueError(
        f"pattern letter {letter!r} has no table in [model]; a validated lane always has one"
    )
