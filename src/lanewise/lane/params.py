"""Parameters of every block by formula; the blocks are built to these definitions.

Legend: d hidden, W vocabulary, H heads, Dn/Dr/Dv nope, rope and value head dims, E experts, k top-k, F expert hidden,
Fs shared expert hidden, P head dim of the SSM, N state, G groups, R MIMO rank, K/V key and value dims of M2RNN.
No linear map has a bias. Every sub-layer owns a pre-norm weight of size d, counted with it. `active` leaves out the
experts a token does not visit and nothing else: embeddings and tables count whole, as in the label 4.73B / 3.03B.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from lanewise.lane.schema import (
    AttentionSpec,
    GroupedQuerySpec,
    MambaSpec,
    MlpSpec,
    ModelSpec,
    MoeSpec,
    MtpSpec,
    NgramEmbeddingSpec,
    RecurrentSpec,
    SparseAttentionSpec,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class BlockParams:
    """Parameter counts of one block.

    Attributes:
        total: all parameters.
        active: those a token can meet (all but the experts it does not visit).
        matmul: entries of the weight matrices that multiply a token.
        detached_matmul: those of `matmul` whose input is detached from the graph (the DSA indexer).
    """

    total: int
    active: int
    matmul: int
    detached_matmul: int = 0


def attention_params(
    spec: AttentionSpec, hidden_size: int, indexer: SparseAttentionSpec | None = None
) -> BlockParams:
    """`A`: W_qa d×q_lora, RMSNorm q_lora, W_qb q_lora×H(Dn+Dr), W_kva d×(kv_lora+Dr), RMSNorm kv_lora,
    W_kvb kv_lora×H(Dn+Dv), W_o H·Dv×d.

    A layer that computes its own index adds the indexer: W_qb q_lora×H_I·D_I, W_k d×D_I with a LayerNorm (weight and
    bias D_I), W_w d×H_I; layers that reuse an index have none.
    """
    matmul = (
        hidden_size * spec.q_lora_rank
        + spec.q_lora_rank * spec.num_heads * (spec.qk_nope_head_dim + spec.qk_rope_head_dim)
        + hidden_size * (spec.kv_lora_rank + spec.qk_rope_head_dim)
        + spec.kv_lora_rank * spec.num_heads * (spec.qk_nope_head_dim + spec.v_head_dim)
        + spec.num_heads * spec.v_head_dim * hidden_size
    )
    norms = hidden_size + spec.q_lora_rank + spec.kv_lora_rank
    detached = 0
    if indexer is not None:
        detached = (
            spec.q_lora_rank * indexer.index_num_heads * indexer.index_head_dim
            + hidden_size * indexer.index_head_dim
            + hidden_size * indexer.index_num_heads
        )
        norms += 2 * indexer.index_head_dim
    total = matmul + detached + norms
    return BlockParams(
        total=total, active=total, matmul=matmul + detached, detached_matmul=detached
    )


def moe_params(spec: MoeSpec, hidden_size: int) -> BlockParams:
    """`E`: router d×E, w_in E×d×F (2F for swiglu), w_out E×F×d, shared expert d×Fs (2Fs for swiglu) and Fs×d.

    The per-expert routing bias E is a buffer, not a parameter.
    """
    matrices_per_expert = 3 if spec.activation == "swiglu" else 2
    router = hidden_size * spec.num_experts
    expert = matrices_per_expert * hidden_size * spec.expert_hidden_size
    shared = matrices_per_expert * hidden_size * spec.shared_expert_hidden_size
    matmul = router + spec.top_k * expert + shared
    return BlockParams(
        total=router + spec.num_experts * expert + shared + hidden_size,
        active=matmul + hidden_size,
        matmul=matmul,
    )


def mamba_params(spec: MambaSpec, hidden_size: int) -> BlockParams:
    """`M`, of either version."""
    if spec.version == "mamba2":
        return mamba2_params(spec, hidden_size)
    return mamba3_params(spec, hidden_size)


def mamba2_conv_channels(spec: MambaSpec) -> int:
    """Channels of Mamba-2's depthwise convolution: x (H·P), B and C (G·N each)."""
    return spec.num_heads * spec.head_dim + 2 * spec.num_groups * spec.state_size


def mamba2_params(spec: MambaSpec, hidden_size: int) -> BlockParams:
    """`M`, Mamba-2: in_proj d×(2·d_in + 2·N·G + H) with d_in = H·P, depthwise causal convolution of width
    conv_kernel_size with bias over x, B and C, A_log H, dt_bias H, D H, output RMSNorm d_in, out_proj d_in×d.
    """
    d_in = spec.num_heads * spec.head_dim
    channels = mamba2_conv_channels(spec)
    matmul = hidden_size * (d_in + channels + spec.num_heads) + d_in * hidden_size
    vectors = (
        channels * (spec.conv_kernel_size + 1)
        + 3 * spec.num_heads  # A_log, dt_bias, D
        + d_in  # output RMSNorm
    )
    total = matmul + vectors + hidden_size
    return BlockParams(total=total, active=total, matmul=matmul)


def mamba3_params(spec: MambaSpec, hidden_size: int) -> BlockParams:
    """`M`, Mamba-3: in_proj d×(2·d_in + 2·N·G·R + 3·H + n_ang) with d_in = H·P and n_ang = ⌊N·rope_fraction⌋/2,
    dt_bias H, RMSNorm weights of B and C N each, q_bias and k_bias H×R×N, D H, for R > 1 ψ_x, ψ_z, ψ_o H×R×P,
    with output_norm its weight H×P, out_proj d_in×d.
    """
    d_in = spec.num_heads * spec.head_dim
    num_angles = math.floor(spec.state_size * spec.rope_fraction) // 2
    in_columns = (
        2 * d_in
        + 2 * spec.state_size * spec.num_groups * spec.mimo_rank
        + 3 * spec.num_heads
        + num_angles
    )
    matmul = hidden_size * in_columns + d_in * hidden_size
    mimo_factors = 3 * spec.num_heads * spec.mimo_rank * spec.head_dim if spec.mimo_rank > 1 else 0
    vectors = (
        spec.num_heads  # dt_bias
        + 2 * spec.state_size  # RMSNorm of B and C
        + 2 * spec.num_heads * spec.mimo_rank * spec.state_size  # q_bias, k_bias
        + spec.num_heads  # D
        + (d_in if spec.output_norm else 0)
    )
    total = matmul + mimo_factors + vectors + hidden_size
    return BlockParams(total=total, active=total, matmul=matmul)


def recurrent_conv_channels(spec: RecurrentSpec) -> int:
    """Channels of the depthwise convolution of `R`: q (K), k (K) and v (H·V)."""
    return 2 * spec.key_dim + spec.num_heads * spec.value_dim


def recurrent_params(spec: RecurrentSpec, hidden_size: int) -> BlockParams:
    """`R`: input projection d→(q K + k K + v H·V + forget H + gate H·V), depthwise causal convolution of width
    conv_kernel_size with bias over q, k and v, state weight H×V×V, A_log H, dt_bias H, D H×V, output RMSNorm H·V,
    out_proj H·V×d.

    One q head and one k head serve all H value, forget, gate and state heads.
    """
    width = spec.num_heads * spec.value_dim
    channels = recurrent_conv_channels(spec)
    matmul = hidden_size * (channels + spec.num_heads + width) + width * hidden_size
    vectors = (
        channels * (spec.conv_kernel_size + 1)
        + spec.num_heads * spec.value_dim**2  # state weight
        + 2 * spec.num_heads  # A_log, dt_bias
        + 2 * width  # D, output RMSNorm
    )
    total = matmul + vectors + hidden_size
    return BlockParams(total=total, active=total, matmul=matmul)


def grouped_query_params(spec: GroupedQuerySpec, hidden_size: int) -> BlockParams:
    """`G`: W_q d×H·D, W_k and W_v d×H_kv·D, W_o H·D×d, with qk_norm two RMSNorms over D."""
    q_width, kv_width = spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim
    matmul = hidden_size * (2 * q_width + 2 * kv_width)
    total = matmul + (2 * spec.head_dim if spec.qk_norm else 0) + hidden_size
    return BlockParams(total=total, active=total, matmul=matmul)


def mlp_params(spec: MlpSpec, hidden_size: int) -> BlockParams:
    """`D`: W_in d×F (2F for swiglu) and W_out F×d."""
    matrices = 3 if spec.activation == "swiglu" else 2
    matmul = matrices * hidden_size * spec.mlp_hidden_size
    return BlockParams(total=matmul + hidden_size, active=matmul + hidden_size, matmul=matmul)


def mtp_params(
    spec: MtpSpec, attention: AttentionSpec | GroupedQuerySpec, hidden_size: int
) -> BlockParams:
    """One MTP block: RMSNorm of the hidden state and of the embedding, projection 2d×d, a dense attention sub-layer and
    an MLP sub-layer of width F_mtp, each with its pre-norm, and a final RMSNorm. Head and embedding are the model's.
    """
    parts = (
        attention_params(attention, hidden_size)
        if isinstance(attention, AttentionSpec)
        else grouped_query_params(attention, hidden_size),
        mlp_params(
            MlpSpec(mlp_hidden_size=spec.mlp_hidden_size, activation=spec.activation), hidden_size
        ),
    )
    projection = 2 * hidden_size * hidden_size
    total = projection + 3 * hidden_size + sum(part.total for part in parts)
    return BlockParams(
        total=total, active=total, matmul=projection + sum(part.matmul for part in parts)
    )


def mtp_attention(model: ModelSpec) -> AttentionSpec | GroupedQuerySpec | None:
    """The attention of an MTP block: MLA where the model has its table, else grouped-query attention."""
    return model.attention or model.grouped_query


def ngram_params(spec: NgramEmbeddingSpec, hidden_size: int) -> BlockParams:
    """N-gram hash embedding: per order and head a table of num_rows × head_dim, and one projection to d."""
    width = len(spec.orders) * spec.num_heads * spec.head_dim
    total = width * spec.num_rows + width * hidden_size
    return BlockParams(total=total, active=total, matmul=width * hidden_size)
