"""Which lane a visit runs: blocks of a feature that changes the mathematics differ in seed, others do not."""

from pathlib import Path

import pytest

from lanewise.receipts.store import Store
from tests.lab.fake import World, options


def seeds(tmp_path: Path, feature: str) -> dict[int, set[int]]:
    """Block → seeds of its processes."""
    world = World(store=Store(tmp_path))
    world.lab().start(options(features=(feature,), blocks=3, budget_seconds=3600.0))
    found: dict[int, set[int]] = {}
    for endpoint in world.endpoints:
        place = endpoint.request.experiment
        if place is not None:
            found.setdefault(place.block, set()).add(endpoint.request.resolved.lane.seed)
    return found


@pytest.mark.parametrize(
    ("feature", "expected"),
    [("extra_aux_losses", {1: {0}, 2: {1}, 3: {2}}), ("fused_moe", {1: {0}, 2: {0}, 3: {0}})],
)
def test_seeds_of_blocks(tmp_path: Path, feature: str, expected: dict[int, set[int]]) -> None:
    assert seeds(tmp_path, feature) == expected
