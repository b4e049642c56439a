"""What every attention layer does about the sparse index, and what that does to parameters and FLOPs."""

import pytest

from lanewise.lane.features import BY_KEY
from lanewise.lane.flops import components, lane_flops
from lanewise.lane.index_layers import (
    IndexLayers,
    attends_densely,
    index_layers,
    index_roles,
    is_dense_warmup,
)
from lanewise.lane.load import load_lane
from lanewise.lane.params import attention_params
from tests.models.micro import micro_lane, sparse_lane

D, F, S, P = "dense", "full", "shared", "promoted"


@pytest.mark.parametrize(
    ("layer_ranks", "full_ranks", "roles"),
    [
        ((1, 2, 3), (0, 2), (D, F, S, F)),
        ((0, 1, 2, 3), (0,), (F, S, S, S)),
        ((0, 1, 2, 3), (0, 1, 2, 3), (F, F, F, F)),
        ((0, 1, 3), (2,), (P, S, D, F)),  # the promoted layer serves the one after it
        ((2, 3), (), (D, D, P, S)),
        ((3,), (), (D, D, D, P)),
    ],
)
def test_roles(
    layer_ranks: tuple[int, ...], full_ranks: tuple[int, ...], roles: tuple[str, ...]
) -> None:
    model = sparse_lane(layer_ranks=layer_ranks, full_ranks=full_ranks).model
    assert index_roles(model) == roles


def test_only_the_first_sparse_layer_can_be_promoted_and_it_is_listed() -> None:
    model = sparse_lane(layer_ranks=(1, 2, 3), full_ranks=(2,)).model
    assert index_layers(model) == IndexLayers(computed=(1, 3), reused=(2,), promoted=(1,))


def test_the_layout_of_nam56r() -> None:
    found = index_layers(load_lane("nam56r").model)
    assert found == IndexLayers(computed=(1, 5, 9), reused=(2, 3, 6, 7, 10, 11), promoted=())


def test_a_lane_without_sparse_layers_has_no_index() -> None:
    assert index_layers(micro_lane().model) is None
    assert index_roles(micro_lane().model) == (D,)
    without_letter = micro_lane(
        model__pattern="EM", model__attention__sparse=sparse_lane().model.attention.sparse
    )
    assert index_roles(without_letter.model) == ()
    assert index_layers(without_letter.model) is None
    assert not is_dense_warmup(without_letter.model)


def test_a_lane_without_full_ranks_is_valid_and_counted_with_the_promoted_indexer() -> None:
    promoted = load_lane("nam56r", ["model.attention.sparse.full_ranks=[3, 6]"])
    assert lane_flops(promoted) == lane_flops(load_lane("nam56r"))
    fewer = load_lane("nam56r", ["model.attention.sparse.full_ranks=[]"])
    counts = {c.component: c.count for c in lane_flops(fewer).components}
    assert counts["attention_sparse_own_index"] == 1
    assert counts["attention_sparse_reused_index"] == 8


def test_all_layers_sparse_leaves_nothing_to_features_of_dense_attention() -> None:
    everywhere = {"layer_ranks": (0, 1, 2, 3)}
    model = sparse_lane(**everywhere).model
    assert not attends_densely(model)
    assert BY_KEY["fused_mla_ingress"].why_not(model) == (
        "it touches dense attention and every A layer of the lane is sparse"
    )
    assert BY_KEY["fused_mla_ingress"].applies_to(sparse_lane().model)
    assert BY_KEY["fused_mla_ingress"].applies_to(
        sparse_lane(stage="dense_warmup", **everywhere).model
    )


def test_the_dense_warmup_attends_densely_and_only_indexers_go_backward() -> None:
    lane = sparse_lane(stage="dense_warmup")
    sparse, dense = lane.model.attention.sparse, sparse_lane(layer_ranks=(0,)).model.attention
    parts = {c.name: c for c in components(lane)}
    own, reused = parts["attention_sparse_own_index"], parts["attention_sparse_reused_index"]
    # Core of all 2 heads × (8 + 3) dims over (10 + 1)/2 keys, forward only.
    assert reused.training("core") == parts["attention_dense"].training("core") == 2 * 2 * 11 * 5.5
    block = attention_params(dense, 12, indexer=sparse)
    indexer_forward = 2 * block.detached_matmul
    trunk_forward = 2 * (block.matmul - block.detached_matmul)
    assert own.training("linear") == trunk_forward + 2 * indexer_forward
    assert own.training("core") == reused.training("core") + 3 * 2 * 3 * (6 + 1) * 5.5
    assert parts["lm_head"].training("linear") == 2 * 257 * 12
