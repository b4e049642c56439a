"""What a tax adds to the parameters and FLOPs of a lane, per tax, by formula.

The lane numerator leaves taxes out, so that no arm can buy utilisation with them; what the hardware really does counts
them. Conventions as `lane.flops`: forward FLOPs per token, multiply and add counted as two, training is 3 × forward;
embedding lookups, norms and activations are not counted. In the dense warm-up of indexers taxes are frozen, too: 1 ×.
Depth routing saves: its block terms are negative.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Literal

from lanewise.lane.flops import Component, Term, components
from lanewise.lane.index_layers import is_dense_warmup
from lanewise.lane.params import BlockParams
from lanewise.lane.pattern import TABLE_OF_LETTER, layer_letters
from lanewise.lane.schema import Lane
from lanewise.lane.structure import Field
from lanewise.lane.tax_rules import depth_routed_layers, exact_share, slots


def metadata_embeddings(lane: Lane) -> Component:
    """Tables fields·num_buckets × d; lookups only, hence no FLOPs by the convention."""
    model = lane.model
    total = len(Field) * model.metadata_embeddings.num_buckets * model.hidden_size
    return Component(
        name="metadata_embeddings", count=1, params=BlockParams(total=total, active=total, matmul=0)
    )


def engram(lane: Lane) -> tuple[Component, ...]:
    """Per A or G layer, w = d ÷ ratio and o orders: W_in d×w, M_o w×w each, W_out w×d, gated also W_k w×d; filter w×K.

    Core: averages o·w each (o − 1 additions and a product), filter 2·K·w, the gate's inner product 2·d and its product d.
    """
    model, spec = lane.model, lane.model.engram
    hidden_size = model.hidden_size
    width = hidden_size // spec.bottleneck_ratio
    matmul = 2 * hidden_size * width + len(spec.orders) * width**2
    core = sum(spec.orders) * width + 2 * spec.conv_kernel_size * width
    if spec.gated:
        matmul += hidden_size * width
        core += 3 * hidden_size
    total = matmul + spec.conv_kernel_size * width
    counts = Counter(layer_letters(model))
    return tuple(
        Component(
            name=f"engram_{TABLE_OF_LETTER[letter]}",
            count=counts[letter],
            params=BlockParams(total=total, active=total, matmul=matmul),
            terms=(
                _term(lane, "linear", 2.0 * matmul),
                _term(lane, "core", float(core)),
            ),
        )
        for letter in "AG"
    )


def hyper_connections(lane: Lane) -> Component:
    """Per sub-layer with n streams: p and w n each, R n×n; reading 2·n·d, mixing 2·n²·d, writing 2·n·d."""
    model, streams = lane.model, lane.model.hyper_connections.num_streams
    total = streams**2 + 2 * streams
    return Component(
        name="hyper_connections",
        count=model.num_layers,
        params=BlockParams(total=total, active=total, matmul=0),
        terms=(_term(lane, "core", 2.0 * total * model.hidden_size),),
    )


def depth_routing(lane: Lane) -> tuple[Component, ...]:
    """Per letter, over the E and D layers that are routed: a router d, and the block on max(1, ⌊c·T⌋) of T tokens only.

    Filling counts as computed, because the block computes it.
    """
    model, length = lane.model, lane.batch.sequence_length
    by_name = {component.name: component for component in components(lane)}
    skipped = 1 - slots(exact_share(model.depth_routing.capacity_factor), length) / length
    router = BlockParams(
        total=model.hidden_size, active=model.hidden_size, matmul=model.hidden_size
    )
    return tuple(
        Component(
            name=f"depth_routing_{TABLE_OF_LETTER[letter]}",
            count=count,
            params=router,
            terms=(
                _term(lane, "linear", 2.0 * router.matmul),
                *(
                    Term(
                        kind=term.kind,
                        forward=-skipped * term.forward,
                        training_factor=term.training_factor,
                    )
                    for term in by_name[TABLE_OF_LETTER[letter]].terms
                ),
            ),
        )
        for letter, count in sorted(Counter(depth_routed_layers(model)).items())
    )


TAXES: Mapping[str, Callable[[Lane], tuple[Component, ...]]] = MappingProxyType(
    {
        "metadata_embeddings": lambda lane: (metadata_embeddings(lane),),
        "engram": engram,
        "hyper_connections": lambda lane: (hyper_connections(lane),),
        "depth_routing": depth_routing,
    }
)
"""Feature → what it adds."""


def tax_components(lane: Lane, model_switches: Mapping[str, bool]) -> tuple[Component, ...]:
    """What the taxes that are switched on add to a lane.

    Args:
        lane: a validated lane.
        model_switches: features read at assembly.
    """
    return tuple(
        component
        for key, count in TAXES.items()
        if model_switches.get(key, False)
        for component in count(lane)
        if component.count
    )


def _term(lane: Lane, kind: Literal["linear", "core"], forward: float) -> Term:
    return Term(kind=kind, forward=forward, training_factor=1 if is_dense_warmup(lane.model) else 3)
