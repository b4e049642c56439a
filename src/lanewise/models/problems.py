"""What shapes each op will see on a lane, so that every backend is chosen once, before the model is built."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from lanewise.lane.index_layers import attends_densely, index_layers
from lanewise.lane.pattern import layer_letters
from lanewise.lane.schema import AttentionSpec, Lane, SparseAttentionSpec
from lanewise.models.mamba import num_angles
from lanewise.ops.spec import Problem


def lane_problems(
    lane: Lane, device_type: str, model_switches: Mapping[str, bool] = MappingProxyType({})
) -> dict[str, Problem]:
    """Op → the problem its call sites pose; only ops that this lane's pattern, and its MTP block, run.

    Args:
        lane: a validated lane.
        device_type: `cpu` or `cuda`.
        model_switches: features read at assembly.
    """
    model, batch = lane.model, lane.batch
    letters = set(layer_letters(model))
    if model_switches.get("mtp"):
        letters.add("G" if model.attention is None else "A")
    length, rows = batch.sequence_length, batch.micro_batch_size
    tokens = {"S": rows * length, "d": model.hidden_size}
    dims: dict[str, dict[str, int]] = {
        "add_norm": tokens,
        "linear_cross_entropy": {**tokens, "W": model.vocab_size},
        "optimizer_step": {},
    }
    also: dict[str, list[dict[str, int]]] = {}
    attention = model.attention if "A" in letters else None
    has_dense_attention = attends_densely(model) or model_switches.get("mtp")
    letters_with_core = letters if has_dense_attention else letters - {"A"}
    if attention is not None and attention.form == "expanded" and "A" in letters_with_core:
        dims["mla_ingress"] = {
            "B": rows,
            "T": length,
            "H": attention.num_heads,
            "D_n": attention.qk_nope_head_dim,
            "D_r": attention.qk_rope_head_dim,
            "D_v": attention.v_head_dim,
        }
    if cores := _attention_cores(lane, letters_with_core):
        dims["attention_core"], *also["attention_core"] = cores
    if attention is not None and attention.sparse is not None and index_layers(model):
        dims |= _sparse_dims(
            attention, attention.sparse, {"B": rows, "T": length, "H": attention.num_heads}
        )
    if "E" in letters and (moe := model.moe) is not None:
        dims["moe_experts"] = {
            **tokens,
            "E": moe.num_experts,
            "k": moe.top_k,
            "F": moe.expert_hidden_size,
        }
    if "M" in letters and (mamba := model.mamba) is not None:
        scan = {
            "B": rows,
            "T": length,
            "H": mamba.num_heads,
            "P": mamba.head_dim,
            "N": mamba.state_size,
            "G": mamba.num_groups,
        }
        if mamba.version == "mamba2":
            dims["ssd_scan"] = scan
        elif mamba.mimo_rank > 1:
            dims["mimo_scan"] = {**scan, "R": mamba.mimo_rank, "n": num_angles(mamba)}
        else:
            dims["ssm_scan"] = {**scan, "n": num_angles(mamba)}
    if "R" in letters and (recurrent := model.recurrent) is not None:
        dims["m2rnn_scan"] = {
            "B": rows,
            "T": length,
            "H": recurrent.num_heads,
            "K": recurrent.key_dim,
            "V": recurrent.value_dim,
        }
    dtypes = {"add_norm": lane.precision.residual, "optimizer_step": "fp32"}
    return {
        op: Problem(
            device_type=device_type,
            dtype=dtypes.get(op, lane.precision.compute),
            dims=sizes,
            also=tuple(also.get(op, ())),
        )
        for op, sizes in dims.items()
    }


def _attention_cores(lane: Lane, letters: set[str]) -> list[dict[str, int]]:
    """Dims of every different call site of `attention_core`."""
    model = lane.model
    heads: list[dict[str, int]] = []
    if "A" in letters and (mla := model.attention) is not None:
        rope, latent = mla.qk_rope_head_dim, mla.kv_lora_rank
        heads.append(
            {"H": mla.num_heads, "H_kv": 1, "D_qk": latent + rope, "D_v": latent}
            if mla.form == "absorbed"
            else {
                "H": mla.num_heads,
                "H_kv": mla.num_heads,
                "D_qk": mla.qk_nope_head_dim + rope,
                "D_v": mla.v_head_dim,
            }
        )
    if "G" in letters and (grouped := model.grouped_query) is not None:
        head_dims = {"D_qk": grouped.head_dim, "D_v": grouped.head_dim}
        heads.append({"H": grouped.num_heads, "H_kv": grouped.num_kv_heads, **head_dims})
    batch = lane.batch
    rows = {"B": batch.micro_batch_size, "T": batch.sequence_length}
    return [{**rows, **sizes, "documents": int(lane.data.isolate_documents)} for sizes in heads]


def _sparse_dims(
    attention: AttentionSpec, sparse: SparseAttentionSpec, rows_and_heads: dict[str, int]
) -> dict[str, dict[str, int]]:
    """The problems of sparse layers; which of them a layer poses depends on the stage and on whether it is trained."""
    rows, length = rows_and_heads["B"], rows_and_heads["T"]
    latent, rope = attention.kv_lora_rank, attention.qk_rope_head_dim
    index = {
        "B": rows,
        "T": length,
        "H_I": sparse.index_num_heads,
        "D_I": sparse.index_head_dim,
    }
    if sparse.stage == "dense_warmup":
        return {
            "indexer_warmup_loss": {**index, "H": attention.num_heads, "D": latent + rope},
        }
    selected = {"k": min(sparse.top_k, length)}
    dims = {
        "index_topk": {**index, **selected},
        "sparse_attention": {**rows_and_heads, "C": latent, "D_r": rope, **selected},
    }
    if sparse.indexer_loss_coefficient > 0:
        dims["indexer_loss"] = {**index, **selected}
    return dims
