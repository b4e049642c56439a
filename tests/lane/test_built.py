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


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (
            [
                "model.pattern=AEG",
                "model.grouped_query={num_heads=4, num_kv_heads=2, head_dim=32}",
            ],
            "pattern letter G",
        ),
        (["model.pattern=AED", "model.mlp={mlp_hidden_size=256}"], "pattern letter D"),
        (
            [
                "model.attention.sparse={top_k=8, index_num_heads=2, index_head_dim=8, "
                "layer_ranks=[1], full_ranks=[0]}"
            ],
            "model.attention.sparse",
        ),
        (["model.mamba.mimo_rank=4"], "model.mamba.mimo_rank = 4"),
        (["model.mtp={depth=1, mlp_hidden_size=64}"], "model.mtp.depth = 1"),
        (
            ["model.ngram_embedding={orders=[2], num_heads=1, num_rows=10, head_dim=4}"],
            "model.ngram_embedding",
        ),
        (["precision.compute=bf16"], "precision.compute = bf16 on a CPU"),
        (["precision.residual=bf16"], "precision.residual = bf16 on a CPU"),
        (["optimizer.name=muon"], "optimizer.name = muon"),
        (["data.isolate_documents=true"], "data.isolate_documents = true"),
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
    assert len(not_built(load_lane("nam56r"))) == 7


def test_bf16_is_a_matter_of_the_cpu_only() -> None:
    lane = load_lane("nam56r-tiny", ["precision.compute=bf16"])
    assert not_built(lane, device_type="cuda") == ()


def test_a_sparse_table_without_attention_layers_does_not_matter() -> None:
    lane = load_lane("nam56r-tiny", ["model.pattern=EM", "model.attention=none"])
    assert not_built(lane) == ()
