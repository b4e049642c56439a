import math

import pytest

from lanewise.lab.arms import ArmBuilder
from lanewise.lab.stance import advice, blocks_for_equivalence, break_even_steps
from lanewise.lane.load import load_lane
from lanewise.measure.boundary import plan_boundary, power
from lanewise.measure.looks import single_look
from lanewise.measure.stats import estimate_from_contrasts, mde
from lanewise.receipts.decision import MetricDelta, Verdict

MARGIN_LOG = 0.005
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
    asked = arms(feature)
    return advice(
        asked,
        verdict,
        estimate=estimate_from_contrasts(contrasts),
        question=single_look(
            max(2, len(contrasts)), margin_log=MARGIN_LOG, tax_budget_ratio=asked.tax_budget_ratio
        ),
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
    contrasts = (-0.02, 0.01, -0.02, 0.0)
    words = advise("fused_moe", Verdict.INCONCLUSIVE, contrasts=contrasts)
    count = int(words.split()[0])
    assert words == f"{count} blocks would tell"
    sd = estimate_from_contrasts(contrasts).block_sd_log

    def chance(num_blocks):
        return power(0.0075, sd, plan_boundary(num_blocks), margin_log=MARGIN_LOG)

    assert chance(count) >= 0.8 > chance(count - 1)


def test_an_effect_within_the_margin_is_settled_by_showing_that_it_is():
    # 0.1 % with SD 0.2 %: no difference will ever be called, that there is none can be shown.
    words = advise("fused_moe", Verdict.INCONCLUSIVE, contrasts=(0.003, -0.001, 0.001))
    count = int(words.split()[0])
    sd = estimate_from_contrasts((0.003, -0.001, 0.001)).block_sd_log
    level = plan_boundary(count).nominal_alpha
    assert mde(sd, count, alpha=2 * level) <= MARGIN_LOG - 0.001
    level = plan_boundary(count - 1).nominal_alpha
    assert mde(sd, count - 1, alpha=2 * level) > MARGIN_LOG - 0.001


def test_blocks_for_equivalence_by_the_normal_formula():
    # z₀.₉₇₈₃ + z₀.₈ = 2.021 + 0.842; (2.863 · 0.02 / 0.01)² = 32.8 for many blocks, a little more by Student's t
    assert blocks_for_equivalence(0.02, 0.01, alpha=0.05) in (34, 35, 36)
    assert blocks_for_equivalence(0.02, 0.0, alpha=0.05) is None


def test_noise_too_large_for_any_campaign_asks_for_a_quieter_machine():
    hopeless = advise("fused_moe", Verdict.INCONCLUSIVE, contrasts=(-0.3, 0.3, 0.25, -0.25))
    assert hopeless == "over 96 blocks: use a quieter machine"
    tax = advise("extra_aux_losses", Verdict.INCONCLUSIVE, contrasts=(0.03, 0.0, 0.02))
    assert tax.endswith("would tell (budget 1 %)")


def test_one_block_has_no_spread():
    assert "larger --budget" in advise("fused_moe", Verdict.INCONCLUSIVE, contrasts=(-0.1,))
