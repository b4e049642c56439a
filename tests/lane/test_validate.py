from pathlib import Path

import pytest

from lanewise.errors import LaneError
from lanewise.lane.load import load_lane, preset_names
from lanewise.lane.rules import faults


def problems_of(name: str, *overrides: str) -> list[str]:
    with pytest.raises(LaneError) as caught:
        load_lane(name, overrides)
    return str(caught.value).splitlines()


def test_every_problem_is_listed_at_once_in_the_order_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "my.toml"
    path.write_text(
        'extends = "nam56r-period"\n'  # line 1
        "[model.mamba]\n"
        "num_heads = 56\n"
        "num_groups = 5\n"  # 4
        "[model.moe]\n"
        "topk = 3\n"  # 6
        'top_k = "4"\n'  # 7
        'activation = "gellu"\n'  # 8
        "[optimizer]\n"
        "learning_rate = inf\n"  # 10
        "[model]\n"
        "num_layers = true\n"  # 12
        "[bach]\n"  # 13
        "x = 1\n"
        "[topology]\n"
        'machine = "h200"\n',  # 16
        encoding="utf-8",
    )
    lines = problems_of(str(path))
    assert [line.removeprefix(f"{path}:") for line in lines[:-1]] == [
        "4: model.mamba.num_groups = 5 does not divide num_heads = 56; use 1, 2, 4, 7, 8, 14, 28 or 56",
        "6: model.moe.topk: unknown key. Did you mean 'top_k'?",
        '7: model.moe.top_k = "4" is wrong: it must be a valid integer',
        "8: model.moe.activation = \"gellu\" is not allowed; use 'gelu', 'swiglu' or 'relu2'. "
        "Did you mean 'gelu'?",
        "10: optimizer.learning_rate = inf is not a finite number",
        "12: model.num_layers = true is wrong: it must be a valid integer",
        "13: bach: unknown key. Did you mean 'batch'?",
    ]
    assert lines[-1].startswith(f"{path}:16: topology.machine = 'h200' is a nickname")


def test_a_key_in_the_wrong_table_is_sent_to_the_right_one() -> None:
    assert problems_of("nam56r-tiny", "model.chunk_size=8") == [
        "--set model.chunk_size=8: model.chunk_size: unknown key here. It belongs in [model.mamba]."
    ]


def test_a_missing_key_is_placed_at_its_table(tmp_path: Path) -> None:
    path = tmp_path / "m.toml"
    path.write_text(
        '[model]\nfamily = "x"\npattern = "E"\nnum_layers = 1\nhidden_size = 8\n'
        "[batch]\nsequence_length = 8\nmicro_batch_size = 1\n",
        encoding="utf-8",
    )
    (line,) = problems_of(str(path))
    assert line.startswith(f"{path}:1: model.vocab_size: missing;")


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (
            ["model.pattern=AEX"],
            "model.pattern = 'AEX' has the impossible letter 'X' at position 3",
        ),
        (["model.pattern=aEMR"], "Did you mean 'A'?"),
        (['model.pattern=""'], "model.pattern = '' is empty"),
        (["model.mamba=none"], "has M (Mamba), which needs the table [model.mamba]"),
        (
            ["model.mamba.num_groups=3"],
            "num_groups = 3 does not divide num_heads = 4; use 1, 2 or 4",
        ),
        (["model.mamba.chunk_size=128"], "chunk_size = 128 exceeds batch.sequence_length = 64"),
        (
            ["model.mamba.mimo_rank=8"],
            "chunk_size = 16 × mimo_rank = 8 exceeds 64 rows; use at most 8",
        ),
        (
            ["model.mamba.version=mamba2", "model.mamba.output_norm=true"],
            "output_norm = true is of Mamba-3 only",
        ),
        (
            ["model.mamba.version=mamba2", "model.mamba.decay_map=softplus"],
            "decay_map = 'softplus' is of Mamba-3 only; leave it out",
        ),
        (
            ["model.mamba.version=mamba2", "model.mamba.mimo_rank=2"],
            "mimo_rank = 2 is of Mamba-3 only; use 1 beside version = 'mamba2'",
        ),
        (["model.mamba.rope_fraction=0.35"], "rotates 11 of state_size = 32 coordinates, an odd"),
        (["model.mamba.state_size=33"], "state_size = 33 is odd"),
        (["model.mamba.dt_min=1.0"], "dt_min = 1.0 exceeds dt_max = 0.1"),
        (["model.mamba.dt_floor=1.0"], "dt_floor = 1.0 exceeds dt_max = 0.1"),
        (["model.attention.qk_rope_head_dim=15"], "qk_rope_head_dim = 15 is odd"),
        (["model.moe.top_k=9"], "top_k = 9 exceeds num_experts = 8"),
        (
            ["model.moe.num_expert_groups=3"],
            "num_expert_groups = 3 does not divide num_experts = 8; use 1, 2, 4 or 8",
        ),
        (
            ["model.moe.num_expert_groups=2", "model.moe.top_k_groups=3"],
            "top_k_groups = 3 exceeds num_expert_groups = 2; use at most 2",
        ),
        (
            ["model.moe.num_expert_groups=4", "model.moe.top_k=3"],
            "top_k = 3 exceeds the 2 experts of top_k_groups = 1 groups",
        ),
        (
            ["model.moe.real_slot_ratio=0.95"],
            "real_slot_ratio = 0.95 makes no null slot of num_experts = 8; use 1, or at most 8/9",
        ),
        (
            ["model.moe.real_slot_ratio=0.7", "model.moe.top_k=8"],
            "real_slot_ratio = 0.7 asks for 12 picks of 8 experts and 3 null slots; lower top_k",
        ),
        (
            ["model.moe.shared_expert_gate=true", "model.moe.shared_expert_hidden_size=0"],
            "shared_expert_gate = true has nothing to gate",
        ),
        (["model.hidden_size=0"], "model.hidden_size = 0 is wrong: it must be greater than 0"),
        (["model.hidden_size=-1"], "it must be greater than 0"),
        (["model.hidden_size=12.5"], "it must be a valid integer"),
        (["model.vocab_size=256"], "too small for byte tokens; use at least 257"),
        (["optimizer.warmup_steps=1000"], "warmup_steps = 1000 must be below decay_steps = 1000"),
        (["optimizer.min_learning_rate=1"], "min_learning_rate = 1.0 exceeds learning_rate"),
        (["optimizer.betas=[0.9, 1.0]"], "betas = [0.9, 1.0] must be below 1"),
        (["optimizer.betas=[0.9]"], "optimizer.betas"),
        (
            ["recompute.grouped_query=full"],
            "recompute.grouped_query = full has nothing to compute again: the pattern AEMEAEMEAEMR has no G",
        ),
        (
            ["recompute.moe=selective", "features.regional_compile=on"],
            "recompute.moe = selective cannot be combined with features.regional_compile = 'on'",
        ),
        (["recompute.mtp=selective"], "the lane has no table [model.mtp]"),
        (["recompute.mamba=some"], "use 'none', 'selective' or 'full'"),
        (["optimizer.betas=[0.9, nan]"], "optimizer.betas.1 = nan is not a finite number"),
        (["seed=9007199254740993"], "seed = 9007199254740993 is too large"),
        (["model=3"], "model = 3 is wrong: it must be an object"),
        (["precision.compute=fp8"], "use 'fp32' or 'bf16'"),
        (["name=Bad Name"], 'name = "Bad Name" is wrong'),
        (["features.fused_mo=on"], "features.fused_mo: unknown feature. Did you mean 'fused_moe'?"),
        (
            ["features.fused_moe=onn"],
            "features.fused_moe = 'onn' is no state of this feature. Did you",
        ),
        (
            ["features.fused_moe=true"],
            "features.fused_moe = true is wrong: it must be a valid string",
        ),
        (["ops.ssm_scam=x.y"], "ops.ssm_scam: unknown op. Did you mean 'ssm_scan'?"),
        (
            ["features.engram=on", "model.engram.bottleneck_ratio=3"],
            "features.engram = 'on' cannot be: model.engram.bottleneck_ratio = 3 does not divide hidden_size = 128",
        ),
        (
            ["features.engram=on", "model.engram.orders=[2, 2]"],
            "model.engram.orders = [2, 2] must name at least one order, and none twice",
        ),
        (
            ["features.depth_routing=on", "model.depth_routing.num_first_layers_kept=11"],
            "num_first_layers_kept = 11 leaves no E or D layer of the 12 layers",
        ),
        (
            ["features.depth_routing=on", "model.depth_routing.capacity_factor=0.0"],
            "capacity_factor = 0.0 lets no token through",
        ),
        (
            ["features.depth_routing=on", "model.depth_routing.capacity_factor=1e-7"],
            "capacity_factor = 1e-07 lets no token through",
        ),
        (
            ["features.metadata_embeddings=on", "model.metadata_embeddings.num_buckets=12"],
            "num_buckets = 12 is less than the 13 character classes",
        ),
        (["model.num_layers=1000000000"], "num_layers = 1000000000 is wrong: it must be less"),
        (["model.hidden_size=9007199254740991"], "it must be less than or equal to 2147483647"),
        (["model.init_std=1e30"], "model.init_std = 1e+30 is wrong: it must be less"),
        (["model.mamba.a_floor=1e300"], "a_floor = 1e+300 is wrong: it must be less"),
        (["model.recurrent.state_gradient_clip=1e300"], "it must be less than or equal to 1000000"),
        (["model.norm_eps=1e-300"], "norm_eps = 1e-300 is wrong: it must be greater"),
        (["optimizer.eps=1e-300"], "optimizer.eps = 1e-300 is wrong: it must be greater"),
        (["model.moe.real_slot_ratio=1e-30"], "real_slot_ratio = 1e-30 is wrong: it must be"),
        (['data.tokenizer=""'], 'data.tokenizer = "" is wrong'),
        (
            ["features.mtp=on"],
            "features.mtp = 'on' cannot be: it needs the table [model.mtp], which the lane does not",
        ),
        (
            ["model.pattern=AE", "features.fused_mamba=on"],
            "features.fused_mamba = 'on' cannot be: it touches M blocks and the pattern AE has none",
        ),
        (
            ["ops.ssd_scan=chunked.torch"],
            "ops.ssd_scan = 'chunked.torch' pins an op that no block of this lane runs",
        ),
        (
            ["model.attention.form=absorbed", "ops.mla_ingress=assembled.torch"],
            "ops.mla_ingress = 'assembled.torch' pins an op that no block of this lane runs",
        ),
        (["topology.machine=h200"], "topology.machine = 'h200' is a nickname"),
        (["topology.ep=3"], "topology.ep = 3 does not divide"),
    ],
)
def test_bad_values_get_one_line_with_the_rule(overrides: list[str], expected: str) -> None:
    lines = problems_of("nam56r-tiny", *overrides)
    assert any(expected in line for line in lines), lines


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (
            ["model.attention.sparse.layer_ranks=[1, 13]"],
            "names rank 13, but the model has 13 A layers",
        ),
        (["model.pattern=EM"], "names rank 1, but the model has no A layers"),
        (["model.attention.sparse.layer_ranks=[2, 1]"], "must rise without repeats"),
        (["model.attention.sparse.layer_ranks=[]"], "makes no layer sparse"),
        (
            ["model.attention.sparse.full_ranks=[0, 9]"],
            "names rank 9, but the model has 9 sparse layers",
        ),
        (
            ["model.attention.sparse.index_head_dim=32"],
            "index_head_dim = 32 is below qk_rope_head_dim = 64",
        ),
        (
            [
                "model.attention.sparse.stage=dense_warmup",
                "model.attention.sparse.indexer_loss_coefficient=0",
            ],
            "indexer_loss_coefficient = 0 trains nothing in stage = 'dense_warmup'",
        ),
        (["model.ngram_embedding.orders=[]"], "hashes nothing"),
        (["model.ngram_embedding.orders=[2, 2]"], "orders = [2, 2] names an order twice"),
        (
            ["model.ngram_embedding.num_rows=50"],
            "num_rows = 50 is too small: 2 orders × 8 heads need 16 distinct primes",
        ),
        (
            ["model.pattern=EM", "model.attention=none"],
            "model.mtp: needs [model.attention] or [model.grouped_query]",
        ),
        (
            ["model.mtp.depth=4096"],
            "model.mtp.depth = 4096 looks past every row of batch.sequence_length = 4096; use at most 4095",
        ),
        (
            ["batch.sequence_length=1"],
            'model.mtp.depth = 1 looks past every row of batch.sequence_length = 1; set model.mtp = "none"',
        ),
        (
            ["model.stp.start_step=5", "model.stp.end_step=5"],
            "model.stp.end_step = 5 must be above start_step = 5",
        ),
        (["model.stp.layers=[3, 52]"], "[3, 52] must rise without repeats among layers 0 to 51"),
        (["model.stp.layers=[3, 3]"], "[3, 3] must rise without repeats"),
    ],
)
def test_bad_sparse_and_mtp_settings(overrides: list[str], expected: str) -> None:
    lines = problems_of("nam56r", *overrides)
    assert any(expected in line for line in lines), lines


def test_a_number_that_is_not_finite_is_reported_once() -> None:
    assert problems_of("nam56r-tiny", "model.norm_eps=inf") == [
        "--set model.norm_eps=inf: model.norm_eps = inf is not a finite number"
    ]


def test_a_pinned_op_may_be_run_by_the_mtp_block_alone() -> None:
    only_mtp = ["model.pattern=EM", "model.attention.sparse=none"]
    load_lane("nam56r-tiny-full", [*only_mtp, "ops.attention_core=sdpa.torch"])
    load_lane("nam56r-tiny-full", [*only_mtp, "ops.mla_ingress=assembled.torch"])
    lines = problems_of("nam56r-tiny", "model.pattern=EM", "ops.attention_core=sdpa.torch")
    assert "pins an op that no block of this lane runs" in lines[0]


def test_a_feature_of_a_block_without_its_table_gets_one_line_about_the_table() -> None:
    overrides = ["model.attention=none", "features.fused_mla_ingress=on"]
    (line,) = problems_of("nam56r-tiny", *overrides)
    assert "needs the table [model.attention]" in line


def test_sizes_that_a_tax_does_not_allow_matter_only_where_it_is_on() -> None:
    load_lane("nam56r-tiny", ["model.engram.bottleneck_ratio=3", "features.engram=off"])
    load_lane("nam56r-tiny", ["model.depth_routing.num_first_layers_kept=12"])


@pytest.mark.parametrize("name", preset_names())
def test_presets_break_no_rule(name: str) -> None:
    assert list(faults(load_lane(name))) == []


@pytest.mark.parametrize(("letter", "table"), [("G", "grouped_query"), ("D", "mlp")])
def test_letters_without_their_table_are_refused(letter: str, table: str) -> None:
    lines = problems_of("nam56r-tiny", f"model.pattern=AE{letter}")
    assert any(f"needs the table [model.{table}]" in line for line in lines), lines


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        (
            "model.grouped_query.num_kv_heads=3",
            "model.grouped_query.num_kv_heads = 3 does not divide num_heads = 4; use 1, 2 or 4",
        ),
        ("model.grouped_query.num_kv_heads=8", "num_kv_heads = 8 does not divide num_heads = 4"),
        ("model.grouped_query.head_dim=31", "head_dim = 31 is odd; rotation turns pairs"),
        ("model.mlp.activation=geglu", "use 'gelu', 'swiglu' or 'relu2'"),
        ("model.grouped_query.num_kv_heads=0", "model.grouped_query.num_kv_heads = 0"),
    ],
)
def test_bad_dense_settings(override: str, expected: str) -> None:
    lines = problems_of("dense-tiny", override)
    assert any(expected in line for line in lines), lines


def test_what_only_mamba_3_has_is_no_fault_of_mamba_2() -> None:
    overrides = ["model.mamba.version=mamba2", "model.mamba.rope_fraction=0.35"]
    assert list(faults(load_lane("nam56r-tiny", overrides))) == []
