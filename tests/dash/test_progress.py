"""Progress of a campaign, live and plain."""

import io

import pytest
from rich.console import Console

from lanewise.dash.progress import CampaignProgress
from tests.receipts.factory import CAMPAIGN, make_campaign


class FakeClock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def plan(num_features: int = 2) -> object:
    planned = CAMPAIGN["features"][0]
    features = [{**planned, "feature": f"feature_{i}"} for i in range(num_features)]
    skipped = {**planned, "feature": "skipped", "skipped_reason": "no compiler"}
    return make_campaign({"features": [*features, skipped], "status": "RUNNING"})


def console(*, terminal: bool) -> tuple[Console, io.StringIO]:
    out = io.StringIO()
    return Console(file=out, force_terminal=terminal, width=160, legacy_windows=False), out


def test_without_a_terminal_each_block_is_one_plain_line() -> None:
    target, out = console(terminal=False)
    with CampaignProgress(target, clock=FakeClock()) as progress:
        progress.start(plan())
        progress.block_started("feature_0", 1, 3)
        progress.tick(0.5)
        progress.block_finished("feature_0", 1, 3, 0.69, None, None)
        progress.block_finished("feature_0", 2, 3, 0.69, 0.64, 0.75)
        progress.block_discarded("feature_0", 3, "arm B was killed (signal 9)", retried=True)
        progress.block_discarded("feature_1", 1, "observed padded.torch")
        progress.message("[bold]a note[/bold]")
    assert out.getvalue().splitlines() == [
        "feature_0  block 1/3  −31.0 %",
        "feature_0  block 2/3  −31.0 % [−36.0, −25.0]",
        "INVALID  feature_0 block 3: arm B was killed (signal 9); it runs again",
        "INVALID  feature_1 block 1: observed padded.torch",
        "[bold]a note[/bold]",
    ]


def test_on_a_terminal_the_line_shows_block_interval_eta_and_budget() -> None:
    clock = FakeClock()
    target, out = console(terminal=True)
    progress = CampaignProgress(target, clock=clock)
    progress.start(plan())
    progress.block_started("feature_0", 1, 3)
    clock.now += 10.0
    progress.block_finished("feature_0", 1, 3, 0.69, 0.64, 0.75)
    progress.block_started("feature_0", 2, 3)
    progress.finish()
    progress.finish()
    text = out.getvalue()
    for part in ("feature_0 block 2/3", "−31.0 % [−36.0, −25.0]", "ETA 0:50", "0:10 of 5:00"):
        assert part in text


def test_ticks_redraw_no_more_often_than_the_eye_needs() -> None:
    clock = FakeClock()
    target, out = console(terminal=True)
    with CampaignProgress(target, clock=clock) as progress:
        progress.start(plan())
        progress.block_started("feature_0", 1, 3)
        before = len(out.getvalue())
        clock.now += 0.05
        progress.tick(0.1)
        assert len(out.getvalue()) == before
        clock.now += 0.5
        progress.tick(0.2)
        assert len(out.getvalue()) > before


def test_the_eta_follows_the_plan_until_a_block_is_done() -> None:
    clock = FakeClock()
    progress = CampaignProgress(console(terminal=False)[0], clock=clock)
    progress.start(plan())
    assert progress.eta_seconds() == pytest.approx(55.0)
    progress.block_started("feature_0", 1, 3)
    clock.now += 20.0
    progress.block_finished("feature_0", 1, 3, 0.7, None, None)
    assert progress.eta_seconds() == pytest.approx(5 * 20.0)


def test_a_resumed_campaign_counts_only_fresh_blocks_for_its_pace() -> None:
    clock = FakeClock()
    progress = CampaignProgress(console(terminal=False)[0], clock=clock)
    progress.start(plan(), finished_blocks=4)
    clock.now += 10.0
    progress.block_finished("feature_1", 2, 3, 0.7, None, None)
    assert progress.eta_seconds() == pytest.approx(10.0)


def test_a_block_that_runs_again_does_not_count_as_done() -> None:
    clock = FakeClock()
    progress = CampaignProgress(console(terminal=False)[0], clock=clock)
    progress.start(plan())
    progress.block_discarded("feature_0", 1, "killed", retried=True)
    assert progress.eta_seconds() == pytest.approx(55.0)


def test_a_stopped_feature_says_so_and_leaves_the_time_left() -> None:
    clock = FakeClock()
    target, out = console(terminal=False)
    with CampaignProgress(target, clock=clock) as progress:
        progress.start(plan())
        clock.now += 20.0
        progress.block_finished("feature_0", 1, 3, 0.69, None, None)
        progress.block_finished("feature_1", 1, 3, 0.69, None, None)
        assert progress.eta_seconds() == 40.0
        progress.feature_stopped("feature_0", 1, 3, "difference")
        assert progress.eta_seconds() == 20.0
    assert out.getvalue().splitlines()[-1] == (
        "feature_0 stopped after 1 of 3 blocks: a difference"
    )
