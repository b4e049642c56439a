"""Blocks of several machines: the pooling rule by hand, and whole campaigns that changed machines."""

import math

import pytest

from lanewise.lab.analyse import arm_builder
from lanewise.lab.campaign import CampaignFolder
from lanewise.lab.evidence import read_blocks
from lanewise.lab.judge import judge, machines_disagree
from lanewise.lab.strata import disagreements
from lanewise.receipts.decision import Verdict
from tests.lab.fake import BASE_SECONDS, MACHINE, options, place, state


def test_one_machine_never_disagrees_with_itself() -> None:
    assert disagreements({"a": [0.1, 0.9, -3.0]}) == {}
    assert disagreements({"a": [0.1], "b": []}) == {}


def test_the_rule_by_hand() -> None:
    """Contrasts 0, 2 and 3, 5: SD within √2 on both, SE of the difference √2, means 1 and 4: 3/√2 = 2.12 SE apart."""
    (found,) = disagreements({"a": [0.0, 0.02], "b": [0.03, 0.05]}).items()
    assert found[0] == "b"
    assert found[1].is_difference
    assert "2.1 standard errors" in found[1].text
    assert f"{math.expm1(0.03):.2%}" in found[1].text
    assert disagreements({"a": [0.0, 0.02], "b": [0.028, 0.047]}) == {}, "1.95 SE"


def test_a_single_block_borrows_the_noise_of_the_others() -> None:
    assert disagreements({"a": [0.0, 0.02, 0.01], "b": [0.02]}) == {}
    assert set(disagreements({"a": [0.0, 0.02, 0.01], "b": [0.02], "c": [0.08]})) == {"c"}


def test_without_noise_to_compare_by_nothing_is_pooled() -> None:
    (found,) = disagreements({"a": [0.01], "b": [0.01]}).values()
    assert not found.is_difference
    assert "no machine has two blocks" in found.text


def test_exact_agreement_is_agreement_and_an_exact_difference_is_one() -> None:
    assert disagreements({"a": [0.01, 0.01], "b": [0.01, 0.01]}) == {}
    assert disagreements({"a": [0.01, 0.01], "b": [0.02, 0.02]})["b"].is_difference


def machine_of(request) -> str:
    """Blocks 1 to 3 ran here, the others on another machine of the class."""
    return "1" if request.experiment.block <= 3 else "2"


def change_machine(world, effects, *, split_block=None):
    """Fake children of two machines with their own effects and a little noise of the block."""

    def body(request):
        at = request.experiment
        number = machine_of(request)
        if at.block == split_block and at.arm == "B":
            number = "3"
        return {"machine.instance_digest": "sha256:" + number * 64}

    def seconds(request, step, now):
        if request.experiment is None or state(request, "fused_moe") == "off":
            return BASE_SECONDS
        wobble = 1.0 + 0.002 * (-1) ** request.experiment.block
        return BASE_SECONDS * effects[machine_of(request)] * wobble

    world.script.body = body
    world.script.seconds = seconds


def campaign_on_two_machines(world, blocks=6):
    world.script.interrupt = lambda request, step: place(request).startswith("fused_moe/4/")
    first = world.lab().start(options(blocks=blocks, budget_seconds=600.0))
    assert first.interrupted
    world.script.interrupt = lambda request, step: False
    return world.lab().resume(options().lane, MACHINE, None).decisions[0]


def test_machines_that_agree_are_pooled(world) -> None:
    change_machine(world, {"1": 0.8, "2": 0.8})
    decision = campaign_on_two_machines(world)
    assert decision.verdict is Verdict.FASTER
    assert decision.estimate.num_blocks == len(decision.blocks) > 3, "those of the second machine"


def test_machines_that_disagree_are_never_pooled(world) -> None:
    change_machine(world, {"1": 0.8, "2": 0.9})
    decision = campaign_on_two_machines(world)
    assert decision.verdict is Verdict.INVALID
    assert decision.reason.startswith("block 4: another machine of the class, whose blocks differ")
    assert [look.outcome for look in decision.looks] == ["difference"]


def test_no_later_block_decides_whether_an_earlier_one_counts(world) -> None:
    """A look has seen the blocks of both machines; what the fifth block shows may not take one of them back."""
    effects = {1: 0.980, 2: 0.984, 3: 0.982, 4: 0.986, 5: 0.986}
    change_machine(world, {"1": 1.0, "2": 1.0})
    world.script.seconds = lambda request, step, now: (
        BASE_SECONDS
        * (
            1.0
            if request.experiment is None or state(request, "fused_moe") == "off"
            else effects[request.experiment.block]
        )
    )
    stored = campaign_on_two_machines(world, blocks=5)
    folder = CampaignFolder.find(world.store.root, stored.campaign_id)
    evidence = read_blocks(world.store, tuple(folder.finished().values()))
    assert len(evidence) == 5
    arms = arm_builder(folder.plan()).build("fused_moe")
    whole = judge(evidence, arms, cache="warm")
    for count in range(1, 6):
        assert [b.valid for b in judge(evidence[:count], arms, cache="warm")] == [
            b.valid for b in whole[:count]
        ]
    assert machines_disagree(whole) is not None
    assert stored.verdict is Verdict.INVALID


def test_a_block_never_crosses_a_machine(world) -> None:
    change_machine(world, {"1": 0.8, "2": 0.8}, split_block=2)
    decision = world.lab().start(options(blocks=3, budget_seconds=600.0)).decisions[0]
    assert decision.verdict is Verdict.INVALID
    assert "block 2: the block was run on two machines" in decision.reason


@pytest.mark.parametrize("field", ["environment_digest", "data_digest", "machine.class_digest"])
def test_other_software_data_or_class_stays_invalid(world, field) -> None:
    world.script.body = lambda request: (
        {field: "sha256:" + "7" * 64} if request.experiment.block == 2 else {}
    )
    decision = world.lab().start(options(blocks=3)).decisions[0]
    assert decision.verdict is Verdict.INVALID
    assert "block 2: " in decision.reason
