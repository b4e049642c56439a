"""Losses next to speed: blocks of a fixed number of steps, seeds that the budget buys, and the time to a loss."""

import json
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
from scipy import stats

from lanewise.dash.losses import quality_words
from lanewise.dash.rows import columns, rows
from lanewise.dash.summary import plan_lines
from lanewise.errors import UsageError
from lanewise.lab.analyse import analyse_campaign
from lanewise.lab.campaign import CampaignFolder
from lanewise.lab.events import OutOfBudget
from lanewise.lab.transfer import pack, unpack
from lanewise.receipts.store import Store
from tests.lab.fake import BASE_SECONDS, MACHINE, World, options, place, state

STEPS = 20
TAX = ("stp",)


def learning(world, *, gain=0.0, slower=1.1, floor=0.0):
    """Losses fall by 0.1 a step, from a height that the seed sets; the tax gains `gain` and stops at `floor`."""

    def loss(request, step):
        seed = request.resolved.lane.seed
        height = 6.0 + 0.05 * math.sin(seed)
        if state(request, "stp") == "off":
            return height - 0.1 * step
        return max(floor, height - 0.1 * step - gain * (1 + 0.2 * math.cos(seed)))

    world.script.loss = loss
    world.script.seconds = lambda request, step, now: (
        BASE_SECONDS * (slower if state(request, "stp") == "on" else 1.0)
    )


def asked(**changes):
    return options(**{"features": TAX, "steps": STEPS, "blocks": 4, **changes})


def steps_taken(world, result):
    return {
        len(world.store.read_steps(receipt).step)
        for decision in result.decisions
        for block in decision.blocks
        for receipts in block.receipts.values()
        for receipt in receipts
    }


@pytest.mark.parametrize("design", ["lockstep", "sequential"])
def test_every_arm_takes_the_steps_asked_for(world, design):
    learning(world)
    result = world.lab().start(asked(block_design=design, budget_seconds=600.0))
    assert result.campaign.status == "COMPLETE"
    assert result.campaign.planned_steps == STEPS
    assert steps_taken(world, result) == {STEPS}


def test_the_budget_buys_seeds_and_no_look_takes_one_away(world):
    """The tax is far over its budget, which a look would see after four blocks."""
    learning(world, slower=1.5)
    few = world.lab().start(asked(blocks=None, budget_seconds=50.0)).decisions[0]
    many = world.lab().start(asked(blocks=None, budget_seconds=120.0)).decisions[0]
    assert 2 <= len(few.blocks) < len(many.blocks)
    assert len({seed.seed for seed in many.quality.seeds}) == len(many.blocks) > 4
    assert many.boundary.looks == (len(many.blocks),)
    assert many.verdict == "OVER_BUDGET"


def test_looks_stay_where_no_loss_is_compared(world):
    decision = world.lab().start(asked(features=("fused_moe",), blocks=12, budget_seconds=900.0))
    assert len(decision.decisions[0].boundary.looks) > 1


def test_steps_that_do_not_fit_are_refused_with_numbers(world):
    with pytest.raises(UsageError, match=r"2 blocks of 2000 steps an arm of stp.*need about \d+ s"):
        world.lab().start(asked(steps=2000, blocks=None, budget_seconds=60.0))
    with pytest.raises(UsageError, match=r"8 blocks of 200 steps.*fewer --steps"):
        world.lab().start(asked(steps=200, blocks=8, budget_seconds=60.0))


@pytest.mark.parametrize(("steps", "near"), [(21, "22"), (2, "12"), (11, "12"), (13, "14")])
def test_steps_that_no_block_has_name_some_that_one_has(world, steps, near):
    with pytest.raises(UsageError, match=f"--steps {steps}: .*give {near}$"):
        world.lab().start(asked(steps=steps))
    world.lab().plan(asked(steps=int(near)))


def test_a_slow_machine_gets_fewer_blocks_never_shorter_ones(world):
    learning(world)
    fast = world.script.seconds
    world.script.seconds = lambda request, step, now: (
        fast(request, step, now) * (1.0 if place(request) == "pilot" else 3.0)
    )
    result = world.lab().start(asked(blocks=4, budget_seconds=45.0))
    assert world.seen(OutOfBudget)
    assert result.campaign.status == "INCOMPLETE"
    assert steps_taken(world, result) == {STEPS}
    world.script.seconds = fast
    again = world.lab().resume(options().lane, MACHINE, None)
    assert again.campaign.status == "COMPLETE"
    assert steps_taken(world, again) == {STEPS}


def test_time_to_a_loss_with_its_interval(world):
    """The loss of 8 steps is 0.35 behind; the control is at 4.8 after step 15.5, the tax gains about 3 steps a seed."""
    learning(world, gain=0.3)
    (decision,) = world.lab().start(asked(target_loss=4.8, budget_seconds=600.0)).decisions
    target = decision.quality.time_to_target
    assert (target.target_loss, target.control_reached, target.treated_reached) == (4.8, 4, 4)
    logs = [
        math.log(s.treated_seconds_to_target / s.control_seconds_to_target)
        for s in decision.quality.seeds
    ]
    for seed in decision.quality.seeds:
        height = 6.0 + 0.05 * math.sin(seed.seed)
        # Means of 8 steps lag by 3.5; step n ends after n + 1 steps.
        step = (height - 4.8) / 0.1 + 3.5
        assert seed.control_seconds_to_target == pytest.approx(BASE_SECONDS * (step + 1))
    expected = stats.ttest_1samp(logs, 0.0).confidence_interval(0.95)
    assert math.log(target.low) == pytest.approx(expected.low)
    assert math.log(target.high) == pytest.approx(expected.high)


def test_an_arm_that_never_reaches_it_has_no_time(world):
    learning(world, floor=5.2)
    result = world.lab().start(asked(target_loss=4.8, budget_seconds=600.0))
    target = result.decisions[0].quality.time_to_target
    assert target.ratio is target.low is target.high is None
    assert (target.control_reached, target.treated_reached) == (4, 0)
    assert "of 4 seeds 4 reach it in the control and 0 with the feature" in target.reason


def test_a_target_of_features_that_keep_the_mathematics_is_refused(world):
    with pytest.raises(UsageError, match="fused_moe keeps the mathematics"):
        world.lab().start(asked(features=("fused_moe",), target_loss=4.8))


def test_the_table_shows_the_time_or_how_many_seeds_got_there(world):
    learning(world, gain=0.3)
    reached = world.lab().start(asked(target_loss=4.8, budget_seconds=600.0))
    learning(world, floor=5.2)
    missed = world.lab().start(asked(target_loss=4.8, budget_seconds=600.0))
    (row,) = rows(reached.decisions)
    assert re.fullmatch(r"0\.\d\d × \[0\.\d\d, [01]\.\d\d\]", row.loss_target)
    (row,) = rows(missed.decisions)
    assert row.loss_target == "reached 4/4, 0/4"
    titles = [column.title for column in columns(missed.decisions)]
    assert titles.index("time to target loss") == titles.index("Δ loss at equal time") + 1
    words = quality_words(missed.decisions[0].quality)
    assert "no time to a loss of 4.800: of 4 seeds 4 reach it in the control" in words
    header = plan_lines(reached.campaign)[0]
    assert "20 steps of each arm in every block" in header
    assert "time to a loss of 4.800" in header


def test_resume_keeps_steps_and_target(world):
    learning(world)
    world.script.interrupt = lambda request, step: place(request) == "stp/3/B" and step == 5
    first = world.lab().start(asked(target_loss=4.8, budget_seconds=600.0))
    assert first.interrupted
    world.script.interrupt = lambda request, step: False
    again = world.lab().resume(options().lane, MACHINE, first.campaign.campaign_id)
    (decision,) = again.decisions
    assert steps_taken(world, again) == {STEPS}
    assert decision.quality.time_to_target.target_loss == 4.8
    assert [seed.seed for seed in decision.quality.seeds] == [
        options().lane.seed + n for n in range(4)
    ]
    # Drawn again from what is on the disk, it is the same.
    _, (drawn,) = analyse_campaign(world.store, again.campaign.campaign_id, now=decision.created_at)
    assert drawn == decision


def test_an_archive_carries_them_to_another_machine(world, tmp_path):
    learning(world)
    world.script.interrupt = lambda request, step: place(request) == "stp/2/A"
    first = world.lab().start(asked(target_loss=4.8, budget_seconds=600.0))
    pack(world.store, tmp_path / "out.tgz", [first.campaign.campaign_id])
    there = World(store=Store(tmp_path / "there"))
    learning(there)
    unpack(there.store, tmp_path / "out.tgz")
    there.script.body = lambda request: {"machine.instance_digest": "sha256:" + "b" * 64}
    result = there.lab().resume(options().lane, MACHINE, first.campaign.campaign_id)
    assert result.campaign.status == "COMPLETE"
    assert (result.campaign.planned_steps, result.campaign.planned_target_loss) == (STEPS, 4.8)
    assert steps_taken(there, result) == {STEPS}


def test_a_store_whose_blocks_shared_a_seed_has_one_seed_and_no_interval(world):
    """As campaigns were before blocks differed in seed."""
    learning(world)
    campaign = options(features=TAX, blocks=4, budget_seconds=600.0)
    seed = campaign.lane.seed

    def old(request):
        spec = {"seed": seed, "data": {"seed": campaign.lane.data.seed}}
        return {"lane.spec": {**request.resolved.lane.model_dump(mode="json"), **spec}}

    world.script.body = old
    (decision,) = world.lab().start(campaign).decisions
    assert len(decision.blocks) == 4
    assert len(decision.quality.seeds) == 1
    assert decision.quality.equal_steps.low is None
    assert decision.quality.time_to_target.low is None


def test_a_campaign_is_of_its_lane_also_when_block_1_was_run_again_last(world):
    """Blocks differ in seed, which the digest of a run's lane covers; the decision is of the lane that was asked for."""
    learning(world)
    died = []

    def dies_once(request, step):
        if place(request) == "stp/1/B" and step == 3 and not died:
            died.append(place(request))
            return 1
        return None

    expected = world.lab().plan(asked(budget_seconds=600.0))
    world.script.exit_code = dies_once
    result = world.lab().start(asked(budget_seconds=600.0))
    assert died
    assert [block.block for block in result.decisions[0].blocks][-1] == 1
    plain = World(store=Store(Path(world.store.root) / "plain"))
    learning(plain)
    whole = plain.lab().start(asked(budget_seconds=600.0))
    assert result.campaign.lane == whole.campaign.lane
    assert result.decisions[0].lane.digest == whole.decisions[0].lane.digest
    assert expected.steps == STEPS


def test_a_plan_without_them_reads_as_before(world):
    learning(world)
    result = world.lab().start(replace(asked(), steps=None))
    path = CampaignFolder.find(world.store.root, result.campaign.campaign_id).path / "plan.json"
    document = json.loads(path.read_text(encoding="utf-8"))
    del document["steps"], document["target_loss"], document["body_digest"]
    path.write_text(json.dumps(document), encoding="utf-8")
    _, decisions = analyse_campaign(
        world.store, result.campaign.campaign_id, now=result.decisions[0].created_at
    )
    assert decisions == result.decisions
