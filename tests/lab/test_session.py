"""Whole campaigns with fake children: effects, noise, failures, interruption, resumption."""

import math
import random
from pathlib import Path

import pytest

from lanewise.errors import CampaignError, ChildError, NotBuiltError, UsageError
from lanewise.lab.analyse import analyse_campaign
from lanewise.lab.campaign import JOURNAL, CampaignFolder
from lanewise.lab.events import BlockDiscarded, BlockFinished, PlanReady
from lanewise.lab.journal import BlockDone, BlockLost, Journal
from lanewise.lane.load import load_lane
from lanewise.receipts.decision import Verdict
from tests.lab.fake import BASE_SECONDS, MACHINE, FakeEndpoint, Script, World, options, place, state


def with_effect(feature: str, ratio: float, *, noise_sd: float = 0.0, seed: int = 0):
    """Steps of arm B take `ratio` of the control's, with noise of each step and each process."""
    rng = random.Random(seed)
    process: dict[str, float] = {}

    def seconds(request, step, now):
        level = process.setdefault(place(request), rng.gauss(0.0, noise_sd))
        factor = ratio if state(request, feature) == "on" else 1.0
        return BASE_SECONDS * factor * math.exp(level + rng.gauss(0.0, noise_sd))

    return seconds


def test_an_exact_effect_is_recovered_and_called_by_its_name(world):
    world.script.seconds = with_effect("fused_moe", 0.8)
    result = world.lab().start(options())
    (decision,) = result.decisions
    assert decision.estimate.ratio == pytest.approx(0.8, rel=1e-9)
    assert decision.verdict is Verdict.FASTER
    assert decision.stance == "core"
    assert decision.versus == "padded.torch"
    assert decision.observed == ("sorted.torch",)
    assert decision.status == result.campaign.status == "COMPLETE"
    assert decision.tokens_per_second.delta == pytest.approx(0.25)
    assert decision.control_step_seconds == pytest.approx(BASE_SECONDS)


def test_a_noisy_effect_lies_in_its_interval_and_the_slowdown_is_found(world):
    world.script.seconds = with_effect("fused_moe", 1.3, noise_sd=0.01)
    (decision,) = world.lab().start(options()).decisions
    assert decision.verdict is Verdict.SLOWER
    assert decision.estimate.interval_low < 1.3 < decision.estimate.interval_high
    assert decision.stance == "turn off on this lane"


def test_slow_drift_cancels_in_lockstep(world):
    start = world.clock()

    def drifting(request, step, now):
        factor = 0.9 if state(request, "fused_moe") == "on" else 1.0
        return BASE_SECONDS * factor * (1.0 + 0.002 * (now - start))

    world.script.seconds = drifting
    (decision,) = world.lab().start(options(blocks=4)).decisions
    assert all(block.valid for block in decision.blocks), decision.blocks
    assert decision.estimate.ratio == pytest.approx(0.9, rel=2e-3)


def test_every_feature_of_the_lane_gets_a_verdict_or_a_reason(world):
    world.script.seconds = with_effect("fused_mamba", 0.5)
    result = world.lab().start(options(features=(), budget_seconds=600.0))
    found = {decision.feature: decision for decision in result.decisions}
    assert set(found) == {
        "fused_mamba",
        "fused_recurrent",
        "fused_residual",
        "fused_mla_ingress",
        "fused_moe",
        "fused_linear_ce",
        "fused_optimizer",
        "backend_dispatch",
        "regional_compile",
        "extra_aux_losses",
        "full_stack",
    }
    assert found["fused_mamba"].verdict is Verdict.FASTER
    assert found["full_stack"].estimate.ratio == pytest.approx(0.5)
    assert found["extra_aux_losses"].verdict is Verdict.WITHIN_BUDGET
    assert found["backend_dispatch"].observed == ("flash.torch",)
    assert result.campaign.stack_ratio == pytest.approx(0.5)


def test_add_one_starts_from_the_bare_lane(world):
    world.lab().start(options(design="add-one"))
    visits = [e.request for e in world.endpoints if e.request.experiment is not None]
    assert {state(request, "fused_mamba") for request in visits} == {"off"}
    assert {state(request, "fused_moe") for request in visits} == {"off", "on"}


def test_arms_take_turns_one_step_at_a_time_in_balanced_quads(world):
    world.lab().start(options(blocks=2))
    turns = [where[-1] for where, step in world.turns if where.startswith("fused_moe/1/")]
    lead, quads = turns[:4], "".join(turns[4:])
    assert lead[::2] == [lead[0]] * 2
    assert lead[1::2] == [lead[1]] * 2
    found = [quads[start : start + 4] for start in range(0, len(quads), 4)]
    assert set(found) <= {"ABBA", "BAAB"}
    assert abs(found.count("ABBA") - found.count("BAAB")) <= 1


def test_the_order_comes_from_the_seed_alone(tmp_path):
    from lanewise.receipts.store import Store

    def turns(seed, folder):
        world = World(store=Store(tmp_path / folder))
        world.lab().start(options(seed=seed, features=("fused_moe", "fused_mamba"), blocks=3))
        return world.turns

    assert turns(7, "a") == turns(7, "b")
    assert turns(7, "c") != turns(8, "d")


def test_blocks_of_features_alternate_over_time(world):
    world.lab().start(options(features=("fused_moe", "fused_mamba"), blocks=3))
    order = [(event.block, event.feature) for event in world.seen(BlockFinished)]
    assert [block for block, _ in order] == [1, 1, 2, 2, 3, 3]


def test_a_dead_child_costs_its_block_which_is_said_and_run_again(world):
    died = []

    def dies_once(request, step):
        if place(request) == "fused_moe/2/B" and step == 5 and not died:
            died.append(1)
            return -9
        return None

    world.script.exit_code = dies_once
    result = world.lab().start(options(blocks=3))
    (event,) = world.seen(BlockDiscarded)
    assert event.again
    assert event.reason.startswith("arm B: the process was killed by SIGKILL")
    (lost,) = lost_blocks(world, result)
    assert lost.failure_family == "process"
    assert lost.failure.model_dump() == {
        "family": "process",
        "exit_code": -9,
        "signal": "SIGKILL",
    }
    assert result.campaign.status == "COMPLETE"
    assert result.campaign.discarded_blocks[0].startswith("fused_moe block 2: arm B: ")
    assert all(endpoint.closed for endpoint in world.endpoints)


def test_a_child_that_always_dies_leaves_the_campaign_incomplete(world):
    world.script.exit_code = lambda request, step: (
        1 if place(request) == "fused_moe/1/A" and step == 2 else None
    )
    result = world.lab().start(options(blocks=3))
    (decision,) = result.decisions
    assert decision.status == result.campaign.status == "INCOMPLETE"
    assert decision.incomplete_reason == "2 of 3 blocks were run"
    assert "exit code 1" in result.campaign.discarded_blocks[1]


def test_a_silent_child_is_stopped_and_named(world):
    world.script.hangs = lambda request, step: place(request) == "fused_moe/1/A" and step == 4
    result = world.lab().start(options(blocks=2, budget_seconds=600.0))
    assert "gave no answer for" in world.seen(BlockDiscarded)[0].reason
    lost = lost_blocks(world, result)[0]
    assert lost.failure_family == "timeout"
    assert lost.failure.waited_seconds >= 60.0


@pytest.mark.parametrize(
    ("facts", "family"),
    [
        ({"family": "disk", "cause": "EIO", "step": None}, "disk"),
        ({"family": "defect", "error_type": "ZeroDivisionError"}, "defect"),
        (None, None),
    ],
)
def test_a_lost_block_keeps_what_its_child_said(world, facts, family):
    class Fails(FakeEndpoint):
        def _step(self, count):
            self.queue.append({"event": "failed", "error": "no", "exit_code": 70, "failure": facts})

    launch = world.launch

    def launch_one_that_fails(request):
        if place(request) != "fused_moe/1/A":
            return launch(request)
        endpoint = Fails(request=request, world=world, pid=1)
        world.endpoints.append(endpoint)
        return endpoint

    world.launch = launch_one_that_fails
    result = world.lab().start(options(blocks=2))
    lost = lost_blocks(world, result)
    assert {entry.failure_family for entry in lost} == {family}


def lost_blocks(world, result):
    folder = Path(world.store.campaign_folder(result.campaign.campaign_id))
    return [e for e in Journal(folder / JOURNAL).read() if isinstance(e, BlockLost)]


def test_ctrl_c_keeps_finished_blocks_and_resume_runs_the_rest(world):
    world.script.interrupt = lambda request, step: place(request) == "fused_moe/3/A" and step == 6
    world.script.seconds = with_effect("fused_moe", 0.8)
    result = world.lab().start(options(blocks=4))
    assert result.interrupted
    assert result.decisions[0].status == result.campaign.status == "INCOMPLETE"
    assert len(result.decisions[0].blocks) == 2
    assert result.decisions[0].verdict is Verdict.INCONCLUSIVE
    assert result.decisions[0].stance == "undecided until --resume"
    assert all(endpoint.closed for endpoint in world.endpoints)

    world.script.interrupt = lambda request, step: False
    world.turns.clear()
    again = world.lab().resume(options().lane, MACHINE, None)
    assert {where for where, _ in world.turns} == {
        f"fused_moe/{block}/{arm}" for block in (3, 4) for arm in "AB"
    }
    assert not again.interrupted
    assert again.campaign.campaign_id == result.campaign.campaign_id
    assert again.campaign.status == "COMPLETE"
    assert again.decisions[0].estimate.ratio == pytest.approx(0.8)


def test_a_truncated_journal_line_is_dropped_and_its_block_run_again(world):
    first = world.lab().start(options(blocks=3)).campaign
    journal = CampaignFolder.find(world.store.root, first.campaign_id).journal
    journal.path.write_bytes(journal.path.read_bytes()[:-40])
    assert len(journal.read()) == 2
    world.turns.clear()
    again = world.lab().resume(options().lane, MACHINE, first.campaign_id)
    assert len({where for where, _ in world.turns}) == 2
    assert again.campaign.status == "COMPLETE"
    assert len(journal.read()) == 3
    assert world.seen(PlanReady)[-1].finished_blocks == 2


def test_resume_refuses_another_lane_and_an_unknown_campaign(world):
    campaign = world.lab().start(options(blocks=2)).campaign
    other = options().lane.model_copy(update={"seed": 1})
    with pytest.raises(UsageError, match="undo the change"):
        world.lab().resume(other, MACHINE, campaign.campaign_id)
    with pytest.raises(UsageError, match="Newest: 2026-11-23-nam56r-tiny-t1"):
        world.lab().resume(options().lane, MACHINE, "nonsense")
    with pytest.raises(UsageError, match="no unfinished campaign"):
        world.lab().resume(options().lane, MACHINE, None)


def test_two_processes_cannot_drive_one_campaign_but_two_campaigns_share_a_store(world):
    first = world.lab().start(options(blocks=2)).campaign
    folder = CampaignFolder.find(world.store.root, first.campaign_id)
    with folder.locked():
        with pytest.raises(CampaignError, match="is being driven by process"):
            world.lab().resume(options().lane, MACHINE, first.campaign_id)
        second = world.lab().start(options(blocks=2)).campaign
    assert second.status == "COMPLETE"
    assert second.campaign_id != first.campaign_id


def test_a_wrong_backend_is_invalid_not_slow(world):
    world.script.observed = lambda request, op, asked: (
        "padded.torch" if (op, place(request)) == ("moe_experts", "fused_moe/3/B") else asked
    )
    (decision,) = world.lab().start(options(blocks=3)).decisions
    assert decision.verdict is Verdict.INVALID
    assert not decision.observed_ok
    assert decision.reason == (
        "block 3: arm B asked for moe_experts=sorted.torch, observed padded.torch "
        "(T=65 is not a multiple of 64)"
    )
    assert [block.valid for block in decision.blocks] == [True, True, False]


def test_arms_that_compute_something_else_are_invalid(world):
    world.script.loss = lambda request, step: (
        5.5 - 0.05 * step + (0.2 if state(request, "fused_moe") == "on" and step >= 1 else 0.0)
    )
    (decision,) = world.lab().start(options(blocks=2)).decisions
    assert decision.verdict is Verdict.INVALID
    assert "losses differ by 2.00e-01 nats at step 1" in decision.reason


def test_a_tax_may_change_the_loss(world):
    world.script.loss = lambda request, step: (
        5.5 + (0.2 if state(request, "extra_aux_losses") == "on" else 0.0)
    )
    world.script.seconds = with_effect("extra_aux_losses", 1.022, noise_sd=0.0001)
    (decision,) = world.lab().start(options(features=("extra_aux_losses",))).decisions
    assert decision.verdict is Verdict.OVER_BUDGET
    assert decision.stance == "stays opt-in (budget 1 %)"
    assert decision.loss_max_abs_diff is None


def test_the_loss_of_a_tax_is_read_at_equal_steps_and_at_equal_time(world):
    """10 % slower and 0.05 nats better at every step, on a loss that falls by 0.05 a step."""
    gain = {"on": 0.05, "off": 0.0}
    world.script.loss = lambda request, step: (
        5.5 - 0.05 * step - gain[state(request, "extra_aux_losses")]
    )
    world.script.seconds = with_effect("extra_aux_losses", 1.10, noise_sd=0.0001)
    (decision,) = world.lab().start(options(features=("extra_aux_losses",))).decisions
    num_steps = len(world.store.read_steps(decision.blocks[0].receipts["A"][0]).step)
    steps, time = decision.loss_equal_steps, decision.loss_equal_time
    assert steps.delta == pytest.approx(-0.05)
    behind_steps = num_steps * (1 - 1 / 1.10)
    assert time.delta == pytest.approx(-0.05 + 0.05 * behind_steps, rel=0.02)
    assert decision.verdict is Verdict.OVER_BUDGET, "losses never move the verdict"


def test_equal_mathematics_have_no_loss_to_weigh(world):
    (decision,) = world.lab().start(options()).decisions
    assert (decision.loss_equal_steps, decision.loss_equal_time) == (None, None)


def test_other_software_in_the_middle_of_a_campaign_is_invalid(world):
    world.script.body = lambda request: (
        {"environment_digest": "sha256:" + "1" * 64} if request.experiment.block == 2 else {}
    )
    (decision,) = world.lab().start(options(blocks=2)).decisions
    assert decision.verdict is Verdict.INVALID
    assert "block 2: environment changed since block 1" in decision.reason


def test_noise_without_a_steady_state_costs_the_block_only(world):
    def slows_down(request, step, now):
        if place(request).endswith("/1/B"):
            return BASE_SECONDS * (1.0 + 0.02 * step)
        return BASE_SECONDS

    world.script.seconds = slows_down
    result = world.lab().start(options(blocks=3))
    (decision,) = result.decisions
    assert {block.block: block.valid for block in decision.blocks} == {1: False, 2: True, 3: True}
    (refused,) = (block for block in decision.blocks if not block.valid)
    assert "no steady difference of the arms" in refused.reasons[0]
    (again,) = result.campaign.discarded_blocks
    assert "block 1: no steady difference of the arms" in again, "it was tried once more"
    assert decision.status == "COMPLETE"
    assert decision.estimate.num_blocks == 2
    assert decision.peak_memory_bytes.control is not None, "memory was profiled in block 1"


def test_an_a_a_campaign_reports_its_noise(world):
    world.script.seconds = with_effect("nothing", 1.0, noise_sd=0.02)
    (decision,) = world.lab().start(options(features=("none",), blocks=6)).decisions
    assert decision.verdict is Verdict.NOISE
    assert 0.005 < decision.estimate.block_sd_log < 0.08
    assert decision.reason.startswith("block SD ")
    assert "half width" in decision.reason
    assert "bias" in decision.reason


def test_an_a_a_of_eight_blocks_sets_noise_and_margin_of_the_next_plan(world):
    world.script.seconds = with_effect("nothing", 1.0, noise_sd=0.02)
    (noise,) = world.lab().start(options(features=("none",), blocks=8)).decisions
    plan = world.lab().plan(options())
    assert plan.noise_source == plan.margin.source == noise.decision_id
    assert plan.noise_log == noise.estimate.block_sd_log
    assert plan.margin.log_value == pytest.approx(2 * noise.estimate.half_width_log)


def test_decisions_follow_from_the_store_alone(world):
    world.script.seconds = with_effect("fused_moe", 0.8, noise_sd=0.01)
    result = world.lab().start(options())
    record, decisions = analyse_campaign(
        world.store, result.campaign.campaign_id, now="2026-11-23T10:00:00Z"
    )
    assert decisions == result.decisions
    assert record == result.campaign
    assert world.store.read_decision(decisions[0].decision_id) == decisions[0]


def test_a_lost_receipt_makes_its_block_invalid(world):
    result = world.lab().start(options(blocks=2))
    journal = CampaignFolder.find(world.store.root, result.campaign.campaign_id).journal
    entry = journal.read()[0]
    assert isinstance(entry, BlockDone)
    from pathlib import Path

    Path(world.store.locate_receipt(entry.receipts["A"][0])).unlink()
    _, (decision,) = analyse_campaign(
        world.store, result.campaign.campaign_id, now="2026-11-23T10:00:00Z"
    )
    assert decision.verdict is Verdict.INVALID
    assert "is not in the store" in decision.reason


def test_sequential_blocks_run_one_process_at_a_time_where_two_do_not_fit(world):
    world.free_bytes = 500 * 2**20
    world.script.seconds = with_effect("fused_moe", 0.8)
    result = world.lab().start(options(budget_seconds=300.0))
    (decision,) = result.decisions
    assert result.campaign.block_design == "sequential"
    assert "two copies need 0.6 GiB" in result.campaign.notes[0]
    assert decision.estimate.ratio == pytest.approx(0.8)
    visits = [
        where for where, step in world.turns if where.startswith("fused_moe/1/") and step == 0
    ]
    assert "".join(where[-1] for where in visits) in ("ABBA", "BAAB")
    assert all(len(ids) == 2 for block in decision.blocks for ids in block.receipts.values())


def test_a_feature_that_cannot_run_says_why_and_the_others_go_on(world):
    world.script.refusal = lambda request: (
        ("no C++ compiler was found", 2) if state(request, "regional_compile") == "on" else None
    )
    result = world.lab().start(options(features=("regional_compile", "fused_moe")))
    compiled, moe = result.decisions
    assert compiled.verdict is Verdict.NOT_MEASURED
    assert compiled.reason == compiled.stance == "no C++ compiler was found"
    assert moe.verdict is not Verdict.NOT_MEASURED
    assert result.campaign.status == "COMPLETE"


def test_a_base_that_cannot_run_is_one_error_of_the_right_kind(world):
    world.script.refusal = lambda request: ("data file x.jsonl is empty", 2)
    with pytest.raises(UsageError, match=r"^data file x.jsonl is empty$"):
        world.lab().start(options())
    world.script = Script(exit_code=lambda request, step: -11)
    with pytest.raises(ChildError, match="killed by SIGSEGV"):
        world.lab().start(options())


def test_features_that_are_not_there_are_refused_by_name(world):
    with pytest.raises(UsageError, match="Did you mean 'fused_moe'"):
        world.lab().plan(options(features=("fused_mo",)))
    with pytest.raises(NotBuiltError, match="fused_mla_projection"):
        world.lab().plan(options(features=("fused_mla_projection",)))
    pinned = options().lane.model_copy(update={"ops": {"moe_experts": "padded.torch"}})
    plan = world.lab().plan(options(lane=pinned, features=(), budget_seconds=900.0))
    assert "remove the pin" in plan.feature("fused_moe").skipped_reason
    assert plan.feature("fused_mamba").skipped_reason is None


def with_routing(mode: str):
    return load_lane("nam56r-tiny", [f"model.moe.routing_mode={mode}"])


def test_arms_that_deal_their_routing_share_it(world):
    world.lab().start(options(lane=with_routing("forced_balanced")))
    resolved = [endpoint.request.resolved for endpoint in world.endpoints]
    assert {r.lane.model.moe.routing_mode for r in resolved} == {"forced_balanced"}
    assert len({r.digest for r in resolved}) == 1


def test_a_campaign_cannot_replay_routing(world):
    with pytest.raises(UsageError, match=r"use --set model\.moe\.routing_mode=forced_balanced"):
        world.lab().start(options(lane=with_routing("replayed")))
    assert not world.endpoints
