"""What a receipt's `extensions` say beyond its schema, each under a key of its own."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Final

from lanewise.lane.index_layers import index_layers
from lanewise.lane.schema import ModelSpec
from lanewise.receipts.extension_keys import INITIAL_WEIGHTS_KEY as INITIAL_WEIGHTS_KEY
from lanewise.receipts.extension_keys import PROTOCOL_KEY
from lanewise.receipts.instruments import OBSERVER_KEY, PLANTED_KEY, ObserverCost, PlantedRecord
from lanewise.train.process import ALLOCATOR_KEY, HUGE_PAGES_KEY, huge_pages
from lanewise.train.routing_receipt import IDS_DIGEST_KEY

INDEX_LAYERS_KEY: Final = "io.lanewise.index_layers"
"""Which A ranks computed a sparse index, reused one, or were promoted to computing it."""


def extensions(
    model: ModelSpec,
    *,
    host_allocator: str,
    protocol: Mapping[str, Any],
    losses: Mapping[str, Any],
    routing_ids_digest: str | None,
    initial_weights: Mapping[str, str | int] | None,
    observer: ObserverCost | None,
    planted: PlantedRecord | None,
) -> dict[str, Any]:
    """The extensions of a run's receipt; a key with nothing to say is left out.

    Args:
        model: of the lane.
        protocol: parameters behind `protocol_digest`; empty outside a campaign.
        host_allocator: what malloc was told about freed memory.
        losses: entries of `loss_record.loss_extensions`.
        routing_ids_digest: of the routing that was recorded or followed, or None.
        initial_weights: of which checkpoint step 0 started, or None.
        observer: what observing the run cost, or None.
        planted: the delay of a positive control, or None.
    """
    found: dict[str, Any] = {ALLOCATOR_KEY: host_allocator, HUGE_PAGES_KEY: huge_pages(), **losses}
    if protocol:
        found[PROTOCOL_KEY] = dict(protocol)
    layers = index_layers(model)
    if layers is not None:
        found[INDEX_LAYERS_KEY] = {
            key: list(ranks) for key, ranks in dataclasses.asdict(layers).items()
        }
    if routing_ids_digest is not None:
        found[IDS_DIGEST_KEY] = routing_ids_digest
    if initial_weights is not None:
        found[INITIAL_WEIGHTS_KEY] = dict(initial_weights)
    if observer is not None:
        found[OBSERVER_KEY] = observer.model_dump(mode="json")
    if planted is not None:
        found[PLANTED_KEY] = planted.model_dump(mode="json")
    return found
