"""The charts of the report: well-formed, inside their frame, and silent when there is nothing to draw."""

import re
from collections.abc import Callable, Sequence
from xml.etree import ElementTree

import pytest

from lanewise.dash.badput import badput, categories_present, partitions
from lanewise.dash.costs import anatomy, memory
from lanewise.dash.forest import forest
from lanewise.dash.losses import loss_charts
from lanewise.dash.rows import columns, rows
from lanewise.dash.strips import strips
from lanewise.measure.quality import SeedRuns, quality
from lanewise.receipts.decision import Decision
from lanewise.receipts.schema import StepSeries
from tests.dash.conftest import Example
from tests.dash.fixture_campaign import LONG_NAME
from tests.receipts.factory import make_decision, make_steps

Chart = Callable[[Sequence[Decision]], str | None]


def texts(root: ElementTree.Element) -> list[tuple[float, float, str, str]]:
    return [
        (float(t.get("x", "")), float(t.get("y", "")), t.get("text-anchor", ""), t.text or "")
        for t in root.iter("text")
    ]


def span(x: float, anchor: str, text: str) -> tuple[float, float]:
    width = 0.5 * 12.0 * len(text)
    start = {"start": x, "middle": x - width / 2, "end": x - width}[anchor]
    return start, start + width


def assert_sound(markup: str) -> ElementTree.Element:
    root = ElementTree.fromstring(markup)
    _, _, width, height = (float(n) for n in root.get("viewBox", "").split())
    for x, y, anchor, text in texts(root):
        left, right = span(x, anchor, text)
        assert left >= -2, f"{text!r} is cut on the left"
        assert right <= width + 2, f"{text!r} is cut on the right"
        assert 0 <= y <= height, f"{text!r} is outside"
    assert "nan" not in markup
    assert "inf" not in re.sub(r">[^<]*<", "><", markup)
    return root


def assert_no_overlap(root: ElementTree.Element) -> None:
    placed = texts(root)
    for i, (x, y, anchor, text) in enumerate(placed):
        for x2, y2, anchor2, text2 in placed[i + 1 :]:
            left, right = span(x, anchor, text)
            left2, right2 = span(x2, anchor2, text2)
            apart = right <= left2 or right2 <= left or abs(y - y2) >= 10.0
            assert apart, f"{text!r} and {text2!r} overlap"


@pytest.mark.parametrize("chart", [forest, anatomy, memory])
def test_charts_are_sound_and_name_every_feature_they_draw(chart: Chart, example: Example) -> None:
    markup = chart(example.evidence.decisions)
    assert markup is not None
    root = assert_sound(markup)
    assert_no_overlap(root)
    shown = "".join(text for *_place, text in texts(root))
    for feature in ("fused_mamba", "fused_residual", "extra_aux_losses"):
        assert feature in shown


@pytest.mark.parametrize("chart", [forest, anatomy, memory])
def test_charts_without_numbers_are_absent(chart: Chart) -> None:
    nothing = {"control": None, "treated": None, "delta": None, "reason": "off"}
    empty = make_decision(
        {"estimate": None, "control_step_seconds": None, "peak_memory_bytes": nothing}
    )
    assert chart([]) is None
    assert chart([empty]) is None


def test_forest_shows_margin_budget_interval_and_verdict(example: Example) -> None:
    markup = forest(example.evidence.decisions)
    assert markup is not None
    root = ElementTree.fromstring(markup)
    num_measured = sum(d.estimate is not None for d in example.evidence.decisions)
    kinds = [e.get("class", "") for e in root.iter()]
    assert kinds.count("margin") == num_measured
    assert kinds.count("budget") == 1
    assert sum(kind.startswith("whisker") for kind in kinds) == 3 * num_measured
    assert "OVER_BUDGET" in markup
    assert "stretched near 0" in markup
    assert LONG_NAME in "".join(t for *_p, t in texts(root))


def test_forest_of_like_effects_is_a_plain_log_axis() -> None:
    small = {"estimate.log_ratio": -0.01, "estimate.ratio": 0.99}
    ends = {"estimate.interval_low": 0.985, "estimate.interval_high": 0.995}
    markup = forest([make_decision({**small, **ends})])
    assert markup is not None
    assert_sound(markup)
    assert "stretched" not in markup


def test_forest_of_one_block_draws_no_whisker() -> None:
    markup = forest([make_decision({"estimate.half_width_log": None})])
    assert markup is not None
    assert "whisker" not in markup
    assert "one block, no interval" in markup


def test_anatomy_leaves_invalid_decisions_out(example: Example) -> None:
    markup = anatomy(example.evidence.decisions)
    assert markup is not None
    assert "absorbed" not in markup


def test_anatomy_bars_end_at_the_slower_arm() -> None:
    markup = anatomy([make_decision()])
    assert markup is not None
    root = ElementTree.fromstring(markup)
    base, gain = (
        next(e for e in root.iter("rect") if e.get("class") == kind)
        for kind in ("bar-base", "bar-gain")
    )
    end = float(gain.get("x", "")) + float(gain.get("width", ""))
    start = float(base.get("x", ""))
    assert float(base.get("width", "")) / (end - start) == pytest.approx(100 / 145, abs=0.01)


def test_badput_bars_fill_the_arms_own_time(example: Example) -> None:
    parts = partitions(example.evidence.decisions, example.evidence.receipts)
    markup = badput(parts)
    assert markup is not None
    root = assert_sound(markup)
    assert_no_overlap(root)
    rows: dict[float, float] = {}
    for bar in root.iter("rect"):
        if bar.get("fill") and bar.get("height") == "13":
            y = float(bar.get("y", ""))
            rows[y] = rows.get(y, 0.0) + float(bar.get("width", ""))
    assert len(rows) == len(parts)
    for width in rows.values():
        assert width == pytest.approx(480.0, abs=1.0)


def test_partitions_average_the_valid_blocks_of_each_arm(example: Example) -> None:
    parts = partitions(example.evidence.decisions, example.evidence.receipts)
    assert LONG_NAME not in {part.feature for part in parts}, "no block of it is valid"
    mamba = [part for part in parts if part.feature == "fused_mamba"]
    assert [(p.arm, p.state, p.num_receipts) for p in mamba] == [("A", "off", 3), ("B", "on", 3)]
    for part in mamba:
        whole = part.step_seconds + sum(part.badput_seconds.values())
        assert whole == pytest.approx(part.wall_seconds)
    assert "turn_wait" in categories_present(parts)
    assert "autotune" not in categories_present(parts)
    assert badput(()) is None


def test_every_block_with_a_series_has_a_sound_strip(example: Example) -> None:
    for decision in example.evidence.decisions:
        drawn = strips(decision, example.evidence.series)
        assert [strip.block for strip in drawn] == [block.block for block in decision.blocks]
        for strip, block in zip(drawn, decision.blocks, strict=True):
            root = assert_sound(strip.markup)
            assert_no_overlap(root)
            words = [text for *_place, text in texts(root)]
            assert f"warm-up {block.warmup_steps}" in words
            assert ("INVALID" in words) == (not block.valid)
            assert {"off", "on"} <= set(words)
            assert strip.markup.count("series arm-") == 2


def _series(decision: Decision, num_steps: int, spike: float = 1.0) -> dict[str, StepSeries]:
    steps = make_steps(num_steps)
    durations = list(steps.duration_seconds)
    durations[-2] *= spike
    one = steps.model_copy(update={"duration_seconds": tuple(durations)})
    return {i: one for ids in decision.blocks[0].receipts.values() for i in ids}


def test_slow_steps_are_clipped_and_marked() -> None:
    decision = make_decision()
    assert 'class="clipped' in strips(decision, _series(decision, 40, spike=30.0))[0].markup
    flat = make_decision({"blocks.0.warmup_steps": 0})
    steady = {
        i: s.model_copy(update={"duration_seconds": (0.1,) * 40})
        for i, s in _series(flat, 40).items()
    }
    assert 'class="clipped' not in strips(flat, steady)[0].markup


def test_long_series_are_thinned_without_losing_the_slowest_step() -> None:
    decision = make_decision()
    markup = strips(decision, _series(decision, 5000, spike=1.4))[0].markup
    paths = [e.get("d", "") for e in ElementTree.fromstring(markup).iter("path")]
    assert max(path.count("L") for path in paths) < 401


def test_warmup_that_never_ended_is_shaded_to_the_end() -> None:
    decision = make_decision({"blocks.0.warmup_steps": 99})
    (strip,) = strips(decision, _series(decision, 23))
    root = assert_sound(strip.markup)
    (shade,) = (e for e in root.iter("rect") if e.get("class") == "warmup")
    assert float(shade.get("width", "")) == pytest.approx(262.0)


def test_without_series_there_is_no_strip() -> None:
    assert strips(make_decision(), {}) == ()


def test_the_loss_chart_of_a_tax_shows_both_arms_and_says_both_deltas(example: Example) -> None:
    (chart,) = loss_charts(example.evidence.decisions, example.evidence.series)
    assert chart.feature == "extra_aux_losses"
    root = assert_sound(chart.markup)
    assert_no_overlap(root)
    assert root.findtext("title") == "Loss over step time, extra_aux_losses"
    assert root.findtext("desc") == chart.words
    assert "after 36 steps 3.660 without and 3.628 with the feature (−0.032)" in chart.words
    assert "(−0.001)" in chart.words
    kinds = [path.get("class") for path in root.iter("path")]
    assert kinds == ["series arm-a", "series arm-b", "series arm-b"]  # the last is the difference


def test_there_is_no_loss_chart_without_a_series_or_a_loss(example: Example) -> None:
    assert loss_charts(example.evidence.decisions, {}) == ()
    broken = {
        key: series.model_copy(update={"loss": (None,) * len(series.loss)})
        for key, series in example.evidence.series.items()
    }
    assert loss_charts(example.evidence.decisions, broken) == ()


def test_equal_losses_of_one_step_are_still_a_chart(example: Example) -> None:
    (decision,) = (d for d in example.evidence.decisions if d.role == "tax")
    flat = make_steps(1)
    series = dict.fromkeys(example.evidence.series, flat)
    (chart,) = loss_charts([decision], series)
    assert_sound(chart.markup)


def test_losses_of_several_seeds_are_drawn_thin_and_told_with_intervals(example: Example) -> None:
    evidence = example.evidence
    decision = next(d for d in evidence.decisions if d.feature == "extra_aux_losses")
    runs = [
        SeedRuns(
            block=block.block,
            seed=block.block,
            control=evidence.series[block.receipts["A"][0]],
            treated=evidence.series[block.receipts["B"][0]],
        )
        for block in decision.blocks
        if block.valid
    ]
    assert len(runs) > 1
    seeded = decision.model_copy(update={"quality": quality(runs)})
    (chart,) = loss_charts([seeded], evidence.series)
    root = ElementTree.fromstring(chart.markup)
    thin = [node for node in root.iter() if "thin" in node.get("class", "").split()]
    assert len(thin) == 3 * len(runs)
    assert chart.words.startswith(f"{len(runs)} seeds: ")
    assert "at equal step time; reaching the worse of both arms' last losses takes" in chart.words
    # The time to a loss stands behind the losses, also where those were not compared.
    timed = quality(runs, target_loss=5.0)
    alone = decision.model_copy(update={"quality": timed, "loss_equal_time": None})
    (row,) = rows([alone])
    keys = [column.key for column in columns([alone])]
    assert keys[keys.index("loss_time") + 1] == "loss_target"
    assert all(row.cell(column).isprintable() for column in columns([alone]))
