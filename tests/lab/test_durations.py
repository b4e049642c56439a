import pytest

from lanewise.errors import UsageError
from lanewise.lab.durations import parse_budget


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90s", 90),
        ("5m", 300),
        ("1h", 3600),
        ("45", 45),
        ("1.5 m", 90),
        ("2m30s", 150),
        ("1h 1m", 3660),
    ],
)
def test_budgets_are_durations(text, seconds):
    assert parse_budget(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "five", "-3m", "0s", "5 days", "nan", "30s2m", "5m 5m", "2m30"]
)
def test_what_is_no_duration_is_refused(text):
    with pytest.raises(UsageError, match="90s, 5m or 1h30m"):
        parse_budget(text)
