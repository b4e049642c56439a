"""From a pattern letter to its block, with the taxes that wrap it; and the stream between the blocks."""

from __future__ import annotations

from collections.abc import Mapping

from lanewise.lane.index_layers import IndexRole, computes_index, index_roles, is_dense_warmup
from lanewise.lane.schema import AttentionSpec, Lane
from lanewise.models.attention import Attention
from lanewise.models.depth_routing import DepthRouted
from lanewise.models.engram import EngramBlock
from lanewise.models.grouped_query import GroupedQueryAttention
from lanewise.models.hyper_connections import HyperConnections
from lanewise.models.layers import DTYPES, Block
from lanewise.models.mamba import Mamba
from lanewise.models.mamba2 import Mamba2
from lanewise.models.mlp import Mlp
from lanewise.models.moe import MixtureOfExperts
from lanewise.models.recurrent import Recurrent
from lanewise.models.residual import ResidualStream, Stream
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
        role = "dense" if spec.attention.sparse is None else index_roles(spec)[rank]
        return _build_attention(spec.attention, lane, role=role, ops=ops)
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
        if spec.mamba.version == "mamba2":
            return Mamba2(spec.mamba, hidden_size=hidden, eps=eps, ops=ops)
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


def wrap_block(
    block: Block, letter: str, index: int, lane: Lane, *, model_switches: Mapping[str, bool]
) -> Block:
    """The block of a layer with the taxes that are switched on around it.

    Args:
        block: from `build_block`.
        letter: of the pattern.
        index: of the layer, from 0.
        lane: a validated lane.
        model_switches: features read at assembly.
    """
    spec = lane.model
    if letter in "AG" and model_switches.get("engram", False):
        return EngramBlock(block, spec.engram, hidden_size=spec.hidden_size, eps=spec.norm_eps)
    routed = spec.depth_routing
    if (
        letter in "ED"
        and index >= routed.num_first_layers_kept
        and model_switches.get("depth_routing", False)
    ):
        return DepthRouted(block, routed, hidden_size=spec.hidden_size)
    return block


def build_stream(lane: Lane, *, model_switches: Mapping[str, bool], ops: OpSet) -> Stream:
    """The residual stream of the model, or several of them with hyper-connections."""
    spec, precision = lane.model, lane.precision
    # Casts are made only where the lane mixes dtypes, so that an fp64 copy of an fp32 model stays fp64.
    mixed = precision.compute != precision.residual
    compute_dtype = DTYPES[precision.compute] if mixed else None
    residual_dtype = DTYPES[precision.residual] if precision.residual != "fp32" else None
    if model_switches.get("hyper_connections", False):
        return HyperConnections(
            spec.hyper_connections,
            num_layers=spec.num_layers,
            hidden_size=spec.hidden_size,
            eps=spec.norm_eps,
            compute_dtype=compute_dtype,
            residual_dtype=residual_dtype,
            ops=ops,
        )
    return ResidualStream(
        num_layers=spec.num_layers,
        hidden_size=spec.hidden_size,
        eps=spec.norm_eps,
        compute_dtype=compute_dtype,
        residual_dtype=residual_dtype,
        ops=ops,
    )
