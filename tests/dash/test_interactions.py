"""The waterfall and the table of interactions, drawn from a campaign with fake children."""

import math
import random
import re
from datetime import UTC, datetime
from itertools import pairwise
from xml.etree import ElementTree

import pytest

from lanewise.dash.evidence import gather
from lanewise.dash.html import render_report
from lanewise.dash.interactions import HEAD, interaction_rows
from lanewise.dash.page import build_page
from lanewise.dash.rows import columns
from lanewise.dash.summary import closing_lines, gaps, header_lines, verdict_sentence
from lanewise.dash.terminal import interaction_lines
from lanewise.dash.waterfall import bars, waterfall, waterfall_lines
from lanewise.receipts.decision import Verdict
from lanewise.receipts.store import Store
from tests.lab.fake import BASE_SECONDS, World, options, place, state

NOW = datetime(2026, 11, 23, 10, 4, tzinfo=UTC)
LOGS = {"fused_moe": math.log(0.7), "fused_mamba": math.log(0.5), "fused_optimizer": math.log(1.1)}
INTERACTION = 0.3


def build(root, *, noise_sd=0.005, features=(), blocks=3, interaction=INTERACTION):
    """A campaign from both bases in which moe and mamba gain less together."""
    rng = random.Random(1)
    process: dict[str, float] = {}

    def seconds(request, step, now):
        on = {feature for feature in LOGS if state(request, feature) == "on"}
        log = sum(LOGS[feature] for feature in on)
        log += interaction * ({"fused_moe", "fused_mamba"} <= on)
        level = process.setdefault(place(request), rng.gauss(0.0, noise_sd))
        return BASE_SECONDS * math.exp(log + level + rng.gauss(0.0, noise_sd))

    world = World(store=Store(root))
    world.script.seconds = seconds
    wanted = {"design": "both", "features": features, "blocks": blocks, "budget_seconds": 400.0}
    return world, world.lab().start(options(**wanted))


@pytest.fixture(scope="module")
def example(tmp_path_factory):
    return build(tmp_path_factory.mktemp("store"))


def test_the_waterfall_goes_from_one_to_the_measured_stack(example):
    _world, result = example
    steps = bars(result.campaign, result.decisions)
    assert steps[0].name == "bare lane"
    assert steps[0].end == 1.0
    assert steps[1].name == "+ fused_mamba"
    singles = [bar for bar in steps if bar.name.startswith("+ ")]
    assert singles[0].start == 1.0
    for before, after in pairwise(singles):
        assert after.start == before.end
    product, interactions, stack = steps[-3:]
    assert product.end == pytest.approx(singles[-1].end)
    assert (interactions.start, interactions.end) == (product.end, stack.end)
    assert interactions.low < stack.end < interactions.high
    assert stack.end / product.end == pytest.approx(math.exp(INTERACTION), rel=0.05)
    assert "beyond noise" in interactions.words
    kinds = {bar.name: bar.kind for bar in singles}
    assert kinds["+ fused_mamba"] == "gain"
    assert kinds["+ fused_optimizer"] == "loss"
    assert kinds["+ fused_residual"] == "open"


def test_the_svg_draws_every_bar_within_its_box_and_says_it_in_words(example):
    _world, result = example
    root = ElementTree.fromstring(waterfall(result.campaign, result.decisions))
    width, height = (float(value) for value in root.attrib["viewBox"].split()[2:])
    for element in root.iter():
        for name, limit in (("x", width), ("y", height), ("x2", width), ("y2", height)):
            if name in element.attrib and not element.tag.endswith(("pattern", "rect")):
                assert -1 <= float(element.attrib[name]) <= limit
    words = "".join(root.itertext())
    for bar in bars(result.campaign, result.decisions):
        assert bar.words in words


def test_the_terminal_draws_the_same_bars_in_equal_columns(example):
    _world, result = example
    lines = waterfall_lines(result.campaign, result.decisions)
    steps = bars(result.campaign, result.decisions)
    assert len(lines) == len(steps)
    start = max(len(bar.name) for bar in steps) + 2
    assert lines[0][start : start + 40] == "█" * 40
    mamba = lines[1][start : start + 40]
    assert mamba == " " * 20 + "█" * 20 or mamba.strip("█").strip() == ""
    for line, bar in zip(lines, steps, strict=True):
        assert line[start + 42 :] == bar.words
    assert any("▒" in line for line in lines)


def test_the_table_puts_found_interactions_first(example):
    _world, result = example
    rows = interaction_rows(result.campaign.interactions)
    assert {rows[0][0], rows[1][0]} == {"fused_moe", "fused_mamba"}
    assert all(len(row) == len(HEAD) for row in rows)
    assert rows[0][-1].startswith("gains less with the others")
    assert rows[2][-1].startswith("no interaction larger than")
    printed = "\n".join(text.plain for text in interaction_lines(result.campaign, result.decisions))
    assert "from the bare lane to the full stack" in printed
    assert "adjusted p" in printed


def test_closing_lines_name_the_stack_the_interactions_and_the_sum(example):
    world, result = example
    lines = closing_lines(result.campaign, result.decisions, store_root=world.store.root)
    assert re.match(
        r"Fastest proven combination: \d\.\d+× as fast as the bare lane\. Interactions: fused_m\w+ gains less",
        lines[0],
    )
    assert "the product of the single effects misses the full stack" in lines[0].lower()


def test_nothing_proven_is_said_so(tmp_path):
    world, result = build(
        tmp_path, noise_sd=0.2, features=("fused_moe", "full_stack"), blocks=2, interaction=0.0
    )
    stack = result.decisions[-1]
    assert stack.verdict in (Verdict.INCONCLUSIVE, Verdict.INVALID)
    first = closing_lines(result.campaign, result.decisions, store_root=world.store.root)[0]
    assert first.startswith(f"No combination is proven: the full stack is {stack.verdict.value}")


def test_the_report_shows_waterfall_chart_and_table(example):
    world, result = example
    page = render_report(gather(world.store, result.campaign.campaign_id), now=NOW)
    assert '<section id="interactions">' in page
    assert page.count('id="waterfall') >= 1
    assert "Every feature is added to the bare lane and, in the same rounds" in page
    assert 'class="number strong"' in page
    assert gaps(result.campaign, result.decisions) == ()
    identifiers = re.findall(r'\sid="([^"]+)"', page)
    assert len(identifiers) == len(set(identifiers))


def test_both_bases_have_a_column_and_one_plan(example):
    _world, result = example
    assert [column.key for column in columns(result.decisions)][:2] == ["feature", "base"]
    plan = next(line for line in header_lines(result.campaign) if line.startswith("plan"))
    assert "10 features, each on both bases, and the full stack × 3 lockstep blocks" in plan
    sentence = verdict_sentence(result.campaign, result.decisions)
    faster = [
        d.feature
        for d in result.decisions
        if (d.design, d.verdict) == ("leave-one-out", Verdict.FASTER) and d.feature != "full_stack"
    ]
    assert f"{len(faster)} features shorten the step" in sentence


@pytest.mark.parametrize("design", ["toggle", "plackett-burman"])
def test_a_screens_report_says_that_it_proves_nothing(tmp_path, design):
    world = World(store=Store(tmp_path))
    result = world.lab().screen(
        options(features=("fused_moe", "fused_mamba"), budget_seconds=85.0), design
    )
    page = render_report(gather(world.store, result.campaign.campaign_id), now=NOW)
    assert "a screen, which proves nothing" in page
    assert "proves nothing" in header_lines(result.campaign)[-1]
    assert gaps(result.campaign, result.decisions) == ()


def test_a_report_of_both_bases_says_which_base_and_shows_the_verdict_first(example):
    world, result = example
    evidence = gather(world.store, result.campaign.campaign_id)
    page = build_page(evidence, now=NOW)
    assert page.forest is not None
    words = ElementTree.fromstring(page.forest).find("{*}desc").text
    assert "fused_moe (bare lane) −" in words
    assert "fused_moe (full stack) −" in words
    assert "full_stack (" not in words
    keys = [column.key for column in page.columns]
    assert keys[:5] == ["feature", "base", "verdict", "step_time", "interval"]
    assert sorted(keys) == sorted(column.key for column in columns(result.decisions))
