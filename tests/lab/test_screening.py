"""Screens with fake children: true effects come first, nothing they say can be taken for proof."""

import math
import random

import pytest

from lanewise.errors import UsageError
from lanewise.lab.analyse import analyse_campaign
from lanewise.lab.arms import ArmBuilder
from lanewise.lab.campaign import CampaignFolder
from lanewise.lab.confirm import confirmation, ranked
from lanewise.lab.events import BlockDiscarded
from lanewise.lane.load import load_lane
from lanewise.measure.factorial import plackett_burman
from lanewise.receipts.decision import Verdict
from lanewise.receipts.store import Store
from lanewise.train.request import PairRequest
from tests.lab.fake import BASE_SECONDS, MACHINE, FakePair, World, options, place, state

EFFECTS = {"fused_moe": 0.8, "fused_mamba": 0.7, "fused_optimizer": 1.1}
FEATURES = (
    *EFFECTS,
    "fused_residual",
    "fused_recurrent",
    "fused_mla_ingress",
    "fused_linear_ce",
)
SCREEN_WORDS = {
    Verdict.LIKELY_FASTER,
    Verdict.LIKELY_SLOWER,
    Verdict.UNCLEAR,
    Verdict.NOT_MEASURED,
    Verdict.INVALID,
}


def additive(*, noise_sd: float = 0.01, seed: int = 0, effects=EFFECTS):
    rng = random.Random(seed)

    def seconds(request, step, now):
        logs = [math.log(size) for key, size in effects.items() if state(request, key) == "on"]
        return BASE_SECONDS * math.exp(sum(logs) + rng.gauss(0.0, noise_sd))

    return seconds


def screen(world, design, **changes):
    budget = 200.0 if design == "toggle" else 85.0
    wanted = {"features": FEATURES, "budget_seconds": budget, **changes}
    return world.lab().screen(options(**wanted), design)


@pytest.fixture(params=["toggle", "plackett-burman"])
def design(request):
    return request.param


@pytest.fixture(scope="module", params=["toggle", "plackett-burman"])
def screened(request, tmp_path_factory):
    """A screen that tests only read: its design, its world and its result."""
    world = World(store=Store(tmp_path_factory.mktemp("store")))
    world.script.seconds = additive(seed=1)
    return request.param, world, screen(world, request.param)


def test_true_effects_come_first_with_intervals_that_hold_them(screened):
    _design, _world, result = screened
    found = {d.feature: d for d in result.decisions}
    assert [d.feature for d in ranked(result.decisions)][:2] == ["fused_mamba", "fused_moe"]
    assert ranked(result.decisions)[-1].feature == "fused_optimizer"
    for feature, ratio in EFFECTS.items():
        estimate = found[feature].estimate
        assert estimate.interval_low < ratio < estimate.interval_high
        assert found[feature].adjusted_p < 0.01
        word = Verdict.LIKELY_FASTER if ratio < 1 else Verdict.LIKELY_SLOWER
        assert found[feature].verdict is word
    for feature in set(FEATURES) - set(EFFECTS):
        assert found[feature].verdict is Verdict.UNCLEAR


def test_what_a_screen_writes_says_screen_when_read_back(screened):
    """Graduation refuses this mode, so it must survive the disk."""
    design, world, result = screened
    campaign = world.store.read_campaign(result.campaign.campaign_id)
    assert (campaign.mode, campaign.screen_design) == ("screen", design)
    assert len(campaign.decisions) == len(FEATURES)
    for decision_id in campaign.decisions:
        decision = world.store.read_decision(decision_id)
        assert decision.mode == "screen"
        assert decision.verdict in SCREEN_WORDS
        assert decision.adjustment == "benjamini_hochberg"
    assert campaign.stack_ratio is None
    assert campaign.interactions is None


def test_a_screen_is_recomputed_from_what_is_on_the_disk(screened):
    _design, world, result = screened
    _record, decisions = analyse_campaign(
        world.store, result.campaign.campaign_id, now=result.campaign.finished_at
    )
    assert decisions == result.decisions


def test_toggling_takes_one_process_for_both_arms_in_quads(world):
    world.script.seconds = additive(seed=1)
    result = screen(world, "toggle", features=("fused_moe", "fused_mamba"))
    pairs = [e for e in world.endpoints if isinstance(e, FakePair)]
    assert len(pairs) == 2
    assert all(pair.closed for pair in pairs)
    for decision in result.decisions:
        (block,) = decision.blocks
        assert block.design == "toggle"
        assert decision.estimate.unit == "quad"
        assert decision.estimate.num_blocks == block.num_quads > 10
        assert decision.peak_memory_bytes.reason == "both arms shared one process"
        experiments = {
            arm: world.store.read_receipt(ids[0]).experiment for arm, ids in block.receipts.items()
        }
        assert {e.design for e in experiments.values()} == {"toggle"}
    turns = "".join(where[-1] for where, _ in world.turns if where.startswith("fused_moe/"))
    quads = [turns[at : at + 4] for at in range(4, len(turns), 4)]
    assert turns[:4] == "ABAB"
    assert set(quads) == {"ABBA", "BAAB"}


def test_a_screen_of_noise_calls_nothing(world):
    world.script.seconds = additive(effects={}, seed=2)
    result = screen(world, "toggle")
    assert {d.verdict for d in result.decisions} == {Verdict.UNCLEAR}
    plan = CampaignFolder.find(world.store.root, result.campaign.campaign_id).plan()
    assert confirmation(plan, result.decisions, noise_log=0.03).command is None


def test_the_bias_of_the_screen_itself_can_be_looked_at(world):
    world.script.seconds = lambda request, step, now: 0.1 if place(request).endswith("A") else 0.103
    (decision,) = screen(world, "toggle", features=("none",)).decisions
    assert decision.verdict is Verdict.LIKELY_SLOWER
    assert "bias of the screen itself" in decision.reason


def test_rows_run_beside_their_mirror_image(world):
    world.script.seconds = additive(seed=1)
    result = screen(world, "plackett-burman")
    plan = CampaignFolder.find(world.store.root, result.campaign.campaign_id).plan()
    assert plan.factors == FEATURES
    assert len(plan.features) == 8
    builder = ArmBuilder(
        lane=load_lane("nam56r-tiny"),
        machine_class=MACHINE,
        device_type="cpu",
        design="leave-one-out",
        factors=FEATURES,
    )
    for index, levels in enumerate(plackett_burman(len(FEATURES))):
        arms = builder.build(f"row-{index + 1:02d}")
        for feature, level in zip(FEATURES, levels, strict=True):
            on = {
                name: next(f.state for f in arms.arm(name).features if f.key == feature)
                for name in "AB"
            }
            assert on == ({"A": "off", "B": "on"} if level > 0 else {"A": "on", "B": "off"})
    decision = result.decisions[0]
    assert len(decision.blocks) == sum(f.blocks for f in plan.features)
    assert decision.estimate.unit == "row"
    assert decision.observed == ("sorted.torch",)
    assert "every run switched all features" in decision.peak_memory_bytes.reason


def test_an_interaction_of_two_does_not_reach_main_effects(world):
    plain = additive(noise_sd=0.0, effects={"fused_moe": 0.8})

    def seconds(request, step, now):
        together = state(request, "fused_moe") == state(request, "fused_mamba")
        return plain(request, step, now) * (1.2 if together else 1.0)

    world.script.seconds = seconds
    found = {d.feature: d.estimate.ratio for d in screen(world, "plackett-burman").decisions}
    assert found["fused_moe"] == pytest.approx(0.8)
    others = [ratio for feature, ratio in found.items() if feature != "fused_moe"]
    assert others == pytest.approx([1.0] * len(others))


def test_a_design_needs_room_for_every_row_twice(world):
    with pytest.raises(
        UsageError, match=r"8 rows of 7 features, each run 2 times, need about \d+ s"
    ):
        screen(world, "plackett-burman", budget_seconds=50.0)


@pytest.mark.parametrize("pseudo", ["full_stack", "none"])
def test_a_design_takes_features_only(world, pseudo):
    with pytest.raises(UsageError, match=f"'{pseudo}' is no feature"):
        screen(world, "plackett-burman", features=("fused_moe", pseudo))


def test_a_feature_that_cannot_run_is_left_out_by_name(world, design):
    world.script.seconds = additive(seed=1)
    world.script.refusal = lambda request: (
        ("no C++ compiler", 2)
        if request.resolved.runtime_switches.get("regional_compile")
        else None
    )
    result = screen(world, design, features=("fused_moe", "fused_mamba", "regional_compile"))
    found = {d.feature: d for d in result.decisions}
    assert found["regional_compile"].verdict is Verdict.NOT_MEASURED
    assert "no C++ compiler" in found["regional_compile"].reason
    assert found["fused_moe"].verdict is Verdict.LIKELY_FASTER


def test_two_compiled_arms_never_share_a_process(world):
    lane = load_lane("nam56r-tiny")
    lane = lane.model_copy(update={"features": {**lane.features, "regional_compile": "on"}})
    result = screen(world, "toggle", lane=lane, features=("fused_moe", "regional_compile"))
    found = {d.feature: d for d in result.decisions}
    assert found["fused_moe"].verdict is Verdict.NOT_MEASURED
    assert "share the compiler's caches" in found["fused_moe"].reason
    assert found["regional_compile"].estimate is not None
    pairs = [e.request for e in world.endpoints if isinstance(e.request, PairRequest)]
    assert [p.control.experiment.ablation_id for p in pairs] == ["regional_compile"]


def test_two_copies_that_do_not_fit_are_not_built(world):
    world.free_bytes = int(1.5 * world.script.resident_bytes)
    result = screen(world, "toggle", features=("fused_moe", "fused_mamba"))
    assert {d.verdict for d in result.decisions} == {Verdict.NOT_MEASURED}
    assert "two copies need 0.6 GiB" in result.decisions[0].reason
    assert not [e for e in world.endpoints if isinstance(e, FakePair)]


def test_a_fallback_makes_a_screened_feature_invalid(world):
    world.script.seconds = additive(seed=1)
    world.script.observed = lambda request, op, asked: (
        "padded.torch" if place(request) == "fused_moe/1/B" and op == "moe_experts" else asked
    )
    found = {d.feature: d for d in screen(world, "toggle").decisions}
    assert found["fused_moe"].verdict is Verdict.INVALID
    assert not found["fused_moe"].observed_ok
    assert found["fused_mamba"].verdict is Verdict.LIKELY_FASTER


def test_a_dead_process_is_run_again_and_none_is_left(world):
    world.script.seconds = additive(seed=1)
    died = []

    def dies_once(request, step):
        if place(request) == "fused_moe/1/B" and step == 5 and not died:
            died.append(1)
            return -9
        return None

    world.script.exit_code = dies_once
    result = screen(world, "toggle", features=("fused_moe",))
    assert result.campaign.status == "COMPLETE"
    assert "the process of both arms: the process was killed by SIGKILL" in (
        world.seen(BlockDiscarded)[0].reason
    )
    assert all(endpoint.closed for endpoint in world.endpoints)


def test_a_screen_that_was_interrupted_resumes(world, design):
    world.script.seconds = additive(seed=1)
    first = "fused_moe/1/B" if design == "toggle" else "row-03/1/B"
    world.script.interrupt = lambda request, step: place(request) == first
    result = screen(world, design)
    assert result.interrupted
    assert result.campaign.status == "INCOMPLETE"
    assert Verdict.LIKELY_FASTER not in {
        d.verdict for d in result.decisions if d.status == "INCOMPLETE"
    }
    world.script.interrupt = lambda request, step: False
    again = world.lab().resume(options().lane, MACHINE, result.campaign.campaign_id, verb="screen")
    assert again.campaign.status == "COMPLETE"
    assert {d.verdict for d in again.decisions} <= SCREEN_WORDS
    assert again.campaign.mode == "screen"


def test_the_next_campaign_is_named_and_priced(world):
    world.script.seconds = additive(seed=1)
    result = screen(world, "toggle")
    plan = CampaignFolder.find(world.store.root, result.campaign.campaign_id).plan()
    found = confirmation(plan, result.decisions, noise_log=0.03)
    assert found.features == ("fused_mamba", "fused_moe", "fused_optimizer")
    assert found.command == (
        "lanewise ablate nam56r-tiny --feature fused_mamba --feature fused_moe --feature fused_optimizer "
        f"--blocks {found.blocks} --claims family --budget {found.seconds:.0f}s"
    )
    again = world.lab().start(
        options(features=found.features, blocks=found.blocks, budget_seconds=found.seconds)
    )
    assert {d.verdict for d in again.decisions} == {Verdict.FASTER, Verdict.SLOWER}
    assert confirmation(plan, result.decisions, noise_log=3.0).too_small == found.features
