"""From a pattern letter to its block."""

from __future__ import annotations

from collections.abc import Mapping

from lanewise.lane.schema import Lane
from lanewise.models.attention import Attention
from lanewise.models.grouped_query import GroupedQueryAttention
from lanewise.models.layers import Block
from lanewise.models.mamba import Mamba
from lanewise.models.mlp import Mlp
from lanewise.models.moe import MixtureOfExperts
from lanewise.models.recurrent import Recurrent
from lanewise.ops.opset import OpSet


def build_block(
    letter: str,
    lane: Lane,
    *,
    model_switches: Mapping[str, bool],
    ops: OpSet,
    rank: int = 0,  # noqa: ARG001  only sparse attention differs by rank
) -> Block:
    """The block of one layer, with weights not yet drawn.

    Args:
        letter: of the pattern.
        lane: a validated lane.
        model_switches: features read at assembly.
        ops: the op set of the model.
        rank: of this layer among those of its letter, from 0.
    """
    spec = lane.model
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
    if letter == "G" and spec.grouped_query is not None:
        return GroupedQueryAttention(
            spec.grouped_query,
            hidden_size=hidden,
            sequence_length=lane.batch.sequence_length,
            eps=eps,
            ops=ops,
        )
    if letter == "D" and spec.mlp is not None:
        return Mlp(spec.mlp, hidden_size=hidden)
    raise ValueError(
        f"pattern letter {letter!r} has no table in [model]; a validated lane always has one"
    )
