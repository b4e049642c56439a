"""Budgets are kept by the clock: slow blocks give later ones fewer quads, never fewer blocks in silence."""

from lanewise.lab.events import BlockFinished, OutOfBudget
from tests.lab.fake import BASE_SECONDS, MACHINE, options, place


def test_a_campaign_that_turns_slow_still_ends_in_time(world):
    world.script.seconds = lambda request, step, now: (
        BASE_SECONDS * (1.0 if place(request) == "pilot" else 1.8)
    )
    started = world.clock()
    result = world.lab().start(options(blocks=6, budget_seconds=60.0))
    quads = [block.num_quads for block in result.decisions[0].blocks]
    assert result.campaign.status == "COMPLETE"
    assert quads[0] > quads[-1] >= 3
    assert world.clock() - started <= 60.0


def test_a_campaign_on_pace_keeps_its_quads_and_its_budget(world):
    started = world.clock()
    result = world.lab().start(options(blocks=4, budget_seconds=60.0))
    quads = [block.num_quads for block in result.decisions[0].blocks]
    assert max(quads) - min(quads) <= 1
    assert world.clock() - started <= 60.0


def test_a_budget_that_ends_early_says_so_and_leaves_the_rest_to_resume(world):
    world.script.seconds = lambda request, step, now: (
        BASE_SECONDS * (1.0 if place(request) == "pilot" else 10.0)
    )
    result = world.lab().start(options(blocks=4, budget_seconds=60.0))
    (event,) = world.seen(OutOfBudget)
    assert event.missing_blocks == 4 - len(world.seen(BlockFinished)) > 0
    assert not result.interrupted
    assert result.campaign.status == "INCOMPLETE"
    world.script.seconds = lambda request, step, now: BASE_SECONDS
    again = world.lab().resume(options().lane, MACHINE, None)
    assert again.campaign.status == "COMPLETE"
