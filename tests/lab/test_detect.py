"""What a plan says it can detect, and how many blocks an effect takes."""

import math
from dataclasses import replace

import pytest

from lanewise.errors import UsageError
from lanewise.lab import protocol
from lanewise.lab.arms import ArmBuilder
from lanewise.lab.detect import blocks_to_find, parse_effect, planned_mde, registered
from lanewise.lab.margin import Noise
from lanewise.lab.multiplicity import planned_alpha
from lanewise.lab.plan import FeaturePlan
from lanewise.lane.load import load_lane
from lanewise.measure.boundary import plan_boundary, power
from lanewise.receipts.decision import Boundary, Margin


def noise(sd: float = 0.03, margin: float = 0.005) -> Noise:
    return Noise(
        margin=Margin(log_value=margin, source="protocol: 0.5 %"),
        block_sd_log=sd,
        source="assumed",
    )


def arms(*features: str):
    builder = ArmBuilder(
        lane=load_lane("nam56r-tiny"),
        machine_class="cpu-x86_64-2c",
        device_type="cpu",
        design="leave-one-out",
    )
    return [builder.build(feature) for feature in features]


def planned(feature: str, blocks: int, **changes) -> FeaturePlan:
    return FeaturePlan(
        feature=feature,
        blocks=blocks,
        quads=3,
        block_seconds=5.0,
        control=None,
        treated=None,
        **changes,
    )


@pytest.mark.parametrize(
    ("text", "ratio"), [("2%", 0.02), (" 0.5 % ", 0.005), ("±3%", 0.03), ("12.5%", 0.125)]
)
def test_effects_are_percentages(text, ratio):
    assert parse_effect(text) == pytest.approx(math.log1p(ratio))


@pytest.mark.parametrize("text", ["2", "0.02", "0%", "-2%", "two", "", "2 percent", "nan%"])
def test_what_is_no_percentage_is_refused(text):
    with pytest.raises(UsageError, match=r"write a positive percentage: 2% or 0\.5%"):
        parse_effect(text)


def test_blocks_find_the_effect_with_the_power_promised_and_one_fewer_would_not():
    (needed,) = blocks_to_find(math.log1p(0.02), arms("fused_moe"), noise()).values()

    def chance(num_blocks):
        return power(math.log1p(0.02), 0.03, plan_boundary(num_blocks), margin_log=0.005)

    assert chance(needed) >= 0.8 > chance(needed - 1)
    assert 18 <= needed <= 30


def test_a_tax_is_held_against_its_budget_so_the_margin_costs_it_no_blocks():
    found = blocks_to_find(
        math.log1p(0.02), arms("fused_moe", "extra_aux_losses"), noise(margin=0.015)
    )
    assert found["extra_aux_losses"] < found["fused_moe"]


def test_large_effects_still_get_the_blocks_of_a_verdict():
    assert blocks_to_find(0.5, arms("fused_moe"), noise(0.001)) == {
        "fused_moe": protocol.VERDICT_BLOCKS
    }


def test_an_effect_within_the_margin_is_refused_with_both_numbers():
    with pytest.raises(UsageError) as error:
        blocks_to_find(math.log1p(0.004), arms("fused_moe"), noise())
    assert "--effect 0.40% lies within the margin of 0.50% (protocol: 0.5 %)" in str(error.value)
    assert "larger --effect" in str(error.value)


def test_an_effect_beyond_the_cap_is_refused_with_what_the_cap_finds():
    with pytest.raises(UsageError) as error:
        blocks_to_find(math.log1p(0.01), arms("fused_moe"), noise(0.10))
    said = str(error.value)
    assert "takes more than 48 blocks at block noise 10.52% (assumed)" in said
    assert "48 find 4." in said
    assert "quieter machine" in said


def test_looks_are_written_down_with_what_they_detect():
    features = [
        planned("fused_moe", 12),
        planned("extra_aux_losses", 12),
        planned("none", 12),
        planned("fused_mamba", 0, skipped_reason="no compiler"),
    ]
    asked = arms("fused_moe", "extra_aux_losses", "none", "fused_mamba")
    moe, tax, aa, skipped = registered(features, asked, noise(margin=0.02))
    assert moe.boundary == tax.boundary == plan_boundary(12)
    assert power(moe.detectable_log, 0.03, moe.boundary, margin_log=0.02) == pytest.approx(
        0.8, abs=0.01
    )
    assert tax.detectable_log < moe.detectable_log, "a tax knows no margin"
    assert aa.boundary == Boundary(looks=(12,), alpha=0.05, nominal_alpha=0.05)
    assert (skipped.boundary, skipped.detectable_log) == (None, None)
    assert planned_mde(0.03, [moe, tax]) == moe.detectable_log


def test_few_blocks_are_looked_at_once_as_ever():
    (moe,) = registered([planned("fused_moe", 4)], arms("fused_moe"), noise())
    assert moe.boundary == Boundary(looks=(4,), alpha=0.05, nominal_alpha=0.05)


def test_a_family_shares_five_percent_and_an_a_a_claims_nothing():
    asked = ("fused_moe", "mtp", "none", "full_stack", "fused_moe.add-one")
    assert planned_alpha("each", asked) == 0.05
    assert planned_alpha("family", asked) == 0.05 / 4
    assert planned_alpha("family", ("none",)) == 0.05


def test_a_stricter_level_takes_more_blocks_and_says_what_it_finds():
    effect, alpha = math.log1p(0.03), 0.05 / 8
    (each,) = blocks_to_find(effect, arms("fused_moe"), noise()).values()
    (family,) = blocks_to_find(effect, arms("fused_moe"), noise(), alpha=alpha).values()
    assert each < family <= 2 * each
    (moe,) = registered([planned("fused_moe", family)], arms("fused_moe"), noise(), alpha=alpha)
    assert moe.boundary == plan_boundary(family, alpha=alpha)
    assert moe.detectable_log <= effect * 1.001
    (once,) = registered(
        [planned("fused_moe", 6)], arms("fused_moe"), noise(), looks_once={"fused_moe"}, alpha=alpha
    )
    assert once.boundary == Boundary(looks=(6,), alpha=alpha, nominal_alpha=alpha)
    (aa,) = registered([planned("none", 8)], arms("none"), noise(), alpha=alpha)
    assert aa.boundary.alpha == 0.05


@pytest.mark.parametrize(("design", "ratio"), [("lockstep", 10.0), ("sequential", 1.0)])
def test_noise_follows_quads_by_the_rule_that_plans_spend_by(design, ratio):
    known = replace(noise(), quads_per_block=16.0, num_blocks=8)
    fewer = known.at(4, design)
    share = (1 + ratio**2 / 4) / (1 + ratio**2 / 16)
    assert fewer.block_sd_log == pytest.approx(0.03 * math.sqrt(share))
    assert fewer.margin == known.margin
    assert known.at(16, design) is known.at(64, design) is known, "more quads promise nothing"
    assert noise().at(3, design) == noise(), "an assumption is of no number of quads"
