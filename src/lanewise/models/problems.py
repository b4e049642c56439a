"""What shapes each op will see on a lane, so that every backend is chosen once, before the model is built."""

from __future__ import annotations

from lanewise.lane.expert_slots import num_training_picks
from lanewise.lane.pattern import layer_letters
from lanewise.lane.schema import Lane
from lanewise.models.mamba import num_angles
from lanewise.ops.spec import Problem


def lane_problems(lane: Lane, device_type: str) -> dict[str, Problem]:
    """Op → the problem its call sites pose; only ops that this lane's pattern runs.

    Args:
        lane: a validated lane.
        device_type: `cpu` or `cuda`.
    """
    model, batch = lane.model, lane.batch
    letters = set(layer_letters(model))
    length, rows = batch.sequence_length, batch.micro_batch_size
    tokens = {"S": rows * length, "d": model.hidden_size}
    dims: dict[str, dict[str, int]] = {
        "add_norm": tokens,
        "linear_cross_entropy": {**tokens, "W": model.vocab_size},
        "optimizer_step": {},
    }
    if "A" in letters and (attention := model.attention) is not None:
        rows_and_heads = {"B": rows, "T": length, "H": attention.num_heads}
        nope, rope = attention.qk_nope_head_dim, attention.qk_rope_head_dim
        value = {"D_v": attention.v_head_dim}
        dims["mla_ingress"] = {**rows_and_heads, "D_n": nope, "D_r": rope, **value}
        dims["attention_core"] = {**rows_and_heads, "D_qk": nope + rope, **value}
    if "E" in letters and (moe := model.moe) is not None:
        dims["moe_experts"] = {
            **tokens,
            "E": moe.num_experts,
            "k": num_training_picks(moe),
            "F": moe.expert_hidden_size,
        }
    if "M" in letters and (mamba := model.mamba) is not None:
        dims["ssm_scan"] = {
            "B": rows,
            "T": length,
            "H": mamba.num_heads,
            "P": mamba.head_dim,
            "N": mamba.state_size,
            "G": mamba.num_groups,
            "n": num_angles(mamba),
        }
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
            device_type=device_type, dtype=dtypes.get(op, lane.precision.compute), dims=sizes
        )
        for op, sizes in dims.items()
    }
