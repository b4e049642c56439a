import pytest

from lanewise.errors import NotBuiltError
from lanewise.lane.built import not_built, require_built
from lanewise.lane.load import load_lane


def test_the_tiny_lane_is_built() -> None:
    assert not_built(load_lane("nam56r-tiny")) == ()
    require_built(load_lane("nam56r-tiny"))


def test_every_variant_of_the_router_is_built() -> None:
    overrides = (
        "score_function=softmax",
        "num_expert_groups=2",
        "real_slot_ratio=0.5",
        "shared_expert_gate=true",
        "routing_mode=replayed",
        "bias_update=ema",
    )
    lane = load_lane("nam56r-tiny", [f"model.moe.{setting}" for setting in overrides])
    assert not_built(lane) == ()


def test_a_dense_lane_is_built() -> None:
    assert not_built(load_lane("dense-tiny")) == ()
    assert not_built(load_lane("nam56r-tiny", ["model.attention.form=absorbed"])) == ()


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (["topology.dp_shard=2"], "topology dp2 (2 processes)"),
    ],
)
def test_what_is_not_built_is_refused_by_name(overrides: list[str], named: str) -> None:
    lane = load_lane("nam56r-tiny", overrides)
    (found,) = not_built(lane)
    assert named in found
    with pytest.raises(NotBuiltError) as caught:
        require_built(lane)
    assert named in str(caught.value)
    assert "--set" in str(caught.value)


def test_everything_missing_is_named_at_once() -> None:
    assert len(not_built(load_lane("nam56r"))) == 1


def test_a_sparse_table_without_attention_layers_does_not_matter() -> None:
    lane = load_lane("nam56r-tiny", ["model.pattern=EM", "model.attention=none"])
    assert not_built(lane) == ()
