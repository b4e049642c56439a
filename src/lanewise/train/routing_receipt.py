"""What a receipt says about routing: the mode that ruled, the load of the experts, and a digest of shared routing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal

import numpy as np

from lanewise.lane.pattern import layer_letters
from lanewise.lane.schema import Lane
from lanewise.measure.expert_load import summarise
from lanewise.receipts.schema import Routing

LOAD_FIELDS: Final = tuple(
    f"routing.{name}"
    for name in ("expert_load_cv", "expert_picks", "expert_picks_cv", "null_ratio")
)
"""What is null in a receipt when the load of the experts was not measured."""
IDS_DIGEST_KEY: Final = "io.lanewise.routing_ids_sha256"
"""Key in `extensions`: digest of the ids of all steps of this run, the same for a recording and its replays."""


def routing_mode(lane: Lane) -> Literal["learned", "forced_balanced", "replayed"]:
    """How the lane's E layers come by their experts in training; `learned` where it has none."""
    moe = lane.model.moe
    return moe.routing_mode if moe is not None and "E" in layer_letters(lane.model) else "learned"


def routing_record(
    lane: Lane, steady_loads: Sequence[np.ndarray], missing: dict[str, str]
) -> Routing | None:
    """The record of a lane's routing; None without E layers.

    Args:
        lane: what was trained.
        steady_loads: per steady step int64 [E layers, E + 1], picks per expert and of null slots.
        missing: reasons for nulls by dotted path; added to.
    """
    moe = lane.model.moe
    if moe is None or "E" not in layer_letters(lane.model):
        missing["routing"] = "the lane has no E layers"
        return None
    load = summarise(steady_loads)
    if load is None:
        for field in LOAD_FIELDS:
            missing.setdefault(field, "no steady steps")
    return Routing(
        mode=moe.routing_mode,
        top_k=moe.top_k,
        expert_load_cv=None if load is None else load.step_cv,
        dropped_ratio=0.0,
        expert_picks=None if load is None else load.expert_picks,
        expert_picks_cv=None if load is None else load.expert_picks_cv,
        null_ratio=None if load is None else load.null_ratio,
        expert_ranks=expert_ranks(moe.num_experts, lane.topology.ep),
        tokens_between_ranks=_tokens_between_ranks(lane.topology.ep, missing),
    )


def expert_ranks(num_experts: int, num_ranks: int) -> tuple[int, ...]:
    """Rank of the expert-parallel group that holds each expert: equal shares, in order."""
    return tuple(expert * num_ranks // num_experts for expert in range(num_experts))


def _tokens_between_ranks(
    num_ranks: int, missing: dict[str, str]
) -> tuple[tuple[int, ...], ...] | None:
    """Tokens sent from rank to rank: none where one rank holds every expert."""
    if num_ranks == 1:
        return ((0,),)
    missing["routing.tokens_between_ranks"] = "this run did not count what its ranks sent"
    return None
