"""Topology: how many processes, and which combinations of parallel degrees are legal.

World size = dp_replicate × dp_shard × tp × cp × pp. Expert parallelism adds no ranks: `ep` regroups those of
dp_shard × cp, and `etp` those of tp.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from lanewise.lane.schema import ModelSpec, TopologySpec

Fault = tuple[tuple[str, ...], str]
"""Path of the key at fault and the rest of the sentence (`= 5 does not …`)."""


def world_size(topology: TopologySpec) -> int:
    """Number of processes, one device each."""
    return topology.dp_replicate * topology.dp_shard * topology.tp * topology.cp * topology.pp


def topology_name(topology: TopologySpec) -> str:
    """`single`, or the degrees above one joined, e.g. `dp8-tp2sp-ep4`."""
    degrees = {
        "dpr": topology.dp_replicate,
        "dp": topology.dp_shard,
        "tp": topology.tp,
        "cp": topology.cp,
        "pp": topology.pp,
        "ep": topology.ep,
        "etp": topology.etp,
    }
    parts = [
        f"{key}{degree}{'sp' if key == 'tp' and topology.sp else ''}"
        for key, degree in degrees.items()
        if degree > 1
    ]
    return "-".join(parts) or "single"


def faults(topology: TopologySpec, model: ModelSpec) -> Iterator[Fault]:
    """Every rule that the degrees break, among themselves and against the model's sizes."""
    yield from _faults_among_degrees(topology)
    yield from _faults_against_model(topology, model)


def _faults_among_degrees(topology: TopologySpec) -> Iterator[Fault]:
    world = world_size(topology)
    if world % topology.nodes:
        yield (
            ("topology", "nodes"),
            f"= {topology.nodes} does not divide the world size {world}; every node holds equally many processes",
        )
    expert_ranks = topology.dp_shard * topology.cp
    if expert_ranks % topology.ep:
        yield (
            ("topology", "ep"),
            f"= {topology.ep} does not divide dp_shard × cp = {expert_ranks}, whose ranks it regroups; "
            f"use {divisors_in_words(expert_ranks)}",
        )
    if topology.tp % topology.etp:
        yield (
            ("topology", "etp"),
            f"= {topology.etp} does not divide tp = {topology.tp}; use {divisors_in_words(topology.tp)}",
        )
    if topology.sp and topology.tp == 1:
        yield ("topology", "sp"), "= true needs tp above 1; set sp = false"


def _faults_against_model(topology: TopologySpec, model: ModelSpec) -> Iterator[Fault]:
    split_over_tp = {
        "model.attention.num_heads": model.attention and model.attention.num_heads,
        "model.mamba.num_heads": model.mamba and model.mamba.num_heads,
        "model.mamba.num_groups": model.mamba and model.mamba.num_groups,
        "model.recurrent.num_heads": model.recurrent and model.recurrent.num_heads,
        "model.grouped_query.num_heads": model.grouped_query and model.grouped_query.num_heads,
        "model.grouped_query.num_kv_heads": model.grouped_query
        and model.grouped_query.num_kv_heads,
        "model.mlp.mlp_hidden_size": model.mlp and model.mlp.mlp_hidden_size,
        "model.vocab_size": model.vocab_size,
    }
    for name, size in split_over_tp.items():
        if size and size % topology.tp:
            yield (
                ("topology", "tp"),
                f"= {topology.tp} does not divide {name} = {size}; use {divisors_in_words(size)}",
            )
    if model.moe and model.moe.num_experts % topology.ep:
        yield (
            ("topology", "ep"),
            f"= {topology.ep} does not divide model.moe.num_experts = {model.moe.num_experts}; "
            f"use {divisors_in_words(model.moe.num_experts)}",
        )
    if model.moe and model.moe.expert_hidden_size % topology.etp:
        yield (
            ("topology", "etp"),
            f"= {topology.etp} does not divide model.moe.expert_hidden_size = {model.moe.expert_hidden_size}; "
            f"use {divisors_in_words(model.moe.expert_hidden_size)}",
        )
    if topology.pp > model.num_layers:
        yield (
            ("topology", "pp"),
            f"= {topology.pp} exceeds model.num_layers = {model.num_layers}; every stage needs a layer",
        )


def divisors_in_words(number: int) -> str:
    """The divisors of a count, e.g. `1, 2, 4, 7, 8, 14, 28 or 56`."""
    small = [each for each in range(1, math.isqrt(number) + 1) if number % each == 0]
    divisors = [str(each) for each in sorted({*small, *(number // each for each in small)})]
    return divisors[0] if len(divisors) == 1 else f"{', '.join(divisors[:-1])} or {divisors[-1]}"
