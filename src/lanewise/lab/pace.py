"""Keeps a running campaign inside its budget: learns what blocks really cost and gives later ones fewer or more quads.

Where a person fixed the steps of a block, only the number of blocks follows the clock. Elsewhere the number of quads follows the clock and how many blocks are left, never an estimate of the feature itself, so it cannot
bias a verdict: what a look saves on one feature goes to the others.
"""

from __future__ import annotations

from collections.abc import Sequence

from lanewise.lab import protocol
from lanewise.lab.plan import RESERVE_RATIO, CampaignPlan, FeaturePlan, block_seconds

OVERRUN = 1.1
"""No block starts that would end later than this many budgets after the start."""

MAX_STRETCH = 2
"""A campaign ahead of its plan may give a block this many times the planned quads."""


class Pace:
    """Time left, and how many quads of the next block it pays for."""

    def __init__(self, plan: CampaignPlan, *, started: float, spent_seconds: float) -> None:
        """Start the campaign's clock.

        Args:
            plan: the plan.
            started: the clock's reading now.
            spent_seconds: what the pilot and earlier sittings used.
        """
        self._plan = plan
        # Half of the reserve is kept to the end: decisions and the report take time as well.
        self._end = started + plan.budget_seconds * (1.0 - RESERVE_RATIO / 2) - spent_seconds
        self._limit = started + plan.budget_seconds * OVERRUN - spent_seconds
        self._expected = 0.0
        self._actual = 0.0

    def record(self, feature: FeaturePlan, quads: int, wall_seconds: float) -> None:
        """Learn from a finished block."""
        self._expected += self._seconds(feature, quads)
        self._actual += wall_seconds

    def quads(self, left: Sequence[FeaturePlan], now: float) -> int | None:
        """Quads for the next block, so that all blocks left fit; None when there is no time for another block.

        Where a person fixed the steps of a block, it gets them or is not run.

        Args:
            left: feature of every block still to run, the next one first.
            now: the clock's reading.
        """
        if self._plan.steps is not None:
            fits = now + self._expect(left[0], left[0].quads) <= self._limit
            return left[0].quads if fits else None
        for quads in range(
            min(MAX_STRETCH * left[0].quads, protocol.MAX_QUADS), protocol.MIN_QUADS, -1
        ):
            if now + sum(self._expect(feature, quads) for feature in left) <= self._end:
                return quads
        fewest = protocol.MIN_QUADS
        return fewest if now + self._expect(left[0], fewest) <= self._limit else None

    def _expect(self, feature: FeaturePlan, quads: int) -> float:
        factor = self._actual / self._expected if self._expected > 0 else 1.0
        return factor * self._seconds(feature, quads)

    def _seconds(self, feature: FeaturePlan, quads: int) -> float:
        assert feature.control is not None, "a planned feature has the cost of both arms"
        assert feature.treated is not None, "a planned feature has the cost of both arms"
        return block_seconds(
            feature.control,
            feature.treated,
            quads,
            finish_seconds=self._plan.finish_seconds,
            design=self._plan.block_design,
        )
