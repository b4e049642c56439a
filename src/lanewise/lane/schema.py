"""The lane: everything that decides what is computed, in frozen pydantic models with unknown keys forbidden.

A lane file is TOML with these tables. Sizes are counts, times are steps, rates are per optimizer step. A setting the
schema knows but this version does not implement is accepted here, counted by `flops`, and refused by `train`
(`lane.built`), so that `lane show nam56r` works before every block exists.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt

Ratio = Annotated[float, Field(ge=0.0, le=1.0)]
NonNegativeFloat = Annotated[float, Field(ge=0.0)]
NonNegativeInt = Annotated[int, Field(ge=0)]
FeatureState = str


class Spec(BaseModel):
    """Base of every table of a lane: immutable, strict about unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class SparseAttentionSpec(Spec):
    """DeepSeek sparse attention (DSA): lightning indexer, top-k selection, index cache."""

    top_k: PositiveInt
    index_num_heads: PositiveInt
    index_head_dim: PositiveInt
    layer_ranks: tuple[NonNegativeInt, ...]
    """Ranks among the A layers (0-based) that are sparse; the others stay dense."""
    full_ranks: tuple[NonNegativeInt, ...]
    """Ranks among the sparse layers (0-based) that compute the index; the others reuse the nearest earlier one."""
    indexer_loss_coefficient: NonNegativeFloat = 1e-3


class AttentionSpec(Spec):
    """`A`: multi-head latent attention with a decoupled RoPE slice."""

    num_heads: PositiveInt
    q_lora_rank: PositiveInt
    kv_lora_rank: PositiveInt
    qk_nope_head_dim: PositiveInt
    qk_rope_head_dim: PositiveInt
    v_head_dim: PositiveInt
    rope_theta: PositiveFloat = 500_000.0
    sparse: SparseAttentionSpec | None = None


class MoeSpec(Spec):
    """`E`: mixture of experts with a shared expert, no token dropped."""

    num_experts: PositiveInt
    top_k: PositiveInt
    expert_hidden_size: PositiveInt
    shared_expert_hidden_size: NonNegativeInt
    activation: Literal["gelu", "swiglu", "relu2"] = "gelu"
    routed_scaling_factor: PositiveFloat = 1.0
    bias_update_rate: NonNegativeFloat = 1e-3
    aux_loss_coefficient: NonNegativeFloat = 1e-4
    """Weight of the load-balance loss when the tax `extra_aux_losses` is on."""
    z_loss_coefficient: NonNegativeFloat = 1e-3
    """Weight of the router z-loss when the tax `extra_aux_losses` is on."""


class MambaSpec(Spec):
    """`M`: Mamba-3, exponential-trapezoidal, rotated state, no convolution."""

    num_heads: PositiveInt
    head_dim: PositiveInt
    state_size: PositiveInt
    num_groups: PositiveInt
    mimo_rank: PositiveInt = 1
    """1 is SISO; more is MIMO of that rank."""
    rope_fraction: Ratio = 0.5
    chunk_size: PositiveInt = 64
    decay_map: Literal["reciprocal", "softplus"] = "reciprocal"
    dt_min: PositiveFloat = 1e-3
    dt_max: PositiveFloat = 1e-1
    dt_floor: PositiveFloat = 1e-4
    a_floor: PositiveFloat = 1e-4


class RecurrentSpec(Spec):
    """`R`: M2RNN, a matrix-state recurrence with a tanh update and a forget gate."""

    num_heads: PositiveInt
    key_dim: PositiveInt
    value_dim: PositiveInt
    conv_kernel_size: PositiveInt = 4
    state_gradient_clip: PositiveFloat = 1.0
    """The gradient of the state is clipped to ± this value at every step of the backward pass."""


class MtpSpec(Spec):
    """Multi-token prediction: `depth` extra blocks of attention and dense MLP, each with its head."""

    depth: PositiveInt
    mlp_hidden_size: PositiveInt
    loss_weight: NonNegativeFloat = 0.3


class NgramEmbeddingSpec(Spec):
    """N-gram hash embedding added to the token embedding."""

    orders: tuple[PositiveInt, ...]
    num_heads: PositiveInt
    num_rows: PositiveInt
    head_dim: PositiveInt


class ModelSpec(Spec):
    """The network: a pattern of block letters tiled over `num_layers`, each letter one residual sub-layer."""

    family: Annotated[str, Field(pattern=r"^[a-z0-9]+$")]
    pattern: str
    num_layers: PositiveInt
    hidden_size: PositiveInt
    vocab_size: PositiveInt
    norm_eps: PositiveFloat = 1e-6
    init_std: PositiveFloat = 0.02
    attention: AttentionSpec | None = None
    moe: MoeSpec | None = None
    mamba: MambaSpec | None = None
    recurrent: RecurrentSpec | None = None
    mtp: MtpSpec | None = None
    ngram_embedding: NgramEmbeddingSpec | None = None


class BatchSpec(Spec):
    """How many tokens one optimizer step sees on one data-parallel rank."""

    sequence_length: PositiveInt
    micro_batch_size: PositiveInt
    gradient_accumulation_steps: PositiveInt = 1


class DataSpec(Spec):
    """Documents → tokens → packed rows. `source` is `stdlib` or a path; `tokenizer` is `bytes` or a JSON file."""

    source: str = "stdlib"
    tokenizer: str = "bytes"
    text_field: str = "text"
    """The field or column that holds the text of a JSONL or Parquet document."""
    seed: NonNegativeInt = 0
    isolate_documents: bool = False
    """Whether blocks forget at document boundaries inside a packed row."""


class OptimizerSpec(Spec):
    """AdamW with cosine decay after a linear warm-up; weight decay on matrices only."""

    name: Literal["adamw", "muon"] = "adamw"
    learning_rate: PositiveFloat = 3e-4
    min_learning_rate: NonNegativeFloat = 3e-5
    warmup_steps: NonNegativeInt = 0
    decay_steps: PositiveInt = 10_000
    """Step at which the cosine reaches `min_learning_rate`; it stays there afterwards."""
    betas: tuple[Ratio, Ratio] = (0.9, 0.95)
    eps: PositiveFloat = 1e-8
    weight_decay: NonNegativeFloat = 0.1
    grad_clip_norm: NonNegativeFloat = 1.0
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
    nodes: PositiveInt = 1
    dp_replicate: PositiveInt = 1
    dp_shard: PositiveInt = 1
    tp: PositiveInt = 1
    sp: bool = False
    cp: PositiveInt = 1
    pp: PositiveInt = 1
    ep: PositiveInt = 1
    etp: PositiveInt = 1


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

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_.-]*$")]
    model: ModelSpec
    batch: BatchSpec
    data: DataSpec = DataSpec()
    optimizer: OptimizerSpec = OptimizerSpec()
    precision: PrecisionSpec = PrecisionSpec()
    topology: TopologySpec = TopologySpec()
    seed: NonNegativeInt = 0
    """Seed of the initial weights."""
    features: dict[str, FeatureState] = Field(default_factory=dict)
    """Explicit feature states; unset features follow the ledger, else their stance. Not part of the lane digest."""
    ops: dict[str, str] = Field(default_factory=dict)
    """Backends named by hand per op (`--set ops.ssm_scan=chunked.torch`). Not part of the lane digest."""
    observability: ObservabilitySpec = ObservabilitySpec()
