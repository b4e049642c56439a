"""Scales, name wrapping, and a canvas that cannot produce broken XML."""

import math
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lanewise.dash.svg import (
    Canvas,
    Linear,
    Logarithmic,
    SignedLogarithmic,
    linear_ticks,
    wrap_name,
)


def canvas() -> Canvas:
    return Canvas(name="a chart", title="<b>&title", description='"quoted"', width=100, height=50)


def test_text_is_escaped_and_the_chart_is_accessible() -> None:
    drawing = canvas()
    drawing.text(1, 2, "<script>alert(1)</script>")
    markup = drawing.markup()
    root = ElementTree.fromstring(markup)
    assert "<script>" not in markup
    assert root.get("role") == "img"
    assert [child.tag for child in root][:2] == ["title", "desc"]
    assert root[0].text == "<b>&title"
    assert root.get("aria-labelledby", "").split() == [root[0].get("id"), root[1].get("id")]


def test_empty_shapes_draw_nothing() -> None:
    drawing = canvas()
    drawing.rect(0, 0, -1, 5, "bar")
    drawing.filled(0, 0, 0, 5, "red")
    drawing.path([], "line")
    assert len(ElementTree.fromstring(drawing.markup())) == 2


def test_shapes_carry_their_tip() -> None:
    drawing = canvas()
    drawing.rect(0, 0, 3, 5, "bar", tip="5 ms")
    (bar,) = ElementTree.fromstring(drawing.markup()).findall("rect")
    assert bar.findtext("title") == "5 ms"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("fused_moe", ("fused_moe",)),
        ("fused_mla_projection_absorbed", ("fused_mla_", "projection_", "absorbed")),
        ("averyverylongname", ("averyverylon", "gname")),
        ("", ("",)),
    ],
)
def test_names_wrap_at_their_joints(name: str, expected: tuple[str, ...]) -> None:
    assert wrap_name(name, 12) == expected


@given(st.from_regex(r"[a-z]{1,20}([_.-][a-z]{1,20}){0,5}", fullmatch=True), st.integers(3, 30))
def test_wrapping_loses_no_character(name: str, width: int) -> None:
    lines = wrap_name(name, width)
    assert "".join(lines) == name
    assert all(len(line) <= width + 1 for line in lines)


@given(st.floats(-1e3, 1e3), st.floats(1e-6, 1e3), st.integers(2, 8))
def test_linear_ticks_are_inside_and_round(low: float, span: float, count: int) -> None:
    high = low + span
    ticks = linear_ticks(low, high, count)
    assert all(low - 1e-9 * abs(low) - span * 1e-6 <= tick <= high + span * 1e-6 for tick in ticks)
    assert len(ticks) <= 2 * count + 2


def test_ticks_of_an_empty_range() -> None:
    assert linear_ticks(2.0, 2.0) == (2.0,)


def test_scales_meet_their_ends() -> None:
    for scale in (
        Linear(low=1, high=9, start=10, end=90),
        Logarithmic(low=1, high=9, start=10, end=90),
        SignedLogarithmic(low=1, high=9, knee=0.5, start=10, end=90),
    ):
        assert scale(1) == pytest.approx(10)
        assert scale(9) == pytest.approx(90)


def test_a_scale_without_a_range_centres() -> None:
    assert Linear(low=1, high=1, start=0, end=10)(1) == 5
    assert Logarithmic(low=1, high=1, start=0, end=10)(1) == 5


def test_logarithmic_ticks_of_a_short_range_are_linear() -> None:
    assert Logarithmic(low=0.1, high=0.6, start=0, end=1).ticks() == (0.1, 0.2, 0.5)
    assert len(Logarithmic(low=0.31, high=0.49, start=0, end=1).ticks()) >= 2


@given(st.floats(-3, 3), st.floats(-3, 3))
def test_the_signed_logarithm_keeps_order(a: float, b: float) -> None:
    scale = SignedLogarithmic(low=-3, high=3, knee=0.01, start=0, end=100)
    if a < b:
        assert scale(a) <= scale(b)
    assert scale(-a) == pytest.approx(100 - scale(a))


def test_the_signed_logarithm_shows_small_and_large_effects() -> None:
    scale = SignedLogarithmic(low=math.log(0.25), high=math.log(1.1), knee=0.01, start=0, end=420)
    assert scale(0.0) - scale(math.log(0.995)) > 20, "half a percent can be seen"
    assert scale(math.log(0.5)) - scale(math.log(0.29)) > 20, "and so can 50 against 71 percent"
