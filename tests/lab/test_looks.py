"""Campaigns that look at their blocks while they run: early stops, kills between any two writes, peeking."""

import math
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lanewise.dash.html import write_report
from lanewise.errors import UsageError
from lanewise.lab import protocol
from lanewise.lab.analyse import analyse_campaign
from lanewise.lab.campaign import CampaignFolder
from lanewise.lab.events import BlockFinished, FeatureStopped
from lanewise.lab.journal import BlockDone, Journal, Stopped
from lanewise.measure.boundary import plan_boundary
from lanewise.measure.looks import Question, walk
from lanewise.receipts.decision import Boundary, Verdict
from lanewise.receipts.store import Store
from tests.lab.fake import BASE_SECONDS, MACHINE, World, options, place

NOW = "2026-11-23T10:00:00Z"
CAMPAIGN_ID = "2026-11-23-nam56r-tiny-t1"
CLEAR = (-0.20, -0.21, -0.19, -0.205)
"""A difference that the first look sees."""
LATE = (-0.010, -0.035, 0.004, -0.020, -0.030, -0.022, -0.025, -0.018, 0.0, 0.0, 0.0, 0.0)
"""Nothing at four blocks, a difference at eight."""
OPEN = (-0.04, -0.01, -0.03, -0.005, -0.03, 0.0)
"""Not yet a difference at four blocks, and not hopeless."""
NOISE = (0.05, -0.06, 0.04, -0.05)
"""Four blocks after which twelve would most likely say nothing."""


class Killed(BaseException):
    """What kill −9 looks like from inside: nothing below may handle it."""


def contrasting(effects: Sequence[float], others: float = 0.0):
    """Steps whose block contrasts are exactly these; other features have the same in every block."""

    def seconds(request, step, now):
        at = request.experiment
        if at is None or at.arm == "A":
            return BASE_SECONDS
        effect = effects[at.block - 1] if at.ablation_id == "fused_moe" else others
        return BASE_SECONDS * math.exp(effect)

    return seconds


def long_campaign(**changes):
    return options(**{"blocks": 12, "budget_seconds": 3600.0, **changes})


@pytest.fixture(autouse=True)
def fewest_quads(monkeypatch):
    """Blocks as short as they may be, and as long after a kill as before it."""
    monkeypatch.setattr(protocol, "MAX_QUADS", protocol.MIN_QUADS)


def test_a_clear_difference_stops_at_the_first_look(world):
    world.script.seconds = contrasting(CLEAR)
    result = world.lab().start(long_campaign())
    (decision,) = result.decisions
    assert len(world.seen(BlockFinished)) == len(decision.blocks) == 4
    assert decision.verdict is Verdict.FASTER
    assert decision.status == result.campaign.status == "COMPLETE"
    assert decision.reason.endswith("; stopped at 4 of 12 blocks")
    assert decision.boundary == plan_boundary(12)
    assert [(look.num_blocks, look.outcome) for look in decision.looks] == [(4, "difference")]
    (event,) = world.seen(FeatureStopped)
    assert (event.blocks_run, event.num_blocks, event.outcome) == (4, 12, "difference")
    folder = CampaignFolder.find(world.store.root, result.campaign.campaign_id)
    assert folder.stopped() == {"fused_moe": decision.looks[0]}
    assert folder.missing() == ()
    with pytest.raises(UsageError, match="no unfinished campaign"):
        world.lab().resume(options().lane, MACHINE, None)


def test_a_later_look_gives_the_interval_that_knows_of_the_earlier_one(world):
    world.script.seconds = contrasting(LATE)
    (decision,) = world.lab().start(long_campaign()).decisions
    assert [(look.num_blocks, look.outcome) for look in decision.looks] == [
        (4, "go_on"),
        (8, "difference"),
    ]
    question = Question(boundary=plan_boundary(12), margin_log=decision.margin.log_value)
    expected = walk([block.contrast_log for block in decision.blocks], question)[-1]
    assert decision.estimate == expected.estimate
    assert decision.estimate.p_value > decision.looks[-1].nominal_p


def test_a_hopeless_feature_is_given_up_and_that_is_complete(world):
    world.script.seconds = contrasting(NOISE)
    (decision,) = world.lab().start(long_campaign()).decisions
    assert [look.outcome for look in decision.looks] == ["futile"]
    assert decision.verdict is Verdict.INCONCLUSIVE
    assert decision.status == "COMPLETE"
    assert "would most likely tell no more" in decision.reason


def test_an_a_a_runs_all_its_blocks_whatever_they_show(world):
    world.script.seconds = contrasting((), others=-0.2)
    (decision,) = world.lab().start(long_campaign(features=("none",))).decisions
    assert len(decision.blocks) == 12
    assert decision.verdict is Verdict.NOISE
    assert decision.boundary == Boundary(looks=(12,), alpha=0.05, nominal_alpha=0.05)
    assert (decision.adjusted_p, decision.adjustment) == (None, None)


def test_few_blocks_are_looked_at_once(world):
    world.script.seconds = contrasting(CLEAR)
    (decision,) = world.lab().start(long_campaign(blocks=4)).decisions
    assert decision.boundary == Boundary(looks=(4,), alpha=0.05, nominal_alpha=0.05)
    assert world.seen(FeatureStopped) == []
    assert "stopped" not in decision.reason


def test_looks_count_the_blocks_that_count(world):
    """Block 2 never gets steady, so the first look comes after the fifth block that was run."""
    wanted = contrasting((-0.2, 0.0, -0.21, -0.19, -0.205))

    def seconds(request, step, now):
        unsteady = place(request) == "fused_moe/2/B"
        return wanted(request, step, now) * (1.3**step if unsteady else 1.0)

    world.script.seconds = seconds
    result = world.lab().start(long_campaign())
    (decision,) = result.decisions
    assert [block.block for block in decision.blocks if block.valid] == [1, 3, 4, 5]
    assert "block 2: no steady difference" in result.campaign.discarded_blocks[0]
    assert [look.num_blocks for look in decision.looks] == [4]
    assert decision.estimate.num_blocks == 4


def test_a_block_that_never_counted_moves_the_last_look(world):
    wanted = contrasting(OPEN)

    def seconds(request, step, now):
        unsteady = place(request) == "fused_moe/6/B"
        return wanted(request, step, now) * (1.3**step if unsteady else 1.0)

    world.script.seconds = seconds
    (decision,) = world.lab().start(long_campaign(blocks=6)).decisions
    assert decision.boundary.looks == (4, 6)
    assert [look.num_blocks for look in decision.looks] == [4, 5]
    assert decision.looks[0].outcome == "go_on"
    assert decision.looks[1].outcome != "go_on"
    assert decision.status == "COMPLETE"


def test_a_tax_stops_once_its_budget_is_clearly_kept_or_broken(world):
    world.script.seconds = contrasting((), others=0.10)
    (decision,) = world.lab().start(long_campaign(features=("extra_aux_losses",))).decisions
    # The same contrast in every block has no spread, so even the first look is certain.
    assert decision.verdict is Verdict.OVER_BUDGET
    assert len(decision.blocks) == 4


def test_what_one_feature_saves_goes_to_the_others(world, monkeypatch):
    monkeypatch.setattr(protocol, "MAX_QUADS", 24)

    def seconds(request, step, now):
        at = request.experiment
        if at is None or at.arm == "A":
            return BASE_SECONDS
        clear = at.ablation_id == "fused_mamba"
        return BASE_SECONDS * math.exp(-0.2 if clear else OPEN[at.block - 1])

    world.script.seconds = seconds
    found = world.lab().start(
        long_campaign(features=("fused_moe", "fused_mamba"), blocks=6, budget_seconds=80.0)
    )
    moe, mamba = found.decisions
    assert len(mamba.blocks) == 4
    quads = [block.num_quads for block in moe.blocks]
    assert len(quads) == 6
    assert min(quads[4:]) > max(quads[:4])


def test_an_interrupted_feature_has_an_estimate_but_neither_verdict_nor_p(world):
    world.script.seconds = contrasting(LATE)
    world.script.interrupt = lambda request, step: place(request) == "fused_moe/6/A" and step == 3
    (decision,) = world.lab().start(long_campaign()).decisions
    assert decision.status == "INCOMPLETE"
    assert decision.incomplete_reason == "5 of 12 blocks were run"
    assert decision.verdict is Verdict.INCONCLUSIVE
    assert decision.estimate.num_blocks == 5
    assert decision.estimate.p_value is None
    assert decision.adjusted_p is None
    assert [look.num_blocks for look in decision.looks] == [4]


def test_a_stop_that_the_evidence_no_longer_shows_is_incomplete_and_can_be_resumed(world):
    world.script.seconds = contrasting((*CLEAR, *[-0.2] * 8))
    campaign_id = world.lab().start(long_campaign()).campaign.campaign_id
    journal = CampaignFolder.find(world.store.root, campaign_id).journal
    changed = [
        entry.model_copy(update={"steady": False})
        if isinstance(entry, BlockDone) and entry.block == 2
        else entry
        for entry in journal.read()
    ]
    journal.path.unlink()
    for entry in changed:
        journal.append(entry)
    record, (decision,) = analyse_campaign(world.store, campaign_id, now=NOW)
    assert record.status == decision.status == "INCOMPLETE"
    again = world.lab().resume(options().lane, MACHINE, campaign_id)
    assert again.campaign.status == "COMPLETE"
    assert len(again.decisions[0].blocks) == 5


def test_features_that_share_five_percent_keep_their_claims_under_holm(world):
    """t = 10.4 after three blocks, p = 0.009: below half of 5 %, so Holm keeps it."""
    deviations = (-0.05, -0.07, -0.06)
    world.script.seconds = contrasting(deviations, others=0.0)
    asked = {"features": ("fused_moe", "fused_mamba"), "blocks": 3}
    each = world.lab().start(long_campaign(**asked))
    family = world.lab().start(long_campaign(**asked, claims="family"))
    moe, mamba = family.decisions
    assert {d.boundary.alpha for d in family.decisions} == {0.025}
    assert {d.boundary.alpha for d in each.decisions} == {0.05}
    assert moe.estimate.confidence == 0.975
    assert mamba.boundary.nominal_alpha == 0.025
    wide, narrow = moe.estimate, each.decisions[0].estimate
    assert wide.half_width_log > narrow.half_width_log
    assert wide.log_ratio == narrow.log_ratio
    for decision in family.decisions:
        claims = decision.verdict in (Verdict.FASTER, Verdict.SLOWER)
        assert not claims or decision.adjusted_p <= 0.05
    assert "5% is shared by 2 claims, each looked at with 2.50% (--claims family)" in (
        family.campaign.notes
    )
    again, _ = analyse_campaign(world.store, family.campaign.campaign_id, now=NOW)
    assert again.status == "COMPLETE"


# --- kills and peeking -------------------------------------------------------------------------------------------


class Mortal:
    """Kills the campaign at the n-th write to its journal, before or after it."""

    def __init__(self, deaths: Sequence[tuple[int, bool]]) -> None:
        self.deaths, self.writes = dict(deaths), 0

    def __enter__(self):
        self.patch = pytest.MonkeyPatch()
        append = Journal.append

        def mortal(journal, entry):
            after = self.deaths.get(self.writes)
            self.writes += 1
            if after is False:
                raise Killed
            append(journal, entry)
            if after is True:
                raise Killed

        self.patch.setattr(Journal, "append", mortal)
        return self

    def __exit__(self, *_error):
        self.patch.undo()


def outcome(effects, *, deaths=(), peek=False, blocks=12):
    """Documents of a campaign that is killed at some writes and resumed each time, in a store of its own."""
    with tempfile.TemporaryDirectory() as folder, Mortal(deaths):
        world = World(store=Store(folder))
        world.script.seconds = contrasting(effects)
        lab = world.lab()
        if peek:
            lab = _peeking(world, lab)
        asked = long_campaign(blocks=blocks)
        result, again = None, False
        while result is None:
            try:
                result = lab.resume(asked.lane, MACHINE, CAMPAIGN_ID) if again else lab.start(asked)
            except Killed:
                again = True
        journal = CampaignFolder.find(folder, CAMPAIGN_ID).journal
        stops = [entry for entry in journal.read() if isinstance(entry, Stopped)]
        return result.campaign, result.decisions, stops


def _peeking(world, lab):
    """The same lab, analysed, written and reported after every block."""

    def peek(event):
        if isinstance(event, BlockFinished):
            record, decisions = analyse_campaign(world.store, CAMPAIGN_ID, now=NOW)
            for decision in decisions:
                world.store.write_decision(decision)
            world.store.write_campaign(record)
            write_report(world.store, CAMPAIGN_ID, now=datetime(2026, 11, 23, tzinfo=UTC))

    return replace(lab, listen=peek)


@pytest.fixture(scope="module")
def through():
    """Documents of a campaign of four blocks and a stop that nothing disturbed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(protocol, "MAX_QUADS", protocol.MIN_QUADS)
        campaign, decisions, stops = outcome(CLEAR, blocks=6)
    assert len(decisions[0].blocks) == 4
    assert [stop.look.outcome for stop in stops] == ["difference"]
    return campaign, decisions, stops


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("write", range(5))
def test_a_kill_at_any_write_leads_to_the_same_documents(through, write, after):
    """Four blocks and the entry of the stop are five writes; between the last two a look was reached and not written."""
    assert outcome(CLEAR, deaths=[(write, after)], blocks=6) == through


def test_peeking_changes_nothing(through):
    assert outcome(CLEAR, peek=True, blocks=6) == through


def kills(num_writes: int):
    return st.lists(st.tuples(st.integers(0, num_writes), st.booleans()), min_size=1, max_size=3)


def series(num_blocks: int):
    """Contrasts between plain and hopeless."""
    return st.tuples(
        st.sampled_from((0.002, 0.02, 0.2)),
        st.sampled_from((0.0, -0.01, 0.03)),
        st.lists(st.floats(-1, 1), min_size=num_blocks, max_size=num_blocks),
    ).map(lambda drawn: [drawn[1] + drawn[0] * x for x in drawn[2]])


@settings(deadline=None, max_examples=2, derandomize=True)
@given(effects=series(6), deaths=kills(7))
def test_any_series_with_any_kills_decides_as_it_would_without(effects, deaths):
    assert outcome(effects, deaths=deaths, blocks=6) == outcome(effects, blocks=6)


@pytest.mark.slow
@settings(deadline=None, max_examples=60)
@given(effects=series(12), deaths=kills(13))
def test_many_series_with_any_kills_decide_as_they_would_without(effects, deaths):
    assert outcome(effects, deaths=deaths) == outcome(effects)
