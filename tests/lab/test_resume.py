"""`--resume`: the command that started a campaign continues it, flags agree with its plan, attempts are bounded."""

import math
from dataclasses import replace

import pytest

from lanewise.errors import UsageError
from lanewise.lab.arms import NO_FEATURE, OBSERVER, PLANTED
from lanewise.lab.calibrate import CalibrateOptions, calibrate, resume_calibration
from lanewise.lab.calibration import Trials
from lanewise.lab.campaign import MAX_ATTEMPTS, CampaignFolder, stored_plans
from lanewise.lab.events import AttemptsUsedUp
from lanewise.lab.resume import Given, require_agreement, verbs_of
from tests.lab.fake import MACHINE, options, place
from tests.lab.test_session import with_effect


def folder_of(world, result):
    return CampaignFolder.find(world.store.root, result.campaign.campaign_id)


def cut_off_at(world, where):
    world.script.interrupt = lambda request, step: place(request) == where and step == 5


def go_on(world):
    world.script.interrupt = lambda request, step: False


def resumed(world, campaign_id=None, **changes):
    return world.lab().resume(options().lane, MACHINE, campaign_id, **changes)


def calibration(**changes):
    wanted = {"blocks": 8, "trials": Trials(single=5, looks=1), **changes}
    return CalibrateOptions(campaign=options(budget_seconds=300.0), **wanted)


@pytest.fixture
def three_kinds(world):
    """An unfinished campaign, then a screen, then a calibration: the newest is never the oldest's kind."""
    times = iter(f"2026-11-23T1{hour}:00:00Z" for hour in range(3))
    ids = {}
    world.script.seconds = with_effect("fused_moe", 0.8, noise_sd=0.01)
    for verb, where in (
        ("ablate", "fused_moe/2/A"),
        ("screen", "fused_moe/1/B"),
        ("calibrate", "none/2/A"),
    ):
        cut_off_at(world, where)
        created_at = next(times)
        lab = replace(world.lab(), now=lambda created_at=created_at: created_at)
        if verb == "calibrate":
            (result,) = calibrate(lab, calibration()).campaigns
        elif verb == "screen":
            result = lab.screen(options(), "toggle")
        else:
            result = lab.start(options(blocks=3))
        assert result.interrupted
        assert result.campaign.started_by == verb
        ids[verb] = result.campaign.campaign_id
    go_on(world)
    return ids


def test_each_command_picks_the_newest_of_its_own(world, three_kinds):
    assert resumed(world).campaign.campaign_id == three_kinds["ablate"]
    assert resumed(world, verb="screen").campaign.campaign_id == three_kinds["screen"]
    (noise,) = resume_calibration(world.lab(), calibration(), None).campaigns
    assert noise.campaign.campaign_id == three_kinds["calibrate"]


@pytest.mark.parametrize("verb", ["ablate", "screen"])
def test_a_campaign_of_another_command_is_refused_with_that_command(world, three_kinds, verb):
    for other, campaign_id in three_kinds.items():
        if other != verb:
            with pytest.raises(
                UsageError, match=f"`lanewise {other} nam56r-tiny --resume {campaign_id}`"
            ):
                resumed(world, campaign_id, verb=verb)
    with pytest.raises(UsageError, match="`lanewise screen nam56r-tiny --resume"):
        resume_calibration(world.lab(), calibration(), three_kinds["screen"])


def test_where_there_is_none_the_others_are_named(world, three_kinds):
    resumed(world)
    with pytest.raises(UsageError) as caught:
        resumed(world)
    text = str(caught.value)
    assert "no unfinished campaign of lane 'nam56r-tiny'" in text
    calibrating = f"`lanewise calibrate nam56r-tiny --resume {three_kinds['calibrate']}`"
    assert f"unfinished there is a calibration: {calibrating}" in text
    assert "\n" not in text


def test_plans_that_do_not_say_are_told_by_what_they_measure(world):
    result = world.lab().start(options(blocks=2))
    plan = folder_of(world, result).plan().model_copy(update={"started_by": None})
    (feature,) = plan.features

    def of(key):
        named = feature.model_copy(update={"feature": key})
        return verbs_of(plan.model_copy(update={"features": (named,)}))

    assert of("fused_moe") == ("ablate",)
    assert of(PLANTED) == of(OBSERVER) == ("calibrate",)
    assert of(NO_FEATURE) == ("calibrate", "ablate"), "either may have made an A/A"
    screen = plan.model_copy(update={"screen_design": "toggle"})
    assert verbs_of(screen) == ("screen",)


FULL = {
    "features": ("fused_moe", "fused_mamba"),
    "budget_seconds": 300.0,
    "blocks": 4,
    "claims": "family",
    "steps": 26,
    "seed": 7,
    "pin": False,
}
EVERY_FLAG = frozenset(
    {
        *("--feature", "--budget", "--design", "--block-design", "--blocks", "--effect", "--claims", "--steps"),
        *("--target-loss", "--seed", "--threads", "--data", "--device", "--pin", "--cache", "--set"),
    }
)  # fmt: skip


@pytest.fixture
def planned(world):
    return world.lab().plan(options(**FULL))


def test_flags_that_agree_are_fine(planned):
    require_agreement(planned, Given(options=options(**FULL), flags=EVERY_FLAG))


@pytest.mark.parametrize(
    ("flag", "change", "said", "has"),
    [
        ("--feature", {"features": ("fused_moe",)}, "fused_moe,", "fused_mamba, fused_moe"),
        ("--budget", {"budget_seconds": 600.0}, "600 s", "300 s"),
        ("--design", {"design": "both"}, "both", "leave-one-out"),
        ("--block-design", {"block_design": "sequential"}, "sequential", "lockstep"),
        ("--blocks", {"blocks": 9}, "9", "4"),
        ("--effect", {"effect_log": math.log1p(0.02)}, "2 %", "none"),
        ("--claims", {"claims": "each"}, "each", "family"),
        ("--steps", {"steps": 50}, "50", "26"),
        ("--target-loss", {"target_loss": 3.5}, "3.5", "none"),
        ("--seed", {"seed": 8}, "8", "7"),
        ("--threads", {"num_threads": 2}, "2", "1"),
        ("--data", {"data_path": "a.txt"}, "a.txt", "none"),
        ("--device", {"device_type": "cuda"}, "cuda", "cpu"),
        ("--pin", {"pin": True}, "pinned processes", "processes that are not pinned"),
        ("--cache", {"cache": "cold"}, "cold", "warm"),
    ],
)
def test_a_flag_that_contradicts_the_plan_is_refused_on_one_line(planned, flag, change, said, has):
    other = options(**{**FULL, **change})
    with pytest.raises(UsageError) as caught:
        require_agreement(planned, Given(options=other, flags=frozenset({flag})))
    text = str(caught.value)
    assert text.startswith(f"{flag} was given beside --resume and says {said}")
    assert f"was planned with {has}; leave it out" in text
    assert "\n" not in text
    require_agreement(planned, Given(options=other, flags=frozenset()))


def test_another_setting_of_the_lane_is_named(planned):
    lane = options().lane
    batch = lane.batch.model_copy(update={"sequence_length": 32})
    other = options(**FULL, lane=lane.model_copy(update={"batch": batch}))
    with pytest.raises(UsageError, match=r"--set .*batch\.sequence_length = 32.* planned with 64"):
        require_agreement(planned, Given(options=other, flags=frozenset({"--set"})))


def test_flags_of_a_calibration_belong_to_its_part(world):
    cut_off_at(world, "none/2/A")
    calibrate(world.lab(), calibration())
    go_on(world)
    other = replace(calibration(), blocks=12)
    with pytest.raises(UsageError, match=r"--blocks .* says 12, .* planned with 8"):
        resume_calibration(world.lab(), other, None, flags=frozenset({"--blocks"}))
    small = replace(calibration(), campaign=options(budget_seconds=99.0))
    with pytest.raises(UsageError, match=r"--budget .* says 99 s, .* planned with 300 s"):
        resume_calibration(world.lab(), small, None, flags=frozenset({"--budget"}))


def test_a_resumed_control_keeps_its_delay_and_runs_the_observer_after_it(world):
    world.script.seconds = with_effect("nothing", 1.0, noise_sd=0.005)
    asked = calibration(control_ratio=0.05, observer=True)
    cut_off_at(world, "planted/2/A")
    assert calibrate(world.lab(), asked).interrupted
    go_on(world)
    flags = frozenset({"--control", "--observer", "--blocks", "--budget"})
    with pytest.raises(UsageError, match=r"--control .* says 7 %, .* planned with 5 %"):
        resume_calibration(world.lab(), replace(asked, control_ratio=0.07), None, flags=flags)
    result = resume_calibration(world.lab(), asked, None, flags=flags)
    assert [r.decisions[0].feature for r in result.campaigns] == [PLANTED, OBSERVER]
    assert result.calibration.control.found


def crash(world, where):
    world.script.exit_code = lambda request, step: (
        1 if place(request).startswith(where) and step == 3 else None
    )


def attempts(folder, block=2):
    return [e.attempt for e in folder.journal.read() if e.block == block]


def test_a_block_that_crashed_as_often_as_it_may_is_not_tried_by_a_resume(world):
    crash(world, "fused_moe/2/")
    first = world.lab().start(options(blocks=3))
    folder = folder_of(world, first)
    assert len(folder.lost()) == MAX_ATTEMPTS
    assert first.campaign.used_up_blocks == ("fused_moe block 2",)
    world.turns.clear()
    world.script.exit_code = lambda request, step: None
    for _ in range(3):
        assert resumed(world).campaign.status == "INCOMPLETE"
    assert world.turns == []
    assert attempts(folder) == [1, 2]
    assert world.seen(AttemptsUsedUp)[-1].places == (("fused_moe", 2),)


def test_new_attempts_are_given_on_request_and_counted_on(world):
    crash(world, "fused_moe/2/")
    folder = folder_of(world, world.lab().start(options(blocks=3)))
    assert resumed(world, retry_crashed=True).campaign.status == "INCOMPLETE"
    assert attempts(folder) == [1, 2, 3, 4], "two more, as a new block has"
    world.script.exit_code = lambda request, step: None
    again = resumed(world, retry_crashed=True)
    assert attempts(folder) == [1, 2, 3, 4, 5]
    assert again.campaign.status == "COMPLETE"
    assert again.campaign.used_up_blocks == ()


def test_a_feature_that_only_ever_failed_stays_given_up_until_asked_for(world):
    crash(world, "fused_moe/")
    first = world.lab().start(options(blocks=3))
    folder = folder_of(world, first)
    assert len(first.campaign.used_up_blocks) == 3
    failed = len(folder.lost())
    resumed(world)
    assert len(folder.lost()) == failed
    resumed(world, retry_crashed=True)
    assert len(folder.lost()) == 2 * failed
    world.script.exit_code = lambda request, step: None
    assert resumed(world, retry_crashed=True).campaign.status == "COMPLETE"


def test_a_first_crash_before_an_interruption_leaves_the_second_attempt(world):
    crash(world, "fused_moe/2/")

    def lost_one(request, step):
        plans = stored_plans(world.store.root)
        return bool(plans and CampaignFolder.find(world.store.root, plans[0].campaign_id).lost())

    world.script.interrupt = lost_one
    first = world.lab().start(options(blocks=3))
    assert first.interrupted
    assert attempts(folder_of(world, first)) == [1]
    go_on(world)
    resumed(world)
    assert attempts(folder_of(world, first)) == [1, 2]
