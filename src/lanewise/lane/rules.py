"""Rules between the sizes of a lane that a type cannot state; each break names the key, the rule and what fits."""

from __future__ import annotations

import math
from collections.abc import Iterator

from lanewise.lane import machine, pattern, topology
from lanewise.lane.expert_slots import num_null_slots, num_picks
from lanewise.lane.features import BY_KEY, FEATURES
from lanewise.lane.params import mtp_attention
from lanewise.lane.resolve import OP_NAMES, state_fault
from lanewise.lane.schema import (
    AttentionSpec,
    GroupedQuerySpec,
    Lane,
    MambaSpec,
    ModelSpec,
    MoeSpec,
    SparseAttentionSpec,
)
from lanewise.lane.suggest import did_you_mean
from lanewise.lane.tax_rules import ngram_fault
from lanewise.lane.topology import Fault, divisors_in_words

BYTE_VOCABULARY = 257
"""256 byte values and the document separator."""
MAX_CHUNK_ROWS = 64
"""Largest chunk × rank of a MIMO chunk: one tile of rows (the rule of the public Mamba-3 MIMO kernels)."""


def faults(lane: Lane) -> Iterator[Fault]:
    """Every rule a lane breaks, as the path of the key and the rest of the sentence."""
    model = lane.model
    reason = pattern.fault(model.pattern)
    if reason is not None:
        yield ("model", "pattern"), f"= '{model.pattern}' {reason}"
    else:
        yield from _pattern_faults(model)
    if model.attention:
        yield from _attention_faults(model.attention)
    if model.grouped_query:
        yield from _grouped_query_faults(model.grouped_query)
    if model.mamba:
        yield from _mamba_faults(model.mamba, lane.batch.sequence_length)
    if model.moe:
        yield from _moe_faults(model.moe)
    yield from _other_model_faults(model)
    yield from _auxiliary_objective_faults(lane)
    yield from _recipe_faults(lane)
    yield from _recompute_faults(lane)
    yield from _name_faults(lane)
    yield from topology.faults(lane.topology, model)


def _pattern_faults(model: ModelSpec) -> Iterator[Fault]:
    for letter, table in _missing_tables(model):
        yield (
            ("model", "pattern"),
            f"= '{model.pattern}' has {letter} ({pattern.LETTERS[letter]}), which needs the table [model.{table}]",
        )
    if model.mtp and mtp_attention(model) is None:
        yield (
            ("model", "mtp"),
            "needs [model.attention] or [model.grouped_query], the attention of its block",
        )
    if model.attention and model.attention.sparse:
        yield from _sparse_faults(
            model.attention.sparse, num_attention=pattern.layer_letters(model).count("A")
        )


def _missing_tables(model: ModelSpec) -> Iterator[tuple[str, str]]:
    """Every letter of the pattern without its table, and that table."""
    for letter in sorted(set(pattern.layer_letters(model))):
        table = pattern.TABLE_OF_LETTER[letter]
        if getattr(model, table) is None:
            yield letter, table


def _sparse_faults(sparse: SparseAttentionSpec, *, num_attention: int) -> Iterator[Fault]:
    for key, bound, what in (
        ("layer_ranks", num_attention, "A layers"),
        ("full_ranks", len(sparse.layer_ranks), "sparse layers"),
    ):
        ranks: tuple[int, ...] = getattr(sparse, key)
        path = ("model", "attention", "sparse", key)
        if list(ranks) != sorted(set(ranks)):
            yield path, f"= {list(ranks)} must rise without repeats"
        outside = [rank for rank in ranks if rank >= bound]
        if outside:
            have = f"{bound} {what} (ranks 0 to {bound - 1})" if bound else f"no {what}"
            yield path, f"= {list(ranks)} names rank {outside[0]}, but the model has {have}"
    if not sparse.layer_ranks:
        yield (
            ("model", "attention", "sparse", "layer_ranks"),
            '= [] makes no layer sparse; set model.attention.sparse = "none" instead',
        )
    if sparse.stage == "dense_warmup" and sparse.indexer_loss_coefficient == 0:
        yield (
            ("model", "attention", "sparse", "indexer_loss_coefficient"),
            "= 0 trains nothing in stage = 'dense_warmup', which trains the indexers alone; use a positive number",
        )


def _attention_faults(attention: AttentionSpec) -> Iterator[Fault]:
    if attention.qk_rope_head_dim % 2:
        yield (
            ("model", "attention", "qk_rope_head_dim"),
            f"= {attention.qk_rope_head_dim} is odd; rotation turns pairs of coordinates, use an even number",
        )
    sparse = attention.sparse
    if sparse is not None and sparse.index_head_dim < attention.qk_rope_head_dim:
        yield (
            ("model", "attention", "sparse", "index_head_dim"),
            f"= {sparse.index_head_dim} is below qk_rope_head_dim = {attention.qk_rope_head_dim}, the dims of an index "
            f"head that are rotated; use at least {attention.qk_rope_head_dim}",
        )


def _grouped_query_faults(grouped: GroupedQuerySpec) -> Iterator[Fault]:
    path = ("model", "grouped_query")
    if grouped.num_heads % grouped.num_kv_heads:
        yield (
            (*path, "num_kv_heads"),
            f"= {grouped.num_kv_heads} does not divide num_heads = {grouped.num_heads}; "
            f"use {divisors_in_words(grouped.num_heads)}",
        )
    if grouped.head_dim % 2:
        yield (
            (*path, "head_dim"),
            f"= {grouped.head_dim} is odd; rotation turns pairs of coordinates, use an even number",
        )


def _of_mamba3_only(mamba: MambaSpec) -> Iterator[Fault]:
    path = ("model", "mamba")
    if mamba.mimo_rank != 1:
        yield (
            (*path, "mimo_rank"),
            f"= {mamba.mimo_rank} is of Mamba-3 only; use 1 beside version = 'mamba2'",
        )
    if mamba.output_norm:
        yield (
            (*path, "output_norm"),
            "= true is of Mamba-3 only; use false beside version = 'mamba2', which always norms its gated output",
        )
    if mamba.decay_map != MambaSpec.model_fields["decay_map"].default:
        yield (
            (*path, "decay_map"),
            f"= '{mamba.decay_map}' is of Mamba-3 only; leave it out beside version = 'mamba2'",
        )


def _mamba_faults(mamba: MambaSpec, sequence_length: int) -> Iterator[Fault]:
    path = ("model", "mamba")
    if mamba.num_heads % mamba.num_groups:
        yield (
            (*path, "num_groups"),
            f"= {mamba.num_groups} does not divide num_heads = {mamba.num_heads}; "
            f"use {divisors_in_words(mamba.num_heads)}",
        )
    if mamba.version == "mamba2":
        yield from _of_mamba3_only(mamba)
    if mamba.version == "mamba3" and mamba.state_size % 2:
        yield (
            (*path, "state_size"),
            f"= {mamba.state_size} is odd; rotation turns pairs of coordinates, use an even number",
        )
    rotated = math.floor(mamba.state_size * mamba.rope_fraction)
    if mamba.version == "mamba3" and rotated % 2:
        yield (
            (*path, "rope_fraction"),
            f"= {mamba.rope_fraction} rotates {rotated} of state_size = {mamba.state_size} coordinates, an odd number; "
            "rotation turns pairs",
        )
    if mamba.chunk_size > sequence_length:
        yield (
            (*path, "chunk_size"),
            f"= {mamba.chunk_size} exceeds batch.sequence_length = {sequence_length}; use at most {sequence_length}",
        )
    if mamba.mimo_rank > 1 and mamba.chunk_size * mamba.mimo_rank > MAX_CHUNK_ROWS:
        yield (
            (*path, "chunk_size"),
            f"= {mamba.chunk_size} × mimo_rank = {mamba.mimo_rank} exceeds {MAX_CHUNK_ROWS} rows; "
            f"use at most {max(1, MAX_CHUNK_ROWS // mamba.mimo_rank)}",
        )
    if mamba.dt_min > mamba.dt_max:
        yield (*path, "dt_min"), f"= {mamba.dt_min} exceeds dt_max = {mamba.dt_max}"
    if mamba.dt_floor > mamba.dt_max:
        yield (*path, "dt_floor"), f"= {mamba.dt_floor} exceeds dt_max = {mamba.dt_max}"


def _moe_faults(moe: MoeSpec) -> Iterator[Fault]:
    path = ("model", "moe")
    if moe.top_k > moe.num_experts:
        yield (
            (*path, "top_k"),
            f"= {moe.top_k} exceeds num_experts = {moe.num_experts}; use at most {moe.num_experts}",
        )
    elif moe.num_experts % moe.num_expert_groups:
        yield (
            (*path, "num_expert_groups"),
            f"= {moe.num_expert_groups} does not divide num_experts = {moe.num_experts}; "
            f"use {divisors_in_words(moe.num_experts)}",
        )
    elif moe.top_k_groups > moe.num_expert_groups:
        yield (
            (*path, "top_k_groups"),
            f"= {moe.top_k_groups} exceeds num_expert_groups = {moe.num_expert_groups}; "
            f"use at most {moe.num_expert_groups}",
        )
    else:
        yield from _pick_faults(moe)
    if moe.shared_expert_gate and not moe.shared_expert_hidden_size:
        yield (
            (*path, "shared_expert_gate"),
            "= true has nothing to gate: shared_expert_hidden_size = 0; give the shared expert a size",
        )


def _pick_faults(moe: MoeSpec) -> Iterator[Fault]:
    in_groups = moe.num_experts // moe.num_expert_groups * moe.top_k_groups
    null_slots, picks = num_null_slots(moe), num_picks(moe)
    if moe.real_slot_ratio < 1.0 and not null_slots:
        yield (
            ("model", "moe", "real_slot_ratio"),
            f"= {moe.real_slot_ratio} makes no null slot of num_experts = {moe.num_experts}; "
            f"use 1, or at most {moe.num_experts}/{moe.num_experts + 1}",
        )
    elif moe.top_k > in_groups:
        yield (
            ("model", "moe", "top_k"),
            f"= {moe.top_k} exceeds the {in_groups} experts of top_k_groups = {moe.top_k_groups} groups; "
            "choose more groups or fewer experts",
        )
    elif picks > in_groups + null_slots:
        yield (
            ("model", "moe", "real_slot_ratio"),
            f"= {moe.real_slot_ratio} asks for {picks} picks of {in_groups} experts and {null_slots} null slots; "
            "lower top_k",
        )


def _other_model_faults(model: ModelSpec) -> Iterator[Fault]:
    if model.ngram_embedding and (fault := ngram_fault(model.ngram_embedding)):
        yield fault


def _auxiliary_objective_faults(lane: Lane) -> Iterator[Fault]:
    model, length = lane.model, lane.batch.sequence_length
    if model.mtp and model.mtp.depth >= length:
        yield (
            ("model", "mtp", "depth"),
            f"= {model.mtp.depth} looks past every row of batch.sequence_length = {length}; "
            + (f"use at most {length - 1}" if length > 1 else 'set model.mtp = "none"'),
        )
    stp = model.stp
    if stp.end_step is not None and stp.end_step <= stp.start_step:
        yield (
            ("model", "stp", "end_step"),
            f"= {stp.end_step} must be above start_step = {stp.start_step}; "
            "switch the penalty off with features.stp = off",
        )
    if list(stp.layers) != sorted(set(stp.layers)) or any(
        layer >= model.num_layers for layer in stp.layers
    ):
        yield (
            ("model", "stp", "layers"),
            f"= {list(stp.layers)} must rise without repeats among layers 0 to {model.num_layers - 1}",
        )


def _recipe_faults(lane: Lane) -> Iterator[Fault]:
    optimizer = lane.optimizer
    if optimizer.warmup_steps >= optimizer.decay_steps:
        yield (
            ("optimizer", "warmup_steps"),
            f"= {optimizer.warmup_steps} must be below decay_steps = {optimizer.decay_steps}",
        )
    if optimizer.min_learning_rate > optimizer.learning_rate:
        yield (
            ("optimizer", "min_learning_rate"),
            f"= {optimizer.min_learning_rate} exceeds learning_rate = {optimizer.learning_rate}",
        )
    if max(optimizer.betas) >= 1.0:
        yield ("optimizer", "betas"), f"= {list(optimizer.betas)} must be below 1"
    if lane.data.tokenizer == "bytes" and lane.model.vocab_size < BYTE_VOCABULARY:
        yield (
            ("model", "vocab_size"),
            f"= {lane.model.vocab_size} is too small for byte tokens; use at least {BYTE_VOCABULARY} "
            "(256 bytes and a document separator)",
        )


def _recompute_faults(lane: Lane) -> Iterator[Fault]:
    model = lane.model
    if pattern.fault(model.pattern) is not None:
        return
    letters = set(pattern.layer_letters(model))
    used = {table for letter, table in pattern.TABLE_OF_LETTER.items() if letter in letters}
    used |= {"mtp"} if model.mtp else set()
    is_compiled = lane.features.get("regional_compile") == "on"
    for family, policy in lane.recompute:
        if policy == "selective" and is_compiled:
            yield (
                ("recompute", family),
                "= selective cannot be combined with features.regional_compile = 'on', since the operations of a compiled "
                "block cannot be told apart; use full or none",
            )
        if policy != "none" and family not in used:
            yield (
                ("recompute", family),
                f"= {policy} has nothing to compute again: "
                + (
                    "the lane has no table [model.mtp]"
                    if family == "mtp"
                    else f"the pattern {model.pattern} has no {_letter_of(family)}"
                )
                + f'; set recompute.{family} = "none"',
            )


def _letter_of(table: str) -> str:
    return next(letter for letter, name in pattern.TABLE_OF_LETTER.items() if name == table)


def _name_faults(lane: Lane) -> Iterator[Fault]:
    wanted = lane.topology.machine
    reason = None if wanted == "auto" else machine.fault(wanted)
    if reason is not None:
        yield ("topology", "machine"), f"= '{wanted}' {reason}"
    # What a feature or an op touches can be told only of a model that has every block of its pattern.
    is_whole = pattern.fault(lane.model.pattern) is None and not any(_missing_tables(lane.model))
    for key, state in lane.features.items():
        feature = BY_KEY.get(key)
        reason = (
            f"unknown feature. {did_you_mean(key, BY_KEY)}"
            if feature is None
            else state_fault(feature, state)
        )
        if reason is None and feature is not None and state != "off" and is_whole:
            misfit = feature.why_not(lane.model)
            reason = f"= '{state}' cannot be: {misfit}" if misfit else None
        if reason is not None:
            yield ("features", key), reason
    for op, backend in lane.ops.items():
        if op not in OP_NAMES:
            yield ("ops", op), f"unknown op. {did_you_mean(op, OP_NAMES)}"
        elif is_whole and not _may_run(op, lane.model):
            yield (
                ("ops", op),
                f"= '{backend}' pins an op that no block of this lane runs; remove the setting",
            )


def _may_run(op: str, model: ModelSpec) -> bool:
    """Whether some block runs an op that features switch; the MTP block attends like `A` or `G`."""
    form = model.attention.form if model.attention else None
    if model.mtp and (op == "attention_core" or (op == "mla_ingress" and form == "expanded")):
        return True
    return any(op in feature.ops_for(model) and feature.applies_to(model) for feature in FEATURES)
