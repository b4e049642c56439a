"""A calibration as lines and as a chart."""

from xml.etree import ElementTree

from lanewise.dash.calibration import aa_strip, calibration_lines
from tests.receipts.calibrations import make_calibration


def line(name: str, **changes: object) -> str:
    return next(x for x in calibration_lines(make_calibration(**changes)) if x.startswith(name))


def test_every_line_says_what_it_measured() -> None:
    assert "block SD 1.42 % [0.90, 2.02] over 2 lockstep A/A blocks of 12 quads" in line("noise")
    assert "contains 0 ✓" in line("bias")
    assert "looks at 4, 8, 12 5.0 % [2.7, 9.0]" in line("false +")
    assert "δ = 1.41 %" in line("margin")
    assert "≥ 4.08 % in 4 blocks" in line("detects")
    assert line("observer").endswith(
        "0.060 % of a step accounted without messages to the lab, 0.030 % inside the timed step"
    )
    assert "planted 5.00 %: SLOWER as it should ✓, +4.81 % [+3.87, +5.76] covers it ✓" in line(
        "control"
    )
    assert "until 2026-12-23 on cpu-x86_64-2c" in line("valid")


def test_what_is_wrong_is_said_in_words() -> None:
    assert "BIASED" in line("bias", biased=True)
    assert "DRIFTS" in line("drift", drifting=True)
    missed = make_calibration().control
    assert missed is not None
    missed = missed.model_copy(update={"found": False, "verdict": "INCONCLUSIVE"})
    assert "INCONCLUSIVE WRONG" in line("control", control=missed)
    assert line("note", notes=("not pooled: another spread",)).endswith(
        "not pooled: another spread"
    )


def test_an_observer_campaign_is_held_against_the_accounted_cost() -> None:
    observer = {
        "in_step_ratio": 0.0003,
        "total_ratio": 0.0006,
        "campaign_id": "x",
        "log_ratio": 0.001,
        "interval_log": {"low": -0.004, "high": 0.006},
        "contains_direct": True,
    }
    assert "contains it ✓" in line("observer", observer=observer)
    missed = {**observer, "contains_direct": False}
    assert "does NOT contain it" in line("observer", observer=missed)
    strict = {**missed, "strict_interval_log": {"low": -0.009, "high": 0.011}}
    assert line("observer", observer={**strict, "contradicts_direct": False}).endswith(
        "does not contain it, the interval at 99.9 % [−0.90, +1.11] contains it ✓"
    )
    assert line("observer", observer={**strict, "contradicts_direct": True}).endswith(
        "CONTRADICTS it"
    )


def test_the_strip_has_a_dot_for_every_block_and_the_margin_behind_them() -> None:
    drawing = ElementTree.fromstring(aa_strip(make_calibration()))
    dots = [e for e in drawing.iter("circle") if "quiet" in e.get("class", "")]
    assert len(dots) == 2
    (band,) = [e for e in drawing.iter("rect") if e.get("class") == "margin"]
    top, bottom = float(band.get("y", 0)), float(band.get("y", 0)) + float(band.get("height", 0))
    assert all(top < float(dot.get("cy", 0)) < bottom for dot in dots)
    assert float(dots[0].get("cy", 0)) < float(dots[1].get("cy", 0)), "slower stands higher"
