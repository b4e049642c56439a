import math

import pytest

from lanewise.lab.arms import ArmBuilder
from lanewise.lab.stance import advice, break_even_steps
from lanewise.lane.load import load_lane
from lanewise.measure.stats import estimate_from_contrasts
from lanewise.receipts.decision import Margin, MetricDelta, Verdict

MARGIN = Margin(log_value=0.005, source="test")
NO_COMPILE = MetricDelta(control=0.0, treated=0.0, delta=0.0)


def arms(feature: str):
    builder = ArmBuilder(
        lane=load_lane("nam56r-tiny", ["model.mtp={depth=1, mlp_hidden_size=64}"]),
        machine_class="cpu-x86_64-2c",
        device_type="cpu",
        design="leave-one-out",
    )
    return builder.build(feature)


def advise(feature, verdict, *, contrasts=(-0.1, -0.11), compiling=NO_COMPILE):
    return advice(
        arms(feature),
        verdict,
        estimate=estimate_from_contrasts(contrasts),
        margin=MARGIN,
        compile_seconds=compiling,
        control_step_seconds=0.2,
        treated_step_seconds=0.15,
    )


@pytest.mark.parametrize(
    ("feature", "verdict", "words"),
    [
        ("fused_mamba", Verdict.FASTER, "default on"),
        ("fused_mamba", Verdict.SLOWER, "turn off on this lane"),
        ("fused_mamba", Verdict.EQUIVALENT, "no effect here (default on)"),
        ("regional_compile", Verdict.FASTER, "worth turning on here"),
        ("regional_compile", Verdict.SLOWER, "stays off"),
        ("extra_aux_losses", Verdict.OVER_BUDGET, "stays opt-in (budget 1 %)"),
        ("extra_aux_losses", Verdict.WITHIN_BUDGET, "affordable (budget 1 %)"),
        ("mtp", Verdict.OVER_BUDGET, "must earn it in loss, or turn off (budget 20 %)"),
        ("mtp", Verdict.WITHIN_BUDGET, "affordable (budget 20 %)"),
    ],
)
def test_a_verdict_becomes_advice(feature, verdict, words):
    assert advise(feature, verdict) == words


def test_compile_time_is_paid_back_by_saved_steps():
    compiling = MetricDelta(control=0.0, treated=32.0, delta=32.0)
    assert break_even_steps(compiling, 0.2, 0.15) == math.ceil(32.0 / 0.05)
    assert advise("regional_compile", Verdict.FASTER, compiling=compiling) == (
        "pays back after 640 steps"
    )
    assert break_even_steps(compiling, 0.15, 0.2) is None
    assert break_even_steps(NO_COMPILE, 0.2, 0.15) is None


def test_an_open_question_says_how_many_blocks_would_tell():
    words = advise("fused_moe", Verdict.INCONCLUSIVE, contrasts=(-0.02, 0.01, -0.02, 0.0))
    count = int(words.split()[0])
    assert words == f"{count} more blocks would tell"
    assert 10 < count < 60
    hopeless = advise("fused_moe", Verdict.INCONCLUSIVE, contrasts=(-0.3, 0.3, 0.25, -0.25))
    assert hopeless == "over 200 more blocks: use a quieter machine"
    tax = advise("extra_aux_losses", Verdict.INCONCLUSIVE, contrasts=(0.03, 0.0, 0.02))
    assert tax.endswith("would tell (budget 1 %)")


def test_one_block_has_no_spread():
    assert "larger --budget" in advise("fused_moe", Verdict.INCONCLUSIVE, contrasts=(-0.1,))
