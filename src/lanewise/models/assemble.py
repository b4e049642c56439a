"""From a pattern letter to its block."""

from __future__ import annotations

from collections.abc import Mapping

from lanewise.lane.index_layers import IndexRole, computes_index, index_roles, is_dense_warmup
from lanewise.lane.schema import AttentionSpec, Lane
from lanewise.models.attention import Attention
from lanewise.models.grouped_query import GroupedQueryAttention
from lanewise.models.layers import Block
from lanewise.models.mamba import Mamba
from lanewise.models.mlp import Mlp
from lanewise.models.moe import MixtureOfExperts
from lanewise.models.recurrent import Recurrent
from lanewise.models.sparse_attention import SparseAttention, WarmupAttention
from lanewise.ops.opset import OpSet


def build_block(
    letter: str,
    lane: Lane,
    *,
    model_switches: Mapping[str, bool],
    ops: OpSet,
    rank: int = 0,
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
        return _build_attention(spec.attention, lane, role=index_roles(spec)[rank], ops=ops)
    if letter == "E" and spec.moe is not None:
        return MixtureOfExperts(
            # The routing bias is no parameter, so that freezing parameters would not keep it.
            spec.moe.model_copy(update={"bias_update_rate": 0.0})
            if is_dense_warmup(spec)
            else spec.moe,
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


def _build_attention(attention: AttentionSpec, lane: Lane, *, role: IndexRole, ops: OpSet) -> Block:
    hidden, eps = lane.model.hidden_size, lane.model.norm_eps
    length = lane.batch.sequence_length
    if role != "dense" and not is_dense_warmup(lane.model):
        return SparseAttention(
            attention, role, hidden_size=hidden, sequence_length=length, eps=eps, ops=ops
        )
    dense = WarmupAttention if computes_index(role) else Attention
    return dense(attention, hidden_size=hidden, sequence_length=length, eps=eps, ops=ops)
