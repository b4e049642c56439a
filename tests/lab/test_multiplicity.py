"""Corrected p-values over the claims of one campaign."""

import pytest

from lanewise.lab.multiplicity import adjusted
from tests.receipts.factory import make_decision


def claim(feature: str, p: float | None, **changes):
    return make_decision(
        {"feature": feature, "decision_id": f"c-{feature}", "estimate.p_value": p, **changes}
    )


def corrected(decisions, mode="confirm"):
    return {d.feature: d.adjusted_p for d in adjusted(decisions, mode)}


def test_holm_on_a_worked_example():
    # 4 · 0.005, 3 · 0.01, 2 · 0.03, then never below the one before
    found = adjusted(
        [claim("a", 0.01), claim("b", 0.04), claim("c", 0.03), claim("d", 0.005)], "confirm"
    )
    assert [d.adjusted_p for d in found] == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert {d.adjustment for d in found} == {"holm"}


def test_screens_control_the_share_of_false_ones():
    found = adjusted([claim("a", 0.01), claim("b", 0.04), claim("c", 0.03)], "screen")
    assert [d.adjusted_p for d in found] == pytest.approx([0.03, 0.04, 0.04])
    assert {d.adjustment for d in found} == {"benjamini_hochberg"}


def test_a_tax_and_the_full_stack_are_claims_like_any_other():
    found = corrected(
        [claim("full_stack", 0.01, role="stack"), claim("mtp", 0.02, tax_budget_ratio=1.2)]
    )
    assert found == pytest.approx({"full_stack": 0.02, "mtp": 0.02})


def test_features_without_a_p_still_count_in_the_family():
    found = corrected(
        [
            claim("a", 0.01),
            claim("invalid", 0.001, verdict="INVALID"),
            claim("incomplete", 0.001, status="INCOMPLETE"),
            claim("empty", None),
        ]
    )
    assert found == pytest.approx({"a": 0.04, "invalid": None, "incomplete": None, "empty": None})


def test_an_a_a_and_what_was_never_run_claim_nothing():
    found = corrected(
        [
            claim("a", 0.01),
            claim("none", 0.5, verdict="NOISE"),
            make_decision({"feature": "b", "verdict": "NOT_MEASURED", "estimate": None}),
        ]
    )
    assert found == {"a": 0.01, "none": None, "b": None}


def test_more_results_never_make_a_correction_harsher():
    """A resumed campaign may show its finished features already: their corrected p can only fall."""
    before = corrected([claim("a", 0.01), claim("b", 0.03), claim("c", None)])
    after = corrected([claim("a", 0.01), claim("b", 0.03), claim("c", 0.02)])
    assert after["a"] <= before["a"]
    assert after["b"] <= before["b"]
