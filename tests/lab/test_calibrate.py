"""Calibrations with fake children: what A/A blocks of known noise give, when it holds, and what a planted delay proves."""

import math
import random
from dataclasses import replace
from statistics import fmean, stdev

import pytest
from scipy import stats

from lanewise.errors import CampaignError, UsageError
from lanewise.lab import protocol
from lanewise.lab.calibrate import (
    CalibrateOptions,
    calibrate,
    control_blocks,
    parse_control,
    resume_calibration,
)
from lanewise.lab.calibration import Trials, redraw_calibration
from lanewise.lab.conditions import valid_until
from lanewise.lab.instruments import observer_fails
from lanewise.measure.boundary import power, smallest_effect
from lanewise.receipts.store import Store
from lanewise.receipts.validate import store_faults
from tests.lab.fake import BASE_SECONDS, World, fake_conditions, options, place
from tests.lab.test_session import with_effect

FEW = Trials(single=10, looks=2)


def ask(*, budget_seconds: float = 90.0, seed: int = 0, **changes):
    wanted = {"blocks": 10, "trials": FEW, **changes}
    return CalibrateOptions(campaign=options(budget_seconds=budget_seconds, seed=seed), **wanted)


def noise(sd: float, seed: int = 0):
    """Every process has a level of its own; steps are even."""
    return with_effect("nothing", 1.0, noise_sd=sd, seed=seed)


def notes(plan):
    """What a plan says about its noise; fake machines never pin processes."""
    return [note for note in plan.notes if not note.startswith("processes are not pinned")]


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory):
    """A world with one calibration; tests that change it copy nothing and only read."""
    world = World(
        store=Store(tmp_path_factory.mktemp("store")), tokens=[f"t{n}" for n in range(99)]
    )
    # One block in a hundred drifts by chance; with this seed none does, and the numbers below need all 16.
    world.script.seconds = noise(0.01, seed=5)
    return world, calibrate(world.lab(), ask(blocks=16, budget_seconds=3600.0))


def test_the_numbers_are_those_of_the_blocks(calibrated):
    _world, result = calibrated
    record = result.calibration
    (decision,) = result.campaigns[0].decisions
    contrasts = [block.contrast_log for block in decision.blocks]
    assert [block.contrast_log for block in record.blocks] == contrasts
    assert record.num_blocks == 16
    assert record.block_sd_log == pytest.approx(stdev(contrasts))
    low, high = stats.t.interval(0.95, 15, loc=fmean(contrasts), scale=stats.sem(contrasts))
    assert (record.bias_interval.low, record.bias_interval.high) == pytest.approx((low, high))
    assert record.bias_p == pytest.approx(stats.ttest_1samp(contrasts, 0.0).pvalue)
    assert record.biased == (record.bias_p < 0.05)
    variance = stats.chi2.ppf((0.975, 0.025), 15)
    assert record.block_sd_interval.low == pytest.approx(
        record.block_sd_log * math.sqrt(15 / variance[0])
    )
    assert record.block_sd_interval.high == pytest.approx(
        record.block_sd_log * math.sqrt(15 / variance[1])
    )
    assert record.half_width_log == pytest.approx((high - low) / 2)
    assert record.margin.log_value == pytest.approx(
        max(0.005, high - low, abs(fmean(contrasts)) + (high - low) / 2)
    )
    assert record.valid_until == "2026-12-23T10:00:00Z"
    assert [one.num_blocks for one in record.detectable] == [4, 8, 12, 24]
    effects = [one.effect_log for one in record.detectable]
    assert effects == sorted(effects, reverse=True)
    assert effects[-1] > record.margin.log_value


def test_it_is_drawn_again_from_receipts_alone(calibrated):
    world, result = calibrated
    assert redraw_calibration(world.store, result.calibration, trials=FEW) == result.calibration
    assert world.store.read_calibration(result.calibration.calibration_id) == result.calibration
    checked = {
        where: faults for where, faults in store_faults(world.store) if "/calibrations/" in where
    }
    assert list(checked.values()) == [[]]


def test_quads_are_counted_as_a_plan_counts_them(calibrated):
    world, result = calibrated
    plan = world.lab().plan(options(budget_seconds=3600.0))
    assert (
        result.calibration.quads_per_block == plan.feature("fused_moe").quads == protocol.MAX_QUADS
    )


def test_the_next_plan_uses_it(calibrated):
    world, result = calibrated
    plan = world.lab().plan(options(budget_seconds=3600.0))
    assert plan.noise_source == plan.margin.source == result.calibration.calibration_id
    assert plan.noise_log == result.calibration.block_sd_log
    assert plan.margin == result.calibration.margin
    upper = result.calibration.block_sd_interval.high
    (note,) = notes(plan)
    assert "is known from 16 A/A blocks and may be up to" in note
    assert f"{math.expm1(upper):.2%}" in note
    feature = plan.feature("fused_moe")
    worst = smallest_effect(upper, feature.boundary, margin_log=plan.margin.log_value)
    assert f"80 % power begins at {math.expm1(worst):.2%}, not at" in note
    assert worst > feature.detectable_log


def test_a_plan_of_fewer_quads_is_warned(calibrated):
    world, result = calibrated
    plan = world.lab().plan(options(budget_seconds=24.0))
    quads = plan.feature("fused_moe").quads
    most = protocol.MAX_QUADS
    assert quads < most
    note, _uncertainty = notes(plan)
    assert f"{most} quads a block and this plan has {quads}" in note
    # Variance of a block of q quads: 1 + 100/q times that of its processes.
    factor = math.sqrt((1 + 100 / quads) / (1 + 100 / most))
    assert f"{factor:.1f} times" in note
    assert plan.noise_log == pytest.approx(factor * result.calibration.block_sd_log)
    feature = plan.feature("fused_moe")
    assert plan.planned_mde_log == feature.detectable_log
    assert power(
        feature.detectable_log,
        plan.noise_log,
        feature.boundary,
        margin_log=result.calibration.margin.log_value,
    ) == pytest.approx(0.8, abs=0.01)


def test_an_effect_gets_the_blocks_that_its_short_blocks_need(calibrated):
    """Blocks follow from the noise, quads from the budget, and few quads are noisier than what was calibrated."""
    world, _ = calibrated
    effect = math.log1p(0.03)
    rich = world.lab().plan(options(budget_seconds=3600.0, effect_log=effect))
    tight = world.lab().plan(options(budget_seconds=90.0, effect_log=effect))
    rich_moe, tight_moe = rich.feature("fused_moe"), tight.feature("fused_moe")
    assert tight_moe.quads < rich_moe.quads
    assert tight_moe.blocks > rich_moe.blocks
    for plan in (rich, tight):
        assert plan.feature("fused_moe").detectable_log <= effect * 1.01


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"packages": {"torch": "2.14.0"}}, "torch 2.13.0 → 2.14.0"),
        ({"python_version": "3.12.1"}, "python_version 3.11.7 → 3.12.1"),
        ({"variables": {"OMP_PROC_BIND": "true"}}, "OMP_PROC_BIND none → true"),
        ({"packages": {"lanewise": "0.1.0+source.abc"}}, "→ 0.1.0+source.abc"),
    ],
)
def test_software_that_takes_part_in_a_step_expires_it_by_name(calibrated, change, said):
    plan = replanned(calibrated[0], change)
    assert plan.noise_source == "assumed"
    assert said in notes(plan)[0]
    assert notes(plan)[0].startswith("calibration 2026-11-23-nam56r-tiny-")


@pytest.mark.parametrize(
    "change",
    [
        {"packages": {"pyarrow": "99"}},
        {"packages": {"flash-attn": "3.0"}},
        {"variables": {"LANEWISE_STORE": "elsewhere"}},
        {"variables": {"TORCHINDUCTOR_CACHE_DIR": "<set>"}},
        {"vcs_dirty": True},
    ],
)
def test_software_that_does_not_leaves_it_valid(calibrated, change):
    assert replanned(calibrated[0], change).noise_source != "assumed"


def replanned(world, change):
    def conditions(machine_class, num_threads):
        found = fake_conditions(machine_class, num_threads)
        environment = found.environment
        update = {
            name: {**getattr(environment, name), **value} if isinstance(value, dict) else value
            for name, value in change.items()
        }
        return replace(found, environment=environment.model_copy(update=update))

    return replace(world.lab(), conditions=conditions).plan(options(budget_seconds=3600.0))


@pytest.mark.parametrize(
    ("now", "said"),
    [
        ("2026-12-23T09:59:59Z", None),
        ("2026-12-26T10:00:00Z", "it expired 3 days ago"),
        ("2026-12-23T15:00:00Z", "it expired 5 h ago"),
        ("2026-11-20T10:00:00Z", "it is dated 3 days in the future"),
    ],
)
def test_it_holds_for_thirty_days(calibrated, now, said):
    world, _ = calibrated
    plan = replace(world.lab(), now=lambda: now).plan(options(budget_seconds=3600.0))
    assert (plan.noise_source == "assumed") == (said is not None)
    if said is not None:
        assert said in notes(plan)[0]
        assert plan.margin.log_value == 0.005


def test_another_lane_block_design_or_thread_count_is_named(calibrated):
    world, _ = calibrated
    other = options().lane.model_copy(update={"seed": 5})
    for changes, said in (
        ({"lane": other}, "it is of another lane (sha256:"),
        ({"block_design": "sequential"}, "it is of lockstep blocks, this plan has sequential"),
        ({"num_threads": 2}, "protocol num_threads 1 → 2"),
    ):
        plan = world.lab().plan(options(budget_seconds=3600.0, **changes))
        assert plan.noise_source == "assumed"
        assert said in notes(plan)[0]


def test_valid_until_is_a_time_in_utc():
    assert valid_until("2026-11-23T10:00:00Z") == "2026-12-23T10:00:00Z"


def test_its_own_campaign_does_not_come_back_as_a_decision_when_it_has_expired(calibrated):
    world, result = calibrated
    assert world.store.read_decision(result.campaigns[0].decisions[0].decision_id)
    later = replace(world.lab(), now=lambda: "2027-02-01T00:00:00Z")
    assert later.plan(options(budget_seconds=3600.0)).noise_source == "assumed"


def test_a_planted_delay_is_found_and_covered(world):
    world.script.seconds = noise(0.005)
    result = calibrate(world.lab(), ask(control_ratio=0.05))
    control = result.calibration.control
    assert control.verdict == "SLOWER"
    assert control.found
    assert control.covered
    assert control.planted_log == pytest.approx(math.log(1.05))
    assert control.planned_blocks == control_blocks(result.calibration, 0.05)
    assert world.store.read_calibration(result.calibration.calibration_id).control == control
    assert result.campaigns[1].campaign.noise_source == result.calibration.calibration_id
    delays = {
        (place(e.request)[-1], e.request.planted_delay_ratio)
        for e in world.endpoints
        if place(e.request).startswith("planted")
    }
    assert delays == {("A", None), ("B", 0.05)}


def test_a_planted_delay_of_nothing_is_not_found(world):
    world.script.seconds = noise(0.005, seed=3)
    control = calibrate(world.lab(), ask(control_ratio=0.0)).calibration.control
    assert not control.found
    assert control.covered
    assert control.planned_blocks == 8


def test_a_control_without_noise_takes_the_fewest_blocks(world):
    result = calibrate(world.lab(), ask(control_ratio=0.02))
    assert result.calibration.block_sd_log == 0.0
    assert result.calibration.control.num_blocks == 4
    assert result.calibration.control.log_ratio == pytest.approx(math.log(1.02))


def test_a_delay_below_the_margin_is_not_run_and_says_what_to_do(world):
    world.script.seconds = noise(0.03)
    result = calibrate(world.lab(), ask(control_ratio=0.01))
    assert result.calibration.control is None
    assert "cannot be told from noise with a block SD of" in result.problems[0]
    assert len(result.campaigns) == 1


def test_a_receipt_that_was_not_delayed_as_planned_is_no_control(world):
    world.script.body = lambda request: {"extensions": {}}
    result = calibrate(world.lab(), ask(control_ratio=0.05))
    assert result.calibration.control.verdict == "INVALID"
    assert not result.calibration.control.found
    (decision,) = result.campaigns[1].decisions
    assert "arm B was to be delayed by 5.00%, its receipt says 0.00%" in decision.reason


def test_calibrating_again_pools_what_agrees_and_narrows_the_margin(world):
    world.script.seconds = noise(0.01, seed=1)
    first = calibrate(world.lab(), ask()).calibration
    world.now = "2026-11-25T10:00:00Z"
    world.script.seconds = noise(0.01, seed=5)
    second = calibrate(world.lab(), ask(seed=1)).calibration
    assert second.campaigns[0] == first.campaigns[0]
    assert second.num_blocks == 20
    assert second.half_width_log < first.half_width_log
    assert redraw_calibration(world.store, second, trials=FEW) == second

    world.now = "2026-11-26T10:00:00Z"
    world.script.seconds = noise(0.06, seed=3)
    third = calibrate(world.lab(), ask(seed=2)).calibration
    assert third.num_blocks == 10
    assert len(third.notes) == 2
    assert all("another spread or mean" in note for note in third.notes)
    assert world.lab().plan(options(budget_seconds=3600.0)).noise_log == third.block_sd_log


def test_bias_is_flagged_and_covered_by_the_margin(world):
    """Arm B is 3 % slower although nothing differs: a defect of the instrument."""
    rng = random.Random(4)
    world.script.seconds = lambda request, step, now: (
        BASE_SECONDS * (1.03 if place(request)[-1] == "B" else 1.0) * math.exp(rng.gauss(0, 0.003))
    )
    record = calibrate(world.lab(), ask()).calibration
    assert record.biased
    assert record.bias_interval.low > 0.02
    assert record.margin.log_value >= record.bias_interval.high - 1e-12
    assert "is biased by +3" in notes(world.lab().plan(options(budget_seconds=3600.0)))[0]


def test_drift_over_blocks_is_flagged(world):
    """The machine favours one arm for minutes at a time."""
    rng = random.Random(5)

    def waves(request, step, now):
        block = request.experiment.block if request.experiment else 0
        lean = 0.01 * math.sin(block / 2.5) * (1 if place(request)[-1] == "B" else 0)
        return BASE_SECONDS * math.exp(lean + rng.gauss(0, 0.001))

    world.script.seconds = waves
    record = calibrate(world.lab(), ask()).calibration
    assert record.drifting
    assert record.autocorrelation > 0.5


def test_an_interrupted_calibration_is_resumed_into_the_same_one(world):
    world.script.interrupt = lambda request, step: place(request) == "none/9/A" and step == 6
    world.script.seconds = noise(0.005)
    stopped = calibrate(world.lab(), ask(control_ratio=0.05))
    assert stopped.interrupted
    assert stopped.calibration is None
    world.script.interrupt = lambda request, step: False
    result = resume_calibration(world.lab(), ask(control_ratio=0.05), None)
    assert result.calibration.num_blocks == 10
    assert result.calibration.campaigns == (stopped.campaigns[0].campaign.campaign_id,)
    assert result.calibration.control.found


def test_an_interrupted_control_is_resumed_and_attached(world):
    world.script.interrupt = lambda request, step: place(request) == "planted/2/B" and step == 4
    world.script.seconds = noise(0.005)
    stopped = calibrate(world.lab(), ask(control_ratio=0.05))
    assert stopped.interrupted
    assert stopped.calibration.control is None
    world.script.interrupt = lambda request, step: False
    result = resume_calibration(world.lab(), ask(), None)
    assert result.calibration.calibration_id == stopped.calibration.calibration_id
    assert result.calibration.control.found
    with pytest.raises(UsageError, match="no unfinished calibration"):
        resume_calibration(world.lab(), ask(), None)


def test_too_few_blocks_that_count_are_no_calibration(world):
    def never_steady(request, step, now):
        at = request.experiment
        drifts = at is not None and at.block > 5 and at.arm == "B"
        return BASE_SECONDS * (1.05**step if drifts else 1.0)

    world.script.seconds = never_steady
    with pytest.raises(CampaignError, match=r"5 of 10 A/A blocks .* count and 8 are needed"):
        calibrate(world.lab(), ask())
    assert list(world.store.iter_calibrations()) == []


@pytest.mark.parametrize(
    ("text", "ratio"), [("5%", 0.05), ("5 %", 0.05), ("0.02", 0.02), ("0%", 0)]
)
def test_a_delay_is_read_as_a_share_of_the_step(text, ratio):
    assert parse_control(text) == pytest.approx(ratio)


@pytest.mark.parametrize("text", ["five", "-1%", "500%", ""])
def test_other_delays_are_refused(text):
    with pytest.raises(UsageError, match=r"e\.g\. 5%"):
        parse_control(text)


def test_planted_needs_a_size(world):
    with pytest.raises(UsageError, match="calibrate LANE --control 5%"):
        world.lab().plan(options(features=("planted",)))


@pytest.mark.parametrize(("in_step", "contained"), [(0.01, True), (0.2, False)])
def test_bare_against_observed_steps_is_held_against_what_steps_contain(
    tmp_path, monkeypatch, in_step, contained
):
    """Most of what observing costs lies between steps, where no comparison of timed steps can find it."""
    cost = dict.fromkeys(("spans", "launch_counters", "clock_reads", "readout", "protocol"), 0.001)
    said = {
        "steps": 18,
        **{f"{part}_seconds": seconds for part, seconds in cost.items()},
        "in_step_ratio": in_step,
        "total_ratio": 0.2,
    }
    monkeypatch.setattr("tests.lab.fake.extensions", lambda request: {"io.lanewise.observer": said})
    world = World(store=Store(tmp_path / "store"))
    even = noise(0.001)

    def seconds(request, step, now):
        at = request.experiment
        slower = at is not None and (at.ablation_id, at.arm) == ("observer", "B")
        return (1.01 if slower else 1.0) * even(request, step, now)

    world.script.seconds = seconds
    asked = ask(observer=True, blocks=8, budget_seconds=600.0)
    observer = calibrate(world.lab(), asked).calibration.observer
    assert (observer.in_step_ratio, observer.total_ratio) == (in_step, 0.2)
    assert observer.log_ratio == pytest.approx(math.log(1.01), abs=0.003)
    assert observer.contains_direct is contained
    assert observer.contradicts_direct is not contained
    assert observer_fails(observer) is True, (
        "a hundredth of the step is more than the smallest verdict"
    )
