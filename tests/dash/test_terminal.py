"""The table on terminals of several widths, and as plain lines."""

import io

import pytest
from rich.console import Console

from lanewise.dash.rows import COLUMNS
from lanewise.dash.terminal import decision_table
from tests.dash.conftest import Example
from tests.dash.fixture_campaign import CASES, LONG_NAME


def printed(example: Example, width: int | None) -> list[str]:
    terminal = width is not None
    out = io.StringIO()
    console = Console(
        file=out,
        force_terminal=terminal,
        width=width or 80,
        soft_wrap=not terminal,
        color_system=None,
        legacy_windows=False,
    )
    console.print(decision_table(example.evidence.decisions))
    return out.getvalue().splitlines()


def test_elsewhere_than_on_a_terminal_lines_are_whole_and_aligned(example: Example) -> None:
    lines = printed(example, None)
    assert len(lines) == 1 + len(CASES)
    assert "\x1b" not in "".join(lines)
    starts = {
        line.find(word)
        for line, word in zip(lines, ["verdict", *(c.verdict for c in CASES)], strict=True)
    }
    assert len(starts) == 1, "the verdicts stand below each other"
    assert lines[8].startswith(f"{LONG_NAME}  selective")
    for row, case in zip(lines[1:], CASES, strict=True):
        assert case.feature in row
        assert row.endswith(case.stance)
        assert row == row.rstrip()


@pytest.mark.parametrize("width", [176, 180, 220])
def test_from_176_columns_on_every_column_is_there(example: Example, width: int) -> None:
    lines = printed(example, width)
    header = " ".join(" ".join(lines[:4]).split())
    for column in COLUMNS:
        assert set(column.title.split()) <= set(header.split()), column.title
    assert not any("not shown" in line for line in lines)


@pytest.mark.parametrize("width", [62, 80, 100, 120, 140, 160, 220])
def test_no_line_is_wider_than_the_terminal_and_nothing_is_cut(
    example: Example, width: int
) -> None:
    lines = printed(example, width)
    assert max(len(line) for line in lines) <= width
    text = "\n".join(lines)
    for case in CASES:
        assert case.verdict in text
        assert f"{case.feature.split('_')[-1]}" in text
    assert "[−72.1, −70.5]" in text
    assert "…" not in text


def test_a_narrow_terminal_says_what_it_leaves_out(example: Example) -> None:
    text = " ".join(" ".join(printed(example, 80)).split())
    assert (
        "not shown at this width: role, vs, stopped at, Δ tokens/s, Δ memory, Δ goodput, "
        "Δ loss at equal steps, Δ loss at equal time, stance"
    ) in text


def test_a_terminal_too_narrow_for_the_verdicts_gets_the_plain_lines(example: Example) -> None:
    text = "".join(printed(example, 30))
    assert "not shown" not in text


@pytest.mark.parametrize("width", range(62, 200, 3))
def test_the_loss_of_a_tax_is_never_shown_against_steps_alone(example: Example, width: int) -> None:
    lines = printed(example, width)
    (tax,) = (i for i, line in enumerate(lines) if "OVER_BUDGET" in line)
    if "−0.032" in lines[tax]:
        assert "−0.001" in lines[tax]
