"""The lane: everything that decides what is computed, in frozen pydantic models with unknown keys forbidden.

A lane file is TOML with these tables. Sizes are counts, times are steps, rates are per optimizer step. A setting the
schema knows but this version does not implement (a topology of several processes) is accepted here, counted by `flops`,
and refused by `train` (`lane.built`), so that `lane show nam56r` works on any machine.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from lanewise.lane.spec import (
    MIN_POSITIVE,
    Count,
    Name,
    NonNegativeCount,
    NonNegativeInt,
    NonNegativeNumber,
    PositiveNumber,
    Ratio,
    Spec,
)
from lanewise.lane.taxes import (
    DepthRoutingSpec,
    EngramSpec,
    HyperConnectionsSpec,
    MetadataEmbeddingsSpec,
    StpSpec,
)

FeatureState = str
Activation = Literal["gelu", "swiglu", "relu2"]
RecomputePolicy = Literal["none", "selective", "full"]
RopeBase = Annotated[float, Field(ge=1.0, le=1e12)]
Degree = Annotated[int, Field(gt=0, le=65_536)]
"""Of a kind of parallelism: how many ranks share the work."""


class SparseAttentionSpec(Spec):
    """DeepSeek sparse attention (DSA): lightning indexer, top-k selection, index cache."""

    top_k: Count
    index_num_heads: Count
    index_head_dim: Count
    layer_ranks: tuple[NonNegativeCount, ...]
    """Ranks among the A layers (0-based) that are sparse; the others stay dense."""
    full_ranks: tuple[NonNegativeCount, ...]
    """Ranks among the sparse layers (0-based) that compute the index; the others reuse the nearest earlier one. A layer
    without an earlier one is promoted to computing its own."""
    indexer_loss_coefficient: NonNegativeNumber = 1e-3
    """Weight of the KL loss that trains the indexer; 0 leaves the indexer untrained and its backward out."""
    stage: Literal["sparse", "dense_warmup"] = "sparse"
    """`dense_warmup` attends densely and trains the indexers alone, everything else frozen."""


class AttentionSpec(Spec):
    """`A`: multi-head latent attention with a decoupled RoPE slice."""

    num_heads: Count
    q_lora_rank: Count
    kv_lora_rank: Count
    qk_nope_head_dim: Count
    qk_rope_head_dim: Count
    v_head_dim: Count
    rope_theta: RopeBase = 500_000.0
    form: Literal["expanded", "absorbed"] = "expanded"
    """How dense layers compute the core: keys and values per head, or in the latent space; equal up to rounding."""
    sparse: SparseAttentionSpec | None = None


class GroupedQuerySpec(Spec):
    """`G`: grouped-query attention with RoPE over the whole head."""

    num_heads: Count
    num_kv_heads: Count
    head_dim: Count
    rope_theta: RopeBase = 500_000.0
    qk_norm: bool = False
    """RMSNorm over the head dim of q and k before the rotation."""


class MlpSpec(Spec):
    """`D`: dense MLP."""

    mlp_hidden_size: Count
    activation: Activation = "swiglu"


class MoeSpec(Spec):
    """`E`: mixture of experts with a shared expert, no token dropped."""

    num_experts: Count
    top_k: Count
    expert_hidden_size: Count
    shared_expert_hidden_size: NonNegativeCount
    activation: Activation = "gelu"
    score_function: Literal["sigmoid", "softmax"] = "sigmoid"
    num_expert_groups: Count = 1
    top_k_groups: Count = 1
    """Groups a token may choose from, by the sum of their two best scores; equal to num_expert_groups is no limit."""
    real_slot_ratio: Annotated[float, Field(ge=0.01, le=1.0)] = 1.0
    """ρ: below 1, null slots join the choice (⌊E(1−ρ)/ρ⌋ of them, ⌈k/ρ⌉ picks) and picks of them compute nothing."""
    shared_expert_gate: bool = False
    """Multiply the shared expert's output by σ(w·x)."""
    routing_mode: Literal["learned", "forced_balanced", "replayed"] = "learned"
    """`forced_balanced` deals tokens to experts in turn, `replayed` takes recorded choices; gates stay learned."""
    routed_scaling_factor: PositiveNumber = 1.0
    bias_update: Literal["sign", "ema"] = "sign"
    """± a fixed step by the sign of the load error (DeepSeek-V3), or a clipped moving average of the error."""
    bias_update_rate: NonNegativeNumber = 1e-3
    aux_loss_coefficient: NonNegativeNumber = 1e-4
    """Weight of the load-balance loss when the tax `extra_aux_losses` is on."""
    z_loss_coefficient: NonNegativeNumber = 1e-3
    """Weight of the router z-loss when the tax `extra_aux_losses` is on."""


class MambaSpec(Spec):
    """`M`: Mamba-3, exponential-trapezoidal, rotated state, no convolution; or Mamba-2 (SSD)."""

    version: Literal["mamba3", "mamba2"] = "mamba3"
    num_heads: Count
    head_dim: Count
    state_size: Count
    num_groups: Count
    mimo_rank: Count = 1
    """1 is SISO; more is MIMO of that rank."""
    rope_fraction: Ratio = 0.5
    """Share of the state that rotates. Mamba-3 only, like decay_map, output_norm and a_floor: Mamba-2 has none of them."""
    chunk_size: Count = 64
    decay_map: Literal["reciprocal", "softplus"] = "reciprocal"
    output_norm: bool = False
    """RMSNorm per head before the gate (Mamba-3) instead of the gate alone; Mamba-2 always has its own gated norm."""
    conv_kernel_size: Count = 4
    """Taps of Mamba-2's convolution; Mamba-3 has none."""
    dt_min: PositiveNumber = 1e-3
    dt_max: PositiveNumber = 1e-1
    dt_floor: PositiveNumber = 1e-4
    a_floor: PositiveNumber = 1e-4


class RecurrentSpec(Spec):
    """`R`: M2RNN, a matrix-state recurrence with a tanh update and a forget gate."""

    num_heads: Count
    key_dim: Count
    value_dim: Count
    conv_kernel_size: Count = 4
    state_gradient_clip: PositiveNumber = 1.0
    """The gradient of the state is clipped to ± this value at every step of the backward pass."""


class MtpSpec(Spec):
    """Multi-token prediction: depth j embeds x[t+j] and predicts x[t+j+1] with a block of dense attention and MLP.

    The head is the model's own. Depth j weighs decay^(j−1) ÷ Σ decay^(i−1), times `loss_weight`.
    """

    depth: Count
    mlp_hidden_size: Count
    activation: Activation = "gelu"
    sharing: Literal["per_depth", "shared"] = "per_depth"
    """Own weights for every depth (Megatron, DeepSeek-V3), or one block applied `depth` times (FastMTP)."""
    loss_weight: NonNegativeNumber = 0.3
    loss_decay: Annotated[float, Field(gt=0.0, le=1.0)] = 0.6


class NgramEmbeddingSpec(Spec):
    """N-gram hash embedding added to the token embedding."""

    orders: tuple[Count, ...]
    num_heads: Annotated[int, Field(gt=0, le=1_024)]
    num_rows: Count
    head_dim: Count


class ModelSpec(Spec):
    """The network: a pattern of block letters tiled over `num_layers`, each letter one residual sub-layer."""

    family: Annotated[str, Field(pattern=r"^[a-z0-9]+$")]
    pattern: str
    num_layers: Annotated[int, Field(gt=0, le=10_000)]
    hidden_size: Count
    vocab_size: Count
    norm_eps: PositiveNumber = 1e-6
    init_std: Annotated[float, Field(ge=MIN_POSITIVE, le=10.0)] = 0.02
    attention: AttentionSpec | None = None
    moe: MoeSpec | None = None
    mamba: MambaSpec | None = None
    recurrent: RecurrentSpec | None = None
    grouped_query: GroupedQuerySpec | None = None
    mlp: MlpSpec | None = None
    mtp: MtpSpec | None = None
    ngram_embedding: NgramEmbeddingSpec | None = None
    stp: StpSpec = StpSpec()
    engram: EngramSpec = EngramSpec()
    hyper_connections: HyperConnectionsSpec = HyperConnectionsSpec()
    depth_routing: DepthRoutingSpec = DepthRoutingSpec()
    metadata_embeddings: MetadataEmbeddingsSpec = MetadataEmbeddingsSpec()


class BatchSpec(Spec):
    """How many tokens one optimizer step sees on one data-parallel rank."""

    sequence_length: Count
    micro_batch_size: Count
    gradient_accumulation_steps: Count = 1


class DataSpec(Spec):
    """Documents → tokens → packed rows. `source` is `stdlib` or a path; `tokenizer` is `bytes` or a JSON file."""

    source: Name = "stdlib"
    tokenizer: Name = "bytes"
    text_field: Name = "text"
    """The field or column that holds the text of a JSONL or Parquet document."""
    seed: NonNegativeInt = 0
    isolate_documents: bool = False
    """Whether blocks forget at document boundaries inside a packed row."""


class OptimizerSpec(Spec):
    """Cosine decay after a linear warm-up; weight decay on matrices only.

    `muon` updates matrices (experts as one batch) and leaves embeddings, head and vectors to AdamW.
    """

    name: Literal["adamw", "muon"] = "adamw"
    muon_momentum: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.95
    muon_num_iterations: Count = 5
    """Newton-Schulz iterations of every update."""
    learning_rate: PositiveNumber = 3e-4
    min_learning_rate: NonNegativeNumber = 3e-5
    warmup_steps: NonNegativeCount = 0
    decay_steps: Count = 10_000
    """Step at which the cosine reaches `min_learning_rate`; it stays there afterwards."""
    betas: tuple[Ratio, Ratio] = (0.9, 0.95)
    eps: PositiveNumber = 1e-8
    weight_decay: NonNegativeNumber = 0.1
    grad_clip_norm: NonNegativeNumber = 1.0
    """Global gradient norm; 0 turns clipping off."""


class PrecisionSpec(Spec):
    """Dtype of the matmuls and of the residual stream; parameters and optimizer state are fp32 masters."""

    compute: Literal["fp32", "bf16"] = "fp32"
    residual: Literal["fp32", "bf16"] = "fp32"


class TopologySpec(Spec):
    """Devices and how the model is spread over them.

    World size = dp_replicate × dp_shard × tp × cp × pp; `ep` and `etp` regroup those ranks and add none.
    """

    machine: str = "auto"
    """Machine class, e.g. `h100-sxm-80gb`; `auto` takes the machine the run finds. Not part of the lane digest."""
    nodes: Degree = 1
    dp_replicate: Degree = 1
    dp_shard: Degree = 1
    tp: Degree = 1
    sp: bool = False
    cp: Degree = 1
    pp: Degree = 1
    ep: Degree = 1
    etp: Degree = 1


class RecomputeSpec(Spec):
    """What each block family computes again in the backward pass instead of keeping it.

    `full` keeps a sub-layer's input only; `selective` keeps the results of matrix products and scans as well.
    """

    attention: RecomputePolicy = "none"
    moe: RecomputePolicy = "none"
    mamba: RecomputePolicy = "none"
    recurrent: RecomputePolicy = "none"
    grouped_query: RecomputePolicy = "none"
    mlp: RecomputePolicy = "none"
    mtp: RecomputePolicy = "none"


class ObservabilitySpec(Spec):
    """The three switches of the article's `observability` table. Not part of the lane digest."""

    goodput: bool = True
    """Account every second of wall time to goodput or a named badput."""
    temporal_perf: bool = True
    """Keep the per-step series (time, loss, tags) as a sidecar of the receipt."""
    measurements: bool = True
    """Measure peak memory, gradient norm and MoE expert load."""


class Lane(Spec):
    """One exactly named training problem."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_.-]*$", max_length=100)]
    model: ModelSpec
    batch: BatchSpec
    data: DataSpec = DataSpec()
    optimizer: OptimizerSpec = OptimizerSpec()
    precision: PrecisionSpec = PrecisionSpec()
    recompute: RecomputeSpec = RecomputeSpec()
    topology: TopologySpec = TopologySpec()
    seed: NonNegativeInt = 0
    """Seed of the initial weights."""
    features: dict[str, FeatureState] = Field(default_factory=dict)
    """Explicit feature states; unset features follow the ledger, else their stance. Not part of the lane digest."""
    ops: dict[str, str] = Field(default_factory=dict)
    """Backends named by hand per op (`--set ops.ssm_scan=chunked.torch`). Not part of the lane digest."""
    observability: ObservabilitySpec = ObservabilitySpec()
