"""`nam56r` is exactly what docs/NAM56R.md says; other public variants are bench shapes called `anchor_*`."""

from collections import Counter

import pytest

from lanewise.lane.flops import lane_flops
from lanewise.lane.load import load_lane, preset_names
from lanewise.lane.pattern import layer_letters


def test_every_stated_size() -> None:
    model = load_lane("nam56r").model
    letters = layer_letters(model)
    assert (model.hidden_size, model.num_layers, model.vocab_size) == (3584, 52, 65_536)
    assert "".join(letters[:12]) == "AEMEAEMEAEMR"
    assert Counter(letters) == {"A": 13, "E": 22, "M": 13, "R": 4}
    mla = model.attention
    assert mla is not None
    assert mla.num_heads == 28
    assert (mla.q_lora_rank, mla.kv_lora_rank) == (64, 64)
    assert (mla.qk_nope_head_dim, mla.qk_rope_head_dim, mla.v_head_dim) == (64, 64, 64)
    assert mla.sparse is not None
    assert mla.sparse.layer_ranks == (1, 2, 3, 5, 6, 7, 9, 10, 11)
    assert mla.sparse.full_ranks == (0, 3, 6)
    assert (mla.sparse.top_k, mla.sparse.index_num_heads, mla.sparse.index_head_dim) == (
        256,
        32,
        64,
    )
    mamba = model.mamba
    assert mamba is not None
    assert (mamba.version, mamba.num_heads, mamba.head_dim) == ("mamba3", 112, 64)
    assert (mamba.state_size, mamba.num_groups, mamba.mimo_rank) == (128, 8, 4)
    moe = model.moe
    assert moe is not None
    assert (moe.num_experts, moe.expert_hidden_size, moe.top_k) == (16, 896, 4)
    assert (moe.activation, moe.shared_expert_hidden_size) == ("gelu", 1024)
    recurrent = model.recurrent
    assert recurrent is not None
    assert (recurrent.key_dim, recurrent.value_dim, recurrent.num_heads) == (64, 16, 44)
    assert recurrent.conv_kernel_size == 4
    mtp = model.mtp
    assert mtp is not None
    assert (mtp.depth, mtp.mlp_hidden_size, mtp.activation) == (1, 18_944, "gelu")
    ngram = model.ngram_embedding
    assert ngram is not None
    assert (ngram.orders, ngram.num_heads, ngram.num_rows, ngram.head_dim) == (
        (2, 3),
        8,
        500_000,
        16,
    )


def test_totals_within_half_a_percent_and_the_items_add_up() -> None:
    flops = lane_flops(load_lane("nam56r"))
    assert flops.params_total == pytest.approx(4.73e9, rel=0.005)
    assert flops.params_active == pytest.approx(3.03e9, rel=0.005)
    assert sum(row.params for row in flops.components) == flops.params_total
    # `active` counts embedding, table and head whole.
    by_name = {row.component: row for row in flops.components}
    for name in ("embedding", "ngram_embedding", "lm_head"):
        assert by_name[name].active_params == by_name[name].params


@pytest.mark.parametrize("name", [n for n in preset_names() if n.startswith("nam56r")])
def test_every_lane_of_the_family_has_its_pattern(name: str) -> None:
    model = load_lane(name).model
    assert (model.family, model.pattern) == ("nam56r", "AEMEAEMEAEMR")
