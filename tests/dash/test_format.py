"""Numbers as people read them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lanewise.dash import format as fmt


@pytest.mark.parametrize(
    ("fraction", "expected"),
    [
        (-0.713, "−71.3 %"),
        (0.022, "+2.2 %"),
        (0.0, "0.0 %"),
        (-0.0004, "0.0 %"),
        (0.0004, "0.0 %"),
        (2.9, "+290.0 %"),
        (None, "—"),
    ],
)
def test_signed_percent(fraction: float | None, expected: str) -> None:
    assert fmt.signed_percent(fraction) == expected


def test_interval_keeps_both_signs() -> None:
    assert fmt.percent_interval(-0.031, 0.014) == "[−3.1, +1.4]"
    assert fmt.percent_interval(-0.0004, 0.0003, digits=2) == "[−0.04, +0.03]"


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (-0.012, -0.0003, "[−1.20, −0.03]"),
        (0.00004, 0.012, "[+0.004, +1.200]"),
        (-0.012, 0.0003, "[−1.2, 0.0]"),
        (-0.012, 0.0, "[−1.2, 0.0]"),
        (-0.012, -1e-12, "[−1.200000, 0.000000]"),
    ],
)
def test_an_interval_without_zero_does_not_end_in_it(
    low: float, high: float, expected: str
) -> None:
    assert fmt.percent_interval(low, high) == expected


def test_a_narrow_interval_gets_a_second_decimal() -> None:
    assert fmt.percent_digits([(-0.72, -0.70), (-0.031, 0.014)]) == 1
    assert fmt.percent_digits([(-0.72, -0.70), (-0.0004, 0.0003)]) == 2
    assert fmt.percent_digits([]) == 1


@pytest.mark.parametrize(
    ("num_bytes", "expected"),
    [
        (-41 * 2**20, "−41 MiB"),
        (3.4 * 2**20, "+3.4 MiB"),
        (0, "0 MiB"),
        (-100, "0 MiB"),
        (1.5 * 2**30, "+1.50 GiB"),
        (None, "—"),
    ],
)
def test_signed_mebibytes(num_bytes: float | None, expected: str) -> None:
    assert fmt.signed_mebibytes(num_bytes) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0.11, "110 ms"),
        (1.238, "1.24 s"),
        (18.2e-6, "18.2 µs"),
        (3e-9, "3.00 ns"),
        (0.0, "0 s"),
        (-0.002, "−2.00 ms"),
        (220.0, "3 min 40 s"),
        (None, "—"),
    ],
)
def test_seconds(value: float | None, expected: str) -> None:
    assert fmt.seconds(value) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (42.4, "42 s"),
        (59.6, "1 min"),
        (220, "3 min 40 s"),
        (245, "4 min 05 s"),
        (3900, "1 h 05 min"),
        (3599.7, "1 h 00 min"),
    ],
)
def test_duration(value: float, expected: str) -> None:
    assert fmt.duration(value) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [(42, "0:42"), (0, "0:00"), (-3, "0:00"), (725, "12:05"), (3723, "1:02:03")],
)
def test_clock(value: float, expected: str) -> None:
    assert fmt.clock(value) == expected


@pytest.mark.parametrize(
    ("value", "unit", "expected"),
    [
        (24.8e9, "FLOP", "24.8 GFLOP"),
        (1.9e6, "", "1.90 M"),
        (999.6e3, "B", "1.00 MB"),
        (512, "tokens", "512 tokens"),
        (0.25, "s", "0.25 s"),
        (-2e3, "B", "−2.00 kB"),
        (None, "B", "—"),
    ],
)
def test_si(value: float | None, unit: str, expected: str) -> None:
    assert fmt.si(value, unit) == expected


@pytest.mark.parametrize(
    ("factor", "expected"), [(3.9, "3.9×"), (1.042, "1.04×"), (31.2, "31×"), (0.5, "0.50×")]
)
def test_times(factor: float, expected: str) -> None:
    assert fmt.times(factor) == expected


def test_the_rest_of_the_units() -> None:
    assert fmt.signed_points(0.002) == "+0.2 pp"
    assert fmt.signed_points(None) == "—"
    assert fmt.percent(0.9349) == "93.5 %"
    assert fmt.mebibytes(412 * 2**20) == "412 MiB"
    assert fmt.tokens_per_second(9312) == "9.31 k tokens/s"
    assert fmt.scientific(1.24e-7) == "1.2e−7"
    assert fmt.scientific(0.0) == "0"
    assert fmt.milliseconds(0.1102) == "110.2 ms"
    assert fmt.signed_milliseconds(-0.0021) == "−2.1 ms"
    assert fmt.plural(1, "block") == "1 block"
    assert fmt.plural(3, "block") == "3 blocks"
    assert fmt.short_digest("sha256:" + "ab" * 32) == "sha256:abababab…"
    assert fmt.short_digest("unhashed") == "unhashed"


@given(st.floats(min_value=-1e6, max_value=1e6))
def test_signed_percent_reads_back_to_the_value(fraction: float) -> None:
    text = fmt.signed_percent(fraction)
    back = float(text.removesuffix(" %").replace("−", "-")) / 100.0
    assert back == pytest.approx(fraction, abs=0.00051)
    assert "-" not in text


@given(st.floats(min_value=-1e12, max_value=1e12, allow_nan=False))
def test_no_ascii_minus_and_no_signed_zero(value: float) -> None:
    for text in (
        fmt.signed(value),
        fmt.seconds(value),
        fmt.si(value, "B"),
        fmt.signed_mebibytes(value),
    ):
        assert "-" not in text
        assert not text.startswith(("−0.0 ", "+0.0 "))
