"""Decisions as rows of text."""

import pytest

from lanewise.dash.rows import COLUMNS, columns, interval_of, rows
from lanewise.receipts.decision import Verdict
from tests.receipts.factory import make_decision


def test_the_columns_are_the_ones_a_person_was_promised() -> None:
    assert [column.title for column in COLUMNS] == [
        "feature",
        "role",
        "vs",
        "Δ step time",
        "95 % interval",
        "adjusted p",
        "stopped at",
        "Δ tokens/s",
        "Δ memory",
        "Δ goodput",
        "Δ loss at equal steps",
        "Δ loss at equal time",
        "observed",
        "verdict",
        "stance",
    ]


def test_a_complete_decision_fills_every_cell() -> None:
    (row,) = rows([make_decision()])
    assert [row.cell(column) for column in COLUMNS] == [
        "fused_moe",
        "hot_path",
        "padded.torch",
        "−31.0 %",
        "[−33.0, −29.0]",
        "—",
        "—",
        "+45.0 %",
        "−11 MiB",
        "+1.0 pp",
        "—",
        "—",
        "sorted.torch ✓",
        "FASTER",
        "default on",
    ]


def test_what_was_not_measured_is_a_dash_and_sorts_by_nothing() -> None:
    nothing = {"control": None, "treated": None, "delta": None, "reason": "no compiler"}
    (row,) = rows(
        [
            make_decision(
                {
                    "estimate": None,
                    "verdict": "NOT_MEASURED",
                    "observed": [],
                    "tokens_per_second": nothing,
                    "peak_memory_bytes": nothing,
                    "goodput": nothing,
                }
            )
        ]
    )
    cells = (row.step_time, row.interval, row.tokens, row.memory, row.goodput, row.observed)
    assert set(cells) == {"—"}
    assert row.sort_keys == {}


def test_a_wrong_backend_is_marked_without_colour() -> None:
    wrong, nothing = rows(
        [
            make_decision({"observed": ["padded.torch"], "observed_ok": False}),
            make_decision({"observed": [], "observed_ok": False}),
        ]
    )
    assert wrong.observed == "padded.torch ✗"
    assert nothing.observed == "nothing ✗"


def test_an_incomplete_decision_shows_no_verdict() -> None:
    (row,) = rows([make_decision({"status": "INCOMPLETE", "verdict": "FASTER"})])
    assert (row.verdict, row.tone) == ("INCOMPLETE", "bad")


@pytest.mark.parametrize("verdict", list(Verdict))
def test_every_verdict_has_a_word_and_a_tone(verdict: Verdict) -> None:
    (row,) = rows([make_decision({"verdict": verdict.value})])
    assert row.verdict == verdict.value
    assert row.tone in ("good", "bad", "open", "quiet")


def test_one_block_has_no_interval() -> None:
    decision = make_decision({"estimate.half_width_log": None})
    assert interval_of(decision) is None
    assert rows([decision])[0].interval == "—"
    assert rows([decision])[0].step_time == "−31.0 %"


def test_a_narrow_interval_gives_every_row_two_decimals() -> None:
    narrow = {
        "estimate.ratio": 0.9,
        "estimate.interval_low": 0.8995,
        "estimate.interval_high": 0.9005,
    }
    first, second = rows([make_decision(), make_decision(narrow)])
    assert (first.step_time, second.interval) == ("−31.00 %", "[−10.05, −9.95]")


def test_the_header_names_the_confidence_used() -> None:
    titles = [c.title for c in columns([make_decision({"estimate.confidence": 0.978})])]
    assert "97.8 % interval" in titles


def test_where_decisions_differ_in_confidence_every_interval_says_its_own() -> None:
    two = [make_decision(), make_decision({"estimate.confidence": 1 - 0.05 / 8})]
    assert "interval" in [c.title for c in columns(two)]
    first, second = rows(two)
    assert first.interval.endswith("] 95 %")
    assert second.interval.endswith("] 99.37 %")
    assert "99.37 % interval" in [c.title for c in columns(two[1:])]
    assert rows(two[1:])[0].interval.endswith("]")


TAX = {
    "role": "tax",
    "loss_equal_steps": {"control": 3.66, "treated": 3.628, "delta": -0.032},
    "loss_equal_time": {"control": 3.66, "treated": 3.6702, "delta": 0.0102},
}


def test_a_tax_shows_its_loss_at_equal_steps_and_at_equal_time() -> None:
    (row,) = rows([make_decision(TAX)])
    assert (row.loss_steps, row.loss_time) == ("−0.032", "+0.010")
    assert row.sort_keys["loss_time"] == 0.0102


def test_losses_have_columns_only_beside_a_decision_that_compares_them() -> None:
    keys = [column.key for column in columns([make_decision()])]
    assert not {"loss_steps", "loss_time"} & set(keys)
    keys = [column.key for column in columns([make_decision(), make_decision({**TAX, **LOOKS})])]
    assert keys == [column.key for column in COLUMNS]


LOOKS = {
    "boundary": {"looks": [1, 4], "alpha": 0.05, "nominal_alpha": 0.03},
    "looks": [{"num_blocks": 1, "log_ratio": -0.3, "nominal_p": 0.002, "outcome": "difference"}],
    "adjusted_p": 0.0123,
    "adjustment": "holm",
}


def test_a_decision_that_knows_its_looks_says_where_it_stopped_and_its_corrected_p() -> None:
    old, new = rows([make_decision(), make_decision(LOOKS)])
    assert (new.stopped_at, new.adjusted_p) == ("1 of 4", "0.012")
    assert new.sort_keys["adjusted_p"] == 0.0123
    assert (old.stopped_at, old.adjusted_p) == ("—", "—")


def test_documents_before_looks_were_known_have_no_column_for_them() -> None:
    keys = [column.key for column in columns([make_decision()])]
    assert not {"stopped_at", "adjusted_p"} & set(keys)
