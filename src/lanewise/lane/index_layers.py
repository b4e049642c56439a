"""Which attention layers compute the index of sparse attention and which reuse one (the index cache).

Of the sparse layers, *full* ones run the indexer and *shared* ones read what the nearest earlier full one selected. A
shared layer without an earlier full one cannot read anything and is *promoted*: it computes its own index.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lanewise.lane.pattern import layer_letters
from lanewise.lane.schema import ModelSpec

IndexRole = Literal["dense", "full", "shared", "promoted"]


@dataclass(frozen=True, kw_only=True, slots=True)
class IndexLayers:
    """Sparse layers by what they do, as ranks among the A layers (0-based).

    Attributes:
        computed: run the indexer, as the lane says or by promotion.
        reused: read the index of the nearest earlier layer of `computed`.
        promoted: those of `computed` that the lane does not name in `full_ranks`.
    """

    computed: tuple[int, ...]
    reused: tuple[int, ...]
    promoted: tuple[int, ...]


def index_roles(model: ModelSpec) -> tuple[IndexRole, ...]:
    """What every A layer does, in order; all dense without a sparse table."""
    num_attention = layer_letters(model).count("A")
    sparse = model.attention.sparse if model.attention else None
    roles: list[IndexRole] = []
    for rank in range(num_attention):
        if sparse is None or rank not in sparse.layer_ranks:
            roles.append("dense")
        elif sparse.layer_ranks.index(rank) in sparse.full_ranks:
            roles.append("full")
        else:
            has_earlier = any(computes_index(role) for role in roles)
            roles.append("shared" if has_earlier else "promoted")
    return tuple(roles)


def computes_index(role: IndexRole) -> bool:
    """Whether a layer of this role has an indexer."""
    return role in ("full", "promoted")


def is_dense_warmup(model: ModelSpec) -> bool:
    """Whether the lane trains the indexers alone, under dense attention."""
    sparse = model.attention.sparse if model.attention else None
    return sparse is not None and sparse.stage == "dense_warmup" and "A" in layer_letters(model)


def attends_densely(model: ModelSpec) -> bool:
    """Whether some A layer attends densely; sparse layers do in the dense warm-up."""
    return "dense" in index_roles(model) or is_dense_warmup(model)


def index_layers(model: ModelSpec) -> IndexLayers | None:
    """The sparse layers of a model by what they do, or None when every attention layer is dense."""
    roles = list(enumerate(index_roles(model)))
    computed = tuple(rank for rank, role in roles if computes_index(role))
    if not computed:
        return None
    return IndexLayers(
        computed=computed,
        reused=tuple(rank for rank, role in roles if role == "shared"),
        promoted=tuple(rank for rank, role in roles if role == "promoted"),
    )
