"""What is executed beside what is asked for, against hand counts."""

import pytest

from lanewise.lane.flops import components, lane_flops
from lanewise.lane.hardware_flops import FAMILY_OF_COMPONENT, conventions
from lanewise.lane.load import load_lane, preset_names
from lanewise.lane.schema import RecomputeSpec


def test_a_lane_without_anything_special_executes_its_numerator() -> None:
    lane = load_lane("nam56r-tiny")
    found = conventions(lane, {})
    assert found.changes == ()
    assert found.hardware == found.lane_numerator == lane_flops(lane).training_flops_per_token
    assert found.six_n_active == 6 * lane_flops(lane).params_active


def test_full_recomputation_repeats_a_forward_and_selective_none() -> None:
    for family, component in (("moe", "moe"), ("mamba", "mamba"), ("recurrent", "recurrent")):
        lane = load_lane("nam56r-tiny", [f"recompute.{family}=full"])
        (row,) = (r for r in lane_flops(lane).components if r.component == component)
        found = conventions(lane, {})
        assert found.hardware - found.lane_numerator == row.forward_flops_per_token
        lane = load_lane("nam56r-tiny", [f"recompute.{family}=selective"])
        assert conventions(lane, {}).hardware == found.lane_numerator


def test_the_latent_core_of_a_dense_layer_is_wider() -> None:
    lane = load_lane("nam56r-tiny", ["model.attention.form=absorbed"])
    # Three A layers, H 4, S 64: 2·C + D_r = 2·32 + 16 instead of D_n + D_r + D_v = 48.
    core_forward = 3 * 2 * 4 * 65 / 2
    found = conventions(lane, {})
    assert found.hardware - found.lane_numerator == pytest.approx(3 * core_forward * (80 - 48))
    repeated = load_lane(
        "nam56r-tiny", ["model.attention.form=absorbed", "recompute.attention=full"]
    )
    (row,) = (r for r in lane_flops(lane).components if r.component == "attention_dense")
    assert conventions(repeated, {}).hardware - found.hardware == pytest.approx(
        row.forward_flops_per_token + core_forward * (80 - 48)
    )


def test_nam56r_sparse_layers_run_in_the_latent_space_and_score_once() -> None:
    lane = load_lane("nam56r")
    by_reason = {
        (change.reason, change.component): change.flops_per_token
        for change in conventions(lane, {}).changes
    }
    # Latents 64: 2·64 + 64 = 192 = 64 + 64 + 64, so the absorbed core costs the same.
    assert not any(reason == "absorbed core" for reason, _ in by_reason)
    per_key = 2 * 32 * 65
    selected = 256 - 256 * 255 / (2 * 4096)
    assert by_reason == {
        ("scores of unselected keys have no backward", "attention_sparse_own_index"): pytest.approx(
            3 * per_key * (3 * selected - 4097)
        )
    }


def test_an_untrained_indexer_changes_nothing() -> None:
    lane = load_lane("nam56r", ["model.attention.sparse.indexer_loss_coefficient=0.0"])
    assert conventions(lane, {}).changes == ()


def test_dense_warmup_is_in_the_numerator_itself() -> None:
    found = conventions(load_lane("nam56r", ["model.attention.sparse.stage=dense_warmup"]), {})
    assert found.changes == ()
    assert (
        found.hardware < 0.5 * conventions(load_lane("nam56r"), {}).hardware
    )  # one forward of three


def test_switching_mtp_off_takes_its_block_and_head_away() -> None:
    lane = load_lane("nam56r-4096")
    on, off = conventions(lane, {"mtp": True}), conventions(lane, {"mtp": False})
    rows = {r.component: r.training_flops_per_token for r in lane_flops(lane).components}
    assert on.hardware - off.hardware == pytest.approx(rows["mtp_block"] + rows["mtp_head"])
    assert on.lane_numerator == off.lane_numerator


def test_an_absorbed_mtp_block_executes_a_wider_core() -> None:
    lane = load_lane("nam56r", ["model.attention.sparse=none", "model.attention.form=absorbed"])
    changes = {change.component: change for change in conventions(lane, {}).changes}
    per_layer = 3 * 2 * 28 * (4096 + 1) / 2 * ((2 * 64 + 64) - (64 + 64 + 64))
    assert per_layer == 0  # these sizes make both forms as wide
    wide = load_lane(
        "nam56r",
        [
            "model.attention.sparse=none",
            "model.attention.form=absorbed",
            "model.attention.v_head_dim=32",
        ],
    )
    assert changes == {}
    found = {change.component: change.flops_per_token for change in conventions(wide, {}).changes}
    per_layer = 3 * 2 * 28 * (4096 + 1) / 2 * 32
    assert found["mtp_block"] == pytest.approx(per_layer)
    assert found["attention_dense"] == pytest.approx(13 * per_layer)


@pytest.mark.parametrize("name", preset_names())
def test_every_family_that_can_be_recomputed_has_its_component(name: str) -> None:
    assert set(FAMILY_OF_COMPONENT.values()) == set(RecomputeSpec.model_fields)
    known = set(FAMILY_OF_COMPONENT) | {
        "embedding",
        "ngram_embedding",
        "final_norm",
        "lm_head",
        "mtp_head",
    }
    assert {c.name for c in components(load_lane(name))} <= known
