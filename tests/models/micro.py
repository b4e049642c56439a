"""Micro lanes and models for tests: every block letter, a few thousand parameters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from lanewise.lane.resolve import resolve
from lanewise.lane.resolved import ResolvedLane
from lanewise.lane.schema import Lane
from lanewise.models.assemble import build_block
from lanewise.models.layers import Block
from lanewise.models.model import HybridModel
from lanewise.models.problems import lane_problems
from lanewise.ops.dispatch import capabilities
from lanewise.ops.opset import OpSet
from lanewise.ops.registry import SPECS
from lanewise.train.data.token_facts import token_facts
from lanewise.train.data.tokens import ByteTokenizer

MICRO: dict[str, Any] = {
    "name": "micro",
    "model": {
        "family": "micro",
        "pattern": "AEMR",
        "num_layers": 4,
        "hidden_size": 12,
        "vocab_size": 257,
        "attention": {
            "num_heads": 2,
            "q_lora_rank": 6,
            "kv_lora_rank": 5,
            "qk_nope_head_dim": 4,
            "qk_rope_head_dim": 4,
            "v_head_dim": 3,
        },
        "moe": {
            "num_experts": 4,
            "top_k": 2,
            "expert_hidden_size": 6,
            "shared_expert_hidden_size": 5,
        },
        "mamba": {
            "num_heads": 4,
            "head_dim": 4,
            "state_size": 8,
            "num_groups": 2,
            "chunk_size": 4,
        },
        "recurrent": {"num_heads": 2, "key_dim": 4, "value_dim": 3},
        "grouped_query": {"num_heads": 4, "num_kv_heads": 2, "head_dim": 4},
        "mlp": {"mlp_hidden_size": 7},
    },
    "batch": {"sequence_length": 10, "micro_batch_size": 2},
    "optimizer": {"learning_rate": 3e-3, "min_learning_rate": 3e-4, "decay_steps": 100},
}


def micro_lane(**changes: Any) -> Lane:
    """The micro lane with changes by dotted path, `.` written `__`: `micro_lane(model__pattern="A")`."""
    document = Lane.model_validate(MICRO).model_dump()
    for path, value in changes.items():
        *parents, key = path.split("__")
        table = document
        for parent in parents:
            table = table[parent]
        table[key] = value
    return Lane.model_validate(document)


SPARSE: dict[str, Any] = {
    "top_k": 3,
    "index_num_heads": 3,
    "index_head_dim": 6,
    "layer_ranks": (1, 2, 3),
    "full_ranks": (0, 2),
    "indexer_loss_coefficient": 0.5,
}


def sparse_lane(*, model__pattern: str = "A", **changes: Any) -> Lane:
    """Four A layers: dense, full, shared, full; changes are keys of the sparse table."""
    return micro_lane(model__pattern=model__pattern, model__attention__sparse={**SPARSE, **changes})


def resolved_micro(lane: Lane | None = None, **overrides: str) -> ResolvedLane:
    """The micro lane resolved for a one-core CPU; overrides are feature states."""
    return resolve(
        lane or micro_lane(),
        machine_class="cpu-x86_64-1c",
        device_type="cpu",
        mode="train",
        overrides=overrides,
    )


def reference_ops(lane: Lane, switches: Mapping[str, bool] | None = None) -> OpSet:
    """Every op as its oracle."""
    problems = lane_problems(lane, "cpu", switches or {})
    preferences = {op: (SPECS[op].reference,) for op in problems}
    return OpSet.resolve(preferences, problems, capabilities("cpu"))


def micro_model(
    lane: Lane | None = None,
    *,
    ops: OpSet | None = None,
    switches: Mapping[str, bool] | None = None,
    seed: int = 0,
) -> HybridModel:
    """A model with oracle ops and drawn weights, fp32, in training mode."""
    lane = lane or micro_lane()
    model = HybridModel(
        lane,
        model_switches=switches or {},
        ops=ops or reference_ops(lane, switches),
        token_facts=torch.from_numpy(token_facts(ByteTokenizer(), lane.model.vocab_size)),
    )
    model.reset_parameters(torch.Generator().manual_seed(seed))
    return model


def random_batch(lane: Lane, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens and targets, int64 [B, T] each."""
    generator = torch.Generator().manual_seed(seed)
    shape = (lane.batch.micro_batch_size, lane.batch.sequence_length + 1)
    ids = torch.randint(lane.model.vocab_size, shape, generator=generator)
    return ids[:, :-1].contiguous(), ids[:, 1:].contiguous()


def block_of(letter: str, seed: int = 0, **changes: Any) -> Block:
    """One block of the micro lane with oracle ops and drawn weights, fp64; changes as in `micro_lane`."""
    lane = micro_lane(model__pattern=letter, model__num_layers=1, **changes)
    block = build_block(letter, lane, model_switches={}, ops=reference_ops(lane))
    block.reset_parameters(std=0.4, output_std=0.4, generator=torch.Generator().manual_seed(seed))
    return block.double()


def inputs(length: int = 4, seed: int = 1, batch: int = 1) -> torch.Tensor:
    """Normal input of a block of the micro lane, fp64 [batch, length, 12]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, length, 12, generator=generator, dtype=torch.float64)
