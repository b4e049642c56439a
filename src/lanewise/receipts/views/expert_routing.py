"""View `expert-routing`: how tokens were spread over experts, where experts live, and what ranks sent each other."""

from __future__ import annotations

from typing import Literal

from lanewise.receipts.record import Record
from lanewise.receipts.schema import Routing
from lanewise.receipts.views.base import ArticleNames, Reasons, Source, View, layers_of

NAMES: ArticleNames = {
    "expert_ranks": "expert → rank map",
    "tokens_between_ranks": "tokens sent and received",
    "layers.picks": "expert load",
}


class ExpertLayerLoad(Record):
    """Load of one E layer over the steady steps."""

    layer: int
    """0-based, in the whole pattern."""
    picks: tuple[int, ...]
    """Per expert."""
    picks_cv: float
    """Standard deviation ÷ mean of those."""
    max_over_mean_ratio: float
    """Load of the busiest expert ÷ mean load; 1 is even."""


class RankTraffic(Record):
    """Tokens that one rank of the expert-parallel group sent to others and received from them."""

    rank: int
    num_experts: int
    tokens_sent: int | None
    tokens_received: int | None


class ExpertRoutingView(View):
    """Fields of `--view expert-routing`."""

    view: Literal["expert-routing"] = "expert-routing"
    routing_mode: str | None
    top_k: int | None
    num_experts: int | None
    expert_ranks: tuple[int, ...] | None
    """Rank that holds expert 0, 1, …"""
    tokens_between_ranks: tuple[tuple[int, ...], ...] | None
    """Row: sender, column: receiver; the diagonal is 0, since what stays is not sent."""
    ranks: tuple[RankTraffic, ...]
    layers: tuple[ExpertLayerLoad, ...]
    expert_load_cv: float | None
    dropped_ratio: float | None
    null_ratio: float | None


def expert_routing(source: Source) -> ExpertRoutingView:
    """Build the view."""
    receipt = source.receipt
    reasons = Reasons(receipt)
    routing = receipt.routing
    if routing is None:
        for field in ("routing_mode", "top_k", "dropped_ratio", "num_experts"):
            reasons.take(field, None, path="routing", otherwise="the lane has no E layers")
    picks = None if routing is None else routing.expert_picks
    layers = () if routing is None or picks is None else _layers(routing, layers_of(receipt, "E"))
    if not layers:
        reasons.take("layers", None, path="routing.expert_picks")
    ranks = None if routing is None else routing.expert_ranks
    traffic = None if routing is None else routing.tokens_between_ranks
    if ranks is None:
        reasons.take("ranks", None, path="routing.expert_ranks")
    num_experts = len(ranks) if ranks is not None else len(picks[0]) if picks else None
    if routing is not None:
        reasons.take("num_experts", num_experts, path="routing.expert_picks")
    return ExpertRoutingView(
        receipt_id=receipt.receipt_id,
        lane=receipt.lane.canonical_name,
        routing_mode=None if routing is None else routing.mode,
        top_k=None if routing is None else routing.top_k,
        num_experts=num_experts,
        expert_ranks=reasons.take("expert_ranks", ranks, path="routing.expert_ranks"),
        tokens_between_ranks=reasons.take(
            "tokens_between_ranks", traffic, path="routing.tokens_between_ranks"
        ),
        ranks=_ranks(ranks, traffic, reasons),
        layers=layers,
        expert_load_cv=reasons.take(
            "expert_load_cv",
            None if routing is None else routing.expert_load_cv,
            path="routing.expert_load_cv",
        ),
        dropped_ratio=None if routing is None else routing.dropped_ratio,
        null_ratio=reasons.take(
            "null_ratio",
            None if routing is None else routing.null_ratio,
            path="routing.null_ratio",
        ),
        missing=reasons.missing,
    )


def _layers(routing: Routing, numbers: tuple[int, ...]) -> tuple[ExpertLayerLoad, ...]:
    picks, spread = routing.expert_picks or (), routing.expert_picks_cv or ()
    return tuple(
        ExpertLayerLoad(
            layer=layer,
            picks=load,
            picks_cv=cv,
            max_over_mean_ratio=max(load) * len(load) / sum(load) if sum(load) else 0.0,
        )
        for layer, load, cv in zip(numbers, picks, spread, strict=False)
        if load
    )


def _ranks(
    expert_ranks: tuple[int, ...] | None,
    traffic: tuple[tuple[int, ...], ...] | None,
    reasons: Reasons,
) -> tuple[RankTraffic, ...]:
    if not expert_ranks:
        return ()
    rows: list[RankTraffic] = []
    # Not up to the highest number: a receipt that says 2^53 must not keep a reader busy.
    for rank in sorted({*expert_ranks, *range(len(traffic or ()))}):
        known = traffic is not None and rank < len(traffic)
        if not known:
            for field in ("tokens_sent", "tokens_received"):
                reasons.take(f"ranks.{rank}.{field}", None, path="routing.tokens_between_ranks")
        rows.append(
            RankTraffic(
                rank=rank,
                num_experts=expert_ranks.count(rank),
                tokens_sent=sum(traffic[rank]) if traffic is not None and known else None,
                tokens_received=sum(row[rank] for row in traffic if rank < len(row))
                if traffic is not None and known
                else None,
            )
        )
    return tuple(rows)
