"""Looks and corrected p-values in words."""

import pytest

from lanewise.dash.decision_view import decision_view
from lanewise.dash.looks import (
    adjustment_sentence,
    boundary_words,
    detection_lines,
    look_words,
    p_cell,
    stopped_early,
)
from lanewise.dash.rows import rows
from lanewise.receipts.decision import Boundary, LookRecord
from tests.dash.conftest import Example
from tests.receipts.factory import CAMPAIGN, make_campaign, make_decision

THREE = {"looks": [4, 8, 12], "alpha": 0.05, "nominal_alpha": 0.0205}
ONE = {"looks": [4], "alpha": 0.05, "nominal_alpha": 0.05}
HOLM = {"boundary": THREE, "adjusted_p": 0.03, "adjustment": "holm"}


def test_a_boundary_is_said_with_its_levels() -> None:
    assert boundary_words(Boundary.model_validate(THREE)) == (
        "after 4, 8 and 12 blocks, each at 2.1 % (5 % over all)"
    )
    assert boundary_words(Boundary.model_validate(ONE)) == "once, after 4 blocks, at 5 %"


def test_a_look_says_what_it_saw_and_why_it_stopped() -> None:
    look = LookRecord(num_blocks=4, log_ratio=-0.0315, nominal_p=0.0042, outcome="futile")
    assert look_words(look) == (
        "4 blocks: −3.1 %, p = 0.0042, the blocks left would most likely tell no more"
    )


@pytest.mark.parametrize(
    ("p", "cell"), [(0.0123, "0.012"), (0.0009, "< 0.001"), (1.0, "1"), (None, "—")]
)
def test_p_values_have_two_digits(p: float | None, cell: str) -> None:
    assert p_cell(p) == cell


def test_features_of_one_plan_share_a_line() -> None:
    planned = {**CAMPAIGN["features"][0], "boundary": THREE, "detectable_log": 0.0309}
    campaign = make_campaign(
        {
            "features": [
                planned,
                {**planned, "feature": "fused_mamba"},
                {**planned, "feature": "stp", "detectable_log": 0.0296},
                {**planned, "feature": "engram", "skipped_reason": "over budget"},
            ]
        }
    )
    assert detection_lines(campaign) == (
        "looks after 4, 8 and 12 blocks, each at 2.1 % (5 % over all) · finds ≥ 3.1 %: fused_moe, fused_mamba",
        "looks after 4, 8 and 12 blocks, each at 2.1 % (5 % over all) · finds ≥ 3.0 %: stp",
    )
    assert detection_lines(make_campaign()) == (), "documents before 1.2 knew no looks"


def test_the_sentence_on_many_features_says_that_verdicts_are_per_feature() -> None:
    two = [make_decision(HOLM), make_decision({**HOLM, "feature": "fused_mamba"})]
    sentence = adjustment_sentence(two)
    assert sentence is not None
    assert sentence.startswith("Verdicts are per feature")
    assert "Holm" in sentence
    screened = [d.model_copy(update={"adjustment": "benjamini_hochberg"}) for d in two]
    assert "a screen ranks candidates and proves nothing" in (adjustment_sentence(screened) or "")
    assert adjustment_sentence(two[:1]) is None, "one claim needs no correction"
    assert adjustment_sentence([make_decision(), make_decision()]) is None


def test_only_a_complete_decision_was_stopped_by_a_look() -> None:
    assert stopped_early(make_decision(HOLM))
    assert not stopped_early(make_decision({**HOLM, "status": "INCOMPLETE"}))
    assert not stopped_early(make_decision())


def test_the_detail_of_a_decision_tells_its_looks(example: Example) -> None:
    decision = example.evidence.decisions[0]
    (row,) = rows([decision])
    facts = dict(decision_view(decision, row, example.evidence).facts)
    assert facts["looks planned"] == "after 3 and 9 blocks, each at 3 % (5 % over all)"
    assert facts["looks taken"].endswith("p < 0.001, a difference")
    assert facts["adjusted p"] == "0.0032 (Holm, over everything the campaign asked)"


def test_the_report_shows_stops_levels_and_what_the_corrected_p_means(example: Example) -> None:
    assert "stopped at 3 of 9" in example.html
    assert "looked at after 3 and 9 blocks, each at 3 % (5 % over all), adjusted p 0.0032" in (
        example.html
    )
    assert "Verdicts are per feature" in example.html
    assert "Looks were planned before the first block" in example.html


@pytest.mark.parametrize("looks", [[], [0], [4, 4], [8, 4]])
def test_a_boundary_without_ascending_looks_is_refused(looks: list[int]) -> None:
    with pytest.raises(ValueError, match=r"looks|item|greater than 0"):
        Boundary.model_validate({**THREE, "looks": looks})
