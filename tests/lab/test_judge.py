"""Readings over the blocks of one feature."""

from dataclasses import dataclass
from typing import Any, cast

import pytest

from lanewise.lab.judge import JudgedBlock, losses_at
from lanewise.measure.loss_curve import LossComparison, LossPair


@dataclass(frozen=True)
class Evidence:
    """A block of which only the losses are known."""

    found: LossComparison | None

    def losses(self) -> LossComparison | None:
        return self.found


def blocks(*pairs: tuple[float, float] | None) -> list[JudgedBlock]:
    judged = []
    for pair in pairs:
        found = None
        if pair is not None:
            both = LossPair(control=pair[0], treated=pair[1])
            found = LossComparison(equal_steps=both, equal_time=both, num_steps=1, seconds=1.0)
        judged.append(JudgedBlock(evidence=cast("Any", Evidence(found)), faults=()))
    return judged


@pytest.mark.parametrize(
    ("pairs", "expected"),
    [
        ([(5.0, 5.25)], (5.0, 5.25, 0.25)),
        # Medians of each arm alone would say 3.0 → 3.5 beside a delta of −0.5.
        ([(3.0, 2.5), (2.0, 4.0), (4.0, 3.5)], (3.5, 3.0, -0.5)),
        ([(3.0, 2.5), (2.0, 4.0), (4.0, 3.5), None], (3.5, 3.0, -0.5)),
        ([(5.0, 5.25), (3.0, 3.75)], (4.0, 4.5, 0.5)),
    ],
)
def test_losses_of_the_arms_differ_by_the_delta_beside_them(
    pairs: list[tuple[float, float] | None], expected: tuple[float, float, float]
) -> None:
    metric = losses_at(blocks(*pairs), lambda found: found.equal_time)
    assert metric.delta == expected[2]
    assert metric.control is not None
    assert metric.treated is not None
    assert metric.treated - metric.control == metric.delta


def test_without_a_finite_loss_the_reason_says_so() -> None:
    metric = losses_at(blocks(None), lambda found: found.equal_time)
    assert metric.delta is None
    assert metric.reason == "no block that counts has a finite loss in both arms"
