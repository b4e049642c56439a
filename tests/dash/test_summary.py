"""Sentences about a campaign."""

from typing import Any

import pytest

from lanewise.dash.summary import (
    LaneFacts,
    closing_lines,
    gaps,
    header_lines,
    largest_effect,
    plan_lines,
    receipt_ids,
    stack_sentence,
    verdict_sentence,
)
from tests.receipts.factory import CAMPAIGN, make_campaign, make_decision, make_receipt

PLANNED: dict[str, Any] = CAMPAIGN["features"][0]


def test_header_says_machine_lane_and_plan() -> None:
    machine, lane, sizes, plan = header_lines(
        make_campaign(), LaneFacts.from_receipt(make_receipt())
    )
    assert machine.startswith(
        "lanewise 0.1.0 · cpu-x86_64-2c · 2 × x86_64 cores, no GPU · torch 2.13.0"
    )
    assert "corpus: stdlib, 11.9 M tokens, sha256:" in machine
    assert lane.startswith("lane    nam56r-tiny · AEMEAEMEAEMR, 12 layers · h128 · s64×mb8 · adamw")
    assert sizes.strip() == "1.90 M parameters (1.10 M active) · 3.38 GFLOP/step"
    assert plan == (
        "plan    1 feature × 3 lockstep blocks = 6 processes, 28 s of 5 min · detects ≥ 2.4 % "
        "(assumed noise; `lanewise calibrate` measures it)"
    )


def test_header_without_receipts_leaves_out_what_nobody_knows() -> None:
    assert len(header_lines(make_campaign())) == 3


def test_a_lane_with_an_unknown_spec_still_has_a_line() -> None:
    assert "nam56r-tiny" in header_lines(make_campaign({"lane.spec": {}}))[1]


def test_plan_names_skipped_features_and_counts_the_stack_apart() -> None:
    features = [
        PLANNED,
        {**PLANNED, "feature": "full_stack", "planned_blocks": 2},
        {**PLANNED, "feature": "regional_compile", "skipped_reason": "no C++ compiler"},
    ]
    first, skipped = plan_lines(make_campaign({"features": features, "noise_source": "aa-1"}))
    assert first.startswith(
        "plan    1 feature and the full stack × 2 to 3 lockstep blocks = 12 processes"
    )
    assert first.endswith("(noise from aa-1)")
    assert skipped.strip() == "not measured · regional_compile: no C++ compiler"


def test_verdict_sentence_counts_and_names_the_leader() -> None:
    decisions = [
        make_decision(),
        make_decision(
            {"feature": "fused_mamba", "estimate.log_ratio": -1.2, "estimate.ratio": 0.3}
        ),
        make_decision({"feature": "a", "verdict": "INCONCLUSIVE"}),
        make_decision({"feature": "full_stack", "estimate.log_ratio": -2.0}),
    ]
    assert verdict_sentence(make_campaign(), decisions) == (
        "On nam56r-tiny, 2 features shorten the step, led by fused_mamba (−70.0 %); "
        "1 cannot be told from noise yet."
    )


def test_verdict_sentence_speaks_of_one_in_the_singular() -> None:
    assert "1 feature shortens the step, led by fused_moe" in verdict_sentence(
        make_campaign(), [make_decision()]
    )


def test_verdict_sentence_when_all_was_skipped() -> None:
    skipped = make_campaign({"features.0.skipped_reason": "over budget"})
    assert verdict_sentence(skipped, []) == "On nam56r-tiny, 1 was not measured."
    assert (
        verdict_sentence(make_campaign({"features": []}), [])
        == "Nothing was measured on nam56r-tiny."
    )


def test_only_decided_features_can_lead() -> None:
    assert largest_effect([make_decision({"verdict": "INVALID"})]) is None
    assert largest_effect([make_decision({"verdict": "OVER_BUDGET"})]) is None


def test_a_complete_campaign_has_no_gaps() -> None:
    assert gaps(make_campaign(), [make_decision()]) == ()


def test_gaps_name_the_missing_decision() -> None:
    assert gaps(make_campaign(), []) == ("fused_moe: no decision, 0 of 3 blocks",)


def test_gaps_name_missing_blocks_and_arms() -> None:
    decision = make_decision(
        {"status": "INCOMPLETE", "blocks.0.receipts": {"A": []}, "blocks.0.valid": False}
    )
    assert gaps(make_campaign(), [decision]) == (
        "fused_moe: 0 of 3 blocks (block 0 arm A, block 0 arm B missing)",
    )


def test_gaps_use_the_recorded_reason() -> None:
    decision = make_decision({"status": "INCOMPLETE", "incomplete_reason": "2 of 3 blocks ran"})
    assert gaps(make_campaign(), [decision]) == ("fused_moe: 2 of 3 blocks ran",)


def test_a_skipped_feature_is_no_gap_but_a_running_campaign_is() -> None:
    skipped = {"features.0.skipped_reason": "no compiler"}
    assert gaps(make_campaign(skipped), []) == ()
    assert gaps(make_campaign({**skipped, "status": "RUNNING"}), []) == ("the campaign is RUNNING",)
    assert gaps(make_campaign({"status": "INCOMPLETE"}), [make_decision()]) == (
        "the campaign is INCOMPLETE",
    )


@pytest.mark.parametrize(
    ("ratio", "expected"),
    [
        (0.256, "Fastest proven combination: 3.9× as fast as the bare lane."),
        (1.25, "The full stack takes 1.25× the step time of the bare lane: nothing to combine."),
        (None, None),
    ],
)
def test_stack_sentence(ratio: float | None, expected: str | None) -> None:
    assert stack_sentence(make_campaign({"stack_ratio": ratio})) == expected


def test_closing_lines_end_with_the_proof() -> None:
    lines = closing_lines(
        make_campaign({"notes": ["Interactions: a × b cancel."]}),
        [make_decision()],
        store_root=".lanewise",
        report_path=".lanewise/reports/2026-11-23-nam56r-tiny.html",
    )
    assert lines == (
        "Fastest proven combination: 3.9× as fast as the bare lane.",
        "Interactions: a × b cancel.",
        "2 receipts, 1 decision in .lanewise · report: .lanewise/reports/2026-11-23-nam56r-tiny.html",
    )


def test_closing_lines_say_which_verdicts_are_about_the_host() -> None:
    text = "host-bound: the device works 26% of arm B's step of 1.40 ms"
    lines = closing_lines(
        make_campaign(), [make_decision(), make_decision({"host_bound": text})], store_root="s"
    )
    assert [line for line in lines if "host-bound" in line] == [f"fused_moe is {text}."]


def test_closing_lines_of_an_incomplete_campaign_say_how_to_finish_it() -> None:
    lines = closing_lines(make_campaign({"status": "INCOMPLETE"}), [], store_root=".lanewise")
    assert lines[-2] == (
        "INCOMPLETE: fused_moe: no decision, 0 of 3 blocks. "
        "Finish with `lanewise ablate nam56r-tiny --resume 2026-11-23-nam56r-tiny-7`."
    )
    assert not any("proven" in line for line in lines), "nothing is proven yet"


def test_receipts_cited_twice_count_once() -> None:
    assert len(receipt_ids([make_decision(), make_decision()])) == 2
