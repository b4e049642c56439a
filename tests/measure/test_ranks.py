"""Goodput per rank, against numbers added up by hand and a loop that knows nothing of arrays."""

import random

import pytest

from lanewise.measure.ranks import RankReading, fold_ranks
from lanewise.receipts.schema import BADPUT_CATEGORIES, Goodput


def reading(steps: list[float], *, data_wait: float = 0.0, other: float = 0.0) -> RankReading:
    wall = sum(steps) + data_wait + other
    badput = dict.fromkeys(BADPUT_CATEGORIES, 0.0) | {"data_wait": data_wait, "other": other}
    return RankReading(
        goodput=Goodput(
            wall_duration_seconds=max(0.0, wall),
            step_seconds=sum(steps),
            goodput_ratio=0.5,
            badput_seconds=badput,
        ),
        step_seconds=tuple(steps),
    )


def test_a_step_ends_with_its_slowest_rank():
    folded = fold_ranks([reading([1.0, 2.0, 1.0]), reading([1.5, 1.0, 1.0])])
    assert folded.job_step_seconds == pytest.approx(1.5 + 2.0 + 1.0)
    # The mean rank takes 1.25 + 1.5 + 1.0.
    assert folded.straggler_ratio == pytest.approx(4.5 / 3.75)
    assert folded.steps_ended_by == (2, 1), "the tie of step 2 goes to the lowest rank"
    assert folded.median_step_spread_ratio == pytest.approx(0.5)
    assert (folded.step_seconds.slowest_rank, folded.step_seconds.fastest_rank) == (0, 1)
    assert folded.step_seconds.mean == pytest.approx(3.75)


def test_badput_names_the_rank_with_most_and_with_least_of_each_category():
    folded = fold_ranks(
        [
            reading([1.0], data_wait=0.2),
            reading([1.0], data_wait=0.9, other=0.1),
            reading([1.0], data_wait=0.1),
        ]
    )
    waited = folded.badput_seconds["data_wait"]
    assert (waited.slowest, waited.slowest_rank) == (0.9, 1)
    assert (waited.fastest, waited.fastest_rank) == (0.1, 2)
    assert waited.mean == pytest.approx(0.4)
    assert folded.badput_seconds["other"].slowest_rank == 1
    assert set(folded.badput_seconds) == {*BADPUT_CATEGORIES, "other"}
    assert folded.wall_duration_seconds.slowest == pytest.approx(2.0)


def test_one_rank_folds_to_itself():
    folded = fold_ranks([reading([0.3, 0.1, 0.2])])
    assert folded.straggler_ratio == 1.0
    assert folded.job_step_seconds == pytest.approx(0.6)
    assert folded.step_seconds.slowest_rank == folded.step_seconds.fastest_rank == 0


def test_many_ranks_agree_with_a_plain_loop():
    rng = random.Random(1)
    ranks = [[0.1 * (1 + rng.random()) for _ in range(50)] for _ in range(7)]
    folded = fold_ranks([reading(steps) for steps in ranks])
    total, ended = 0.0, [0] * 7
    for step in range(50):
        slowest = max(range(7), key=lambda rank: ranks[rank][step])
        total += ranks[slowest][step]
        ended[slowest] += 1
    assert folded.job_step_seconds == pytest.approx(total)
    assert folded.steps_ended_by == tuple(ended)
    assert folded.straggler_ratio > max(sum(steps) for steps in ranks) / (
        sum(map(sum, ranks)) / 7
    ), "single steps straggle more than totals show"


@pytest.mark.parametrize(
    ("ranks", "message"),
    [
        ([], "no rank"),
        ([reading([1.0]), reading([1.0, 1.0])], "1 to 2 steps"),
        ([reading([])], "no steps"),
        ([reading([1.0]), reading([0.0])], "positive"),
    ],
)
def test_what_cannot_be_folded_is_refused(ranks, message):
    with pytest.raises(ValueError, match=message):
        fold_ranks(ranks)
