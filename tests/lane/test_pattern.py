import pytest
from hypothesis import given
from hypothesis import strategies as st

from lanewise.lane.pattern import LETTERS, fault, tile

patterns = st.text("AEMRGD", min_size=1, max_size=15)


@given(patterns, st.integers(1, 100))
def test_layer_i_is_letter_i_modulo_the_length(pattern: str, num_layers: int) -> None:
    letters = tile(pattern, num_layers)
    assert len(letters) == num_layers
    assert all(letters[i] == pattern[i % len(pattern)] for i in range(num_layers))


@given(patterns, st.integers(1, 5))
def test_whole_periods_repeat_the_pattern(pattern: str, periods: int) -> None:
    assert "".join(tile(pattern, periods * len(pattern))) == pattern * periods


def test_nam56r_has_the_published_layers() -> None:
    letters = tile("AEMEAEMEAEMR", 52)
    assert {letter: letters.count(letter) for letter in "AEMR"} == {
        "A": 13,
        "E": 22,
        "M": 13,
        "R": 4,
    }
    assert [i + 1 for i, letter in enumerate(letters) if letter == "R"] == [12, 24, 36, 48]
    assert [i + 1 for i, letter in enumerate(letters) if letter == "A"] == list(range(1, 50, 4))


@given(st.characters(exclude_characters="AEMRGD"))
def test_an_impossible_letter_is_named_with_its_position_and_the_alphabet(letter: str) -> None:
    reason = fault(f"AE{letter}")
    assert reason is not None
    assert repr(letter) in reason
    assert "position 3" in reason
    assert all(f"{known} " in reason for known in LETTERS)


def test_a_lower_case_letter_gets_a_suggestion() -> None:
    assert "Did you mean 'E'?" in str(fault("Ae"))


def test_empty_patterns_and_empty_models_are_refused() -> None:
    with pytest.raises(ValueError, match="is empty"):
        tile("", 1)
    with pytest.raises(ValueError, match="must be at least 1"):
        tile("A", 0)
