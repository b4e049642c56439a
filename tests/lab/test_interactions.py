"""Campaigns from both bases with fake children: planted interactions are found, additive effects are not."""

import math
import random

import pytest

from lanewise.lab.analyse import analyse_campaign
from lanewise.lab.events import BlockFinished
from lanewise.lab.interactions import interaction_table
from lanewise.receipts.decision import Verdict
from lanewise.receipts.store import Store
from tests.lab.fake import BASE_SECONDS, World, options, place, state

FEATURES = ("fused_moe", "fused_mamba", "fused_residual")
LOGS = {"fused_moe": math.log(0.7), "fused_mamba": math.log(0.5), "fused_residual": math.log(0.98)}


def planted(*, interaction: float = 0.0, noise_sd: float = 0.0, seed: int = 0):
    """Effects add up on the log scale, but for moe and mamba together."""
    rng = random.Random(seed)
    process: dict[str, float] = {}

    def seconds(request, step, now):
        on = {feature for feature in LOGS if state(request, feature) == "on"}
        log = sum(LOGS[feature] for feature in on)
        log += interaction * ({"fused_moe", "fused_mamba"} <= on)
        level = process.setdefault(place(request), rng.gauss(0.0, noise_sd))
        return BASE_SECONDS * math.exp(log + level + rng.gauss(0.0, noise_sd))

    return seconds


def measure(world, *, blocks=6, features=(*FEATURES, "full_stack"), **changes):
    budget = {"budget_seconds": 200.0, "design": "both", "blocks": blocks, "features": features}
    return world.lab().start(options(**{**budget, **changes}))


def test_every_feature_is_decided_on_both_bases_under_ids_of_their_own(world):
    world.script.seconds = planted()
    result = measure(world, blocks=2)
    found = {(d.feature, d.design): d for d in result.decisions}
    assert set(found) == {
        *((feature, base) for feature in FEATURES for base in ("add-one", "leave-one-out")),
        ("full_stack", "leave-one-out"),
    }
    assert len({d.decision_id for d in result.decisions}) == 7
    for feature in FEATURES:
        for base in ("add-one", "leave-one-out"):
            decision = found[feature, base]
            assert decision.estimate.log_ratio == pytest.approx(LOGS[feature])
            assert decision.decision_id.endswith(f"-{feature}.{base}")
            assert world.store.read_decision(decision.decision_id) == decision
    requests = {
        e.request.experiment.ablation_id: e.request for e in world.endpoints if e.request.experiment
    }
    assert state(requests["fused_moe.add-one"], "fused_mamba") == "off"
    assert state(requests["fused_moe.leave-one-out"], "fused_mamba") == "on"
    planned = {(f.feature, f.design) for f in result.campaign.features}
    assert ("fused_moe", "add-one") in planned
    assert ("full_stack", None) in planned


def test_both_bases_share_every_round(world):
    world.script.seconds = planted()
    measure(world, blocks=3)
    rounds: dict[int, set[str]] = {}
    for event in world.seen(BlockFinished):
        rounds.setdefault(event.block, set()).add(event.feature)
    assert len(rounds) == 3
    assert all(len(keys) == 7 for keys in rounds.values())
    order = [event.block for event in world.seen(BlockFinished)]
    assert order == sorted(order)


def test_no_look_ends_a_series_that_will_be_compared(world):
    """An early stop keeps large means, so the difference of two such series would have no interval."""
    world.script.seconds = planted(noise_sd=0.001)
    result = measure(world, blocks=6, features=("fused_moe", "full_stack"))
    assert {d.boundary.looks for d in result.decisions} == {(6,)}
    assert {len(d.blocks) for d in result.decisions} == {6}


def test_additive_effects_show_no_interaction(tmp_path):
    """Noise is called an interaction in one campaign of twenty, so one of three would already be bad luck."""
    found, covered = 0, 0
    for seed in range(3):
        world = World(store=Store(tmp_path / str(seed)))
        world.script.seconds = planted(noise_sd=0.01, seed=seed)
        table = measure(
            world, blocks=3, features=FEATURES, budget_seconds=60.0
        ).campaign.interactions
        assert [one.feature for one in table.interactions] == list(FEATURES)
        assert table.untested == ()
        found += any(one.found for one in table.interactions)
        for one in table.interactions:
            covered += one.interval_low_log < 0 < one.interval_high_log
            assert one.detectable_log > one.mde_log > 0
            if not one.found:
                assert one.reason.startswith("no interaction larger than ")
                assert f"{100 * math.expm1(one.detectable_log):.2f} %" in one.reason
    assert found <= 1
    assert covered >= 8


def test_a_planted_interaction_is_found_with_an_interval_that_covers_it(world):
    truth = 0.25
    world.script.seconds = planted(interaction=truth, noise_sd=0.01, seed=4)
    table = measure(world).campaign.interactions
    found = {one.feature: one for one in table.interactions}
    for feature in ("fused_moe", "fused_mamba"):
        one = found[feature]
        assert one.found
        assert one.interval_low_log < truth < one.interval_high_log
        assert one.adjusted_p < 0.05
        assert one.reason.startswith("gains less with the others")
        assert one.leave_one_out_log - one.add_one_log == pytest.approx(one.difference_log)
    assert not found["fused_residual"].found


def test_the_product_of_single_effects_misses_a_stack_that_interacts(world):
    truth = 0.25
    world.script.seconds = planted(interaction=truth, noise_sd=0.005, seed=5)
    additivity = measure(
        world, features=(), blocks=3, budget_seconds=300.0
    ).campaign.interactions.additivity
    assert len(additivity.add_one) > len(FEATURES)
    assert additivity.missing == ()
    assert additivity.explained is False
    assert additivity.interval_low_log < truth < additivity.interval_high_log
    assert additivity.full_stack_log == pytest.approx(sum(LOGS.values()) + truth, abs=0.03)


def test_a_feature_of_the_stack_that_was_not_measured_leaves_the_sum_open(world):
    world.script.seconds = planted()
    additivity = measure(world, blocks=2).campaign.interactions.additivity
    assert additivity.explained is None
    assert "fused_optimizer" in additivity.missing
    assert "fused_optimizer" in additivity.reason


def test_an_invalid_side_is_named_and_tests_nothing(world):
    world.script.seconds = planted()
    world.script.observed = lambda request, op, asked: (
        "padded.torch"
        if place(request) == "fused_moe.add-one/1/B" and op == "moe_experts"
        else asked
    )
    result = measure(world, blocks=2, features=("fused_moe", "fused_mamba"))
    table = result.campaign.interactions
    assert [one.feature for one in table.interactions] == ["fused_mamba"]
    assert [(one.feature, one.reason) for one in table.untested] == [
        ("fused_moe", "is INVALID on the bare lane")
    ]
    assert table.additivity is None
    assert table.additivity_reason == "the full stack was not measured as a whole"


def test_interactions_are_recomputed_from_what_is_on_the_disk(world):
    world.script.seconds = planted(interaction=0.2, noise_sd=0.01)
    result = measure(world, blocks=2, features=FEATURES[:2])
    record, decisions = analyse_campaign(
        world.store, result.campaign.campaign_id, now=result.campaign.finished_at
    )
    assert record.interactions == result.campaign.interactions
    assert world.store.read_campaign(record.campaign_id).interactions == record.interactions
    by_id = {decision.decision_id for decision in decisions}
    for one in record.interactions.interactions:
        assert {one.add_one, one.leave_one_out} <= by_id


def test_a_campaign_of_one_base_has_no_interactions(world):
    assert world.lab().start(options(blocks=2)).campaign.interactions is None


def test_a_budget_drops_a_feature_from_both_bases_together(world):
    world.script.seconds = lambda request, step, now: (
        0.6 if state(request, "fused_mamba") == "off" else 0.1
    )
    features = ("fused_moe", "fused_mamba")
    result = measure(world, features=features, blocks=None, budget_seconds=75.0)
    dropped = {
        d.feature: {x.verdict for x in result.decisions if x.feature == d.feature}
        for d in result.decisions
    }
    assert {len(verdicts & {Verdict.NOT_MEASURED}) for verdicts in dropped.values()} == {0, 1}
    for verdicts in dropped.values():
        assert verdicts == {Verdict.NOT_MEASURED} or Verdict.NOT_MEASURED not in verdicts


def test_both_bases_resume(world):
    world.script.seconds = planted()
    world.script.interrupt = lambda request, step: place(request) == "fused_moe.add-one/2/A"
    first = measure(world, blocks=3, features=("fused_moe", "full_stack"))
    assert first.interrupted
    world.script.interrupt = lambda request, step: False
    again = world.lab().resume(options().lane, options().machine_class, None)
    assert again.campaign.status == "COMPLETE"
    assert again.campaign.interactions.interactions[0].feature == "fused_moe"


def test_an_effect_that_turns_round_is_called_that(world):
    world.script.seconds = planted(interaction=0.6, noise_sd=0.002)
    decisions = measure(world, features=("fused_moe",), blocks=4).decisions
    (one,) = interaction_table(decisions, stack_features=()).interactions
    assert one.found
    assert one.reason.startswith("turns round: −")
