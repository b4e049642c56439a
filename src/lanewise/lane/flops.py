"""Parameters and FLOPs of a lane by formula, per component: convention `lanewise-1`.

Forward FLOPs per token, S = sequence length, multiply and add counted as two:

- linear maps: 2 × entries of the matrices a token meets; MoE counts router, shared expert and top-k experts.
- causal attention core: 2·H·(d_qk + d_v)·(S+1)/2 with MLA expanded to heads, never absorbed.
- DSA core: (S+1)/2 becomes k − k(k−1)/(2S) for S > k. Indexer scores 2·H_I·(D_I+1)·(S+1)/2 on the layers that compute
  an index.
- SSM core: max(7, 4R)·d_inner·N. 7 is the Mamba-3 SISO recurrence per state element (decay 1, two rank-1 updates 4,
  readout 2); with MIMO rank R the products of R keys and R queries dominate, 2R + 2R.
- Mamba-2 core: 5·d_inner·N (decay 1, rank-1 update 2, readout 2) and its depthwise convolution, 2·J·(d_inner + 2·G·N);
  dt·x is formed once for all N state elements and, like skip and gate, is not counted.
- M2RNN core: H·K·V·(2V + 7) (h·W 2V, k·vᵀ 2, gated update 3, readout 2) and its depthwise convolution.
- MTP: block, projection and logits of every depth, also where depths share a block. LM head yes; embedding lookups, norms and activations no.

Training FLOPs are 3 × forward. The DSA indexer's projections take detached inputs, so they have no input gradient: 2 ×;
without its loss (`indexer_loss_coefficient = 0`) the indexer has no backward: 1 ×. In the dense warm-up attention is dense
and everything but the indexers is frozen: 1 ×. Recomputation is never counted, nor what a loss takes from attention again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from lanewise.errors import LaneError
from lanewise.lane import params
from lanewise.lane.index_layers import index_roles, is_dense_warmup
from lanewise.lane.params import BlockParams
from lanewise.lane.pattern import TABLE_OF_LETTER, layer_letters
from lanewise.lane.schema import (
    AttentionSpec,
    GroupedQuerySpec,
    Lane,
    MambaSpec,
    ModelSpec,
    MtpSpec,
    RecurrentSpec,
    SparseAttentionSpec,
)

CONVENTION = "lanewise-1"
CONVENTION_VERSION = "1.0.0"
CAUSAL_FACTOR = "(S+1)/2"
MLA_FORM: Literal["expanded"] = "expanded"


@dataclass(frozen=True, kw_only=True, slots=True)
class Term:
    """One addend of a component's FLOPs.

    Attributes:
        kind: `linear` for matrix products with weights, `core` for everything else.
        forward: forward FLOPs per token.
        training_factor: training FLOPs ÷ forward FLOPs.
        is_indexer: whether it belongs to the DSA indexer, which is trained by its own loss.
    """

    kind: Literal["linear", "core"]
    forward: float
    training_factor: int = 3
    is_indexer: bool = False

    @property
    def training(self) -> float:
        """Training FLOPs per token."""
        return self.forward * self.training_factor


@dataclass(frozen=True, kw_only=True, slots=True)
class Component:
    """`count` equal parts of the model and the FLOPs of one of them.

    Attributes:
        name: e.g. `mamba` or `attention_sparse_own_index`.
        count: how many the lane has.
        params: parameters of one.
        terms: FLOPs per token of one.
    """

    name: str
    count: int
    params: BlockParams
    terms: tuple[Term, ...] = ()

    def training(self, kind: Literal["linear", "core"]) -> float:
        """Training FLOPs per token of one, of one kind."""
        return sum(term.training for term in self.terms if term.kind == kind)


@dataclass(frozen=True, kw_only=True, slots=True)
class ComponentFlops:
    """One row of a receipt's FLOP table: sums over all `count` parts."""

    component: str
    count: int
    params: int
    active_params: int
    forward_flops_per_token: float
    training_flops_per_token: float


@dataclass(frozen=True, kw_only=True, slots=True)
class LaneFlops:
    """The lane numerator, shared by every arm, so that no feature can buy utilisation."""

    convention: str
    convention_version: str
    causal_factor: str
    mla_form: Literal["expanded", "absorbed"]
    components: tuple[ComponentFlops, ...]
    params_total: int
    params_active: int
    forward_flops_per_token: float
    training_flops_per_token: float
    tokens_per_step: int
    """Tokens of one optimizer step on one data-parallel rank."""

    @property
    def training_flops_per_step(self) -> float:
        """Training FLOPs of one optimizer step on one data-parallel rank."""
        return self.training_flops_per_token * self.tokens_per_step


def lane_flops(lane: Lane) -> LaneFlops:
    """Count a lane.

    Raises:
        LaneError: a letter of the pattern has no table.
    """
    rows = tuple(_row(component) for component in components(lane))
    batch = lane.batch
    return LaneFlops(
        convention=CONVENTION,
        convention_version=CONVENTION_VERSION,
        causal_factor=CAUSAL_FACTOR,
        mla_form=MLA_FORM,
        components=rows,
        params_total=sum(row.params for row in rows),
        params_active=sum(row.active_params for row in rows),
        forward_flops_per_token=sum(row.forward_flops_per_token for row in rows),
        training_flops_per_token=sum(row.training_flops_per_token for row in rows),
        tokens_per_step=(
            batch.sequence_length * batch.micro_batch_size * batch.gradient_accumulation_steps
        ),
    )


def components(lane: Lane) -> tuple[Component, ...]:
    """The lane's components from input to output, each counted once with its multiplicity."""
    warmup = is_dense_warmup(lane.model)
    return tuple(
        _frozen(component) if warmup else component
        for component in (
            *_input_components(lane.model),
            *_layer_components(lane),
            *_output_components(lane),
        )
        if component.count
    )


def causal_keys(sequence_length: int) -> float:
    """Mean number of keys a token sees in dense causal attention: (S+1)/2."""
    return (sequence_length + 1) / 2


def selected_keys(sequence_length: int, top_k: int) -> float:
    """Mean number of keys of a token that keeps at most `top_k` of those it sees: k − k(k−1)/(2S) for S > k."""
    if sequence_length <= top_k:
        return causal_keys(sequence_length)
    return top_k - top_k * (top_k - 1) / (2 * sequence_length)


def _input_components(model: ModelSpec) -> Iterator[Component]:
    yield _parameters_only("embedding", model.vocab_size * model.hidden_size)
    if model.ngram_embedding:
        block = params.ngram_params(model.ngram_embedding, model.hidden_size)
        yield Component(name="ngram_embedding", count=1, params=block, terms=(_linear(block),))


def _layer_components(lane: Lane) -> Iterator[Component]:
    model = lane.model
    counts = Counter(layer_letters(model))
    for letter in counts:
        table = TABLE_OF_LETTER[letter]
        if getattr(model, table) is None:
            raise LaneError(f"model.pattern has {letter}, which needs the table [model.{table}]")
    if model.attention:
        yield from _attention_components(lane, model.attention)
    if model.moe:
        moe = params.moe_params(model.moe, model.hidden_size)
        yield Component(name="moe", count=counts["E"], params=moe, terms=(_linear(moe),))
    if model.mamba:
        mamba = params.mamba_params(model.mamba, model.hidden_size)
        terms = (_linear(mamba), _ssm_core(model.mamba))
        yield Component(name="mamba", count=counts["M"], params=mamba, terms=terms)
    if model.recurrent:
        recurrent = params.recurrent_params(model.recurrent, model.hidden_size)
        terms = (_linear(recurrent), _recurrent_core(model.recurrent))
        yield Component(name="recurrent", count=counts["R"], params=recurrent, terms=terms)
    if model.grouped_query:
        grouped = params.grouped_query_params(model.grouped_query, model.hidden_size)
        core = _grouped_query_core(model.grouped_query, causal_keys(lane.batch.sequence_length))
        yield Component(
            name="grouped_query", count=counts["G"], params=grouped, terms=(_linear(grouped), core)
        )
    if model.mlp:
        mlp = params.mlp_params(model.mlp, model.hidden_size)
        yield Component(name="mlp", count=counts["D"], params=mlp, terms=(_linear(mlp),))


def _attention_components(lane: Lane, attention: AttentionSpec) -> Iterator[Component]:
    hidden_size, sequence_length = lane.model.hidden_size, lane.batch.sequence_length
    sparse = attention.sparse
    roles = Counter(index_roles(lane.model))
    dense = params.attention_params(attention, hidden_size)
    yield Component(
        name="attention_dense",
        count=roles["dense"],
        params=dense,
        terms=(_linear(dense), _attention_core(attention, causal_keys(sequence_length))),
    )
    if sparse is None:
        return
    warmup = is_dense_warmup(lane.model)
    keys = sequence_length if warmup else sparse.top_k
    core = _attention_core(attention, selected_keys(sequence_length, keys))
    yield Component(
        name="attention_sparse_reused_index",
        count=roles["shared"],
        params=dense,
        terms=(_linear(dense), core),
    )
    with_indexer = params.attention_params(attention, hidden_size, indexer=sparse)
    yield Component(
        name="attention_sparse_own_index",
        count=roles["full"] + roles["promoted"],
        params=with_indexer,
        terms=(_linear(dense), core, *_indexer_terms(with_indexer, sparse, sequence_length)),
    )


def _output_components(lane: Lane) -> Iterator[Component]:
    model = lane.model
    yield _parameters_only("final_norm", model.hidden_size)
    matrix = model.vocab_size * model.hidden_size
    head = BlockParams(total=matrix, active=matrix, matmul=matrix)
    yield Component(name="lm_head", count=1, params=head, terms=(_linear(head),))
    if model.mtp:
        yield from _mtp_components(lane, model.mtp)


def _mtp_components(lane: Lane, mtp: MtpSpec) -> Iterator[Component]:
    model = lane.model
    attention = params.mtp_attention(model)
    if attention is None:
        raise LaneError("model.mtp needs [model.attention] or [model.grouped_query]")
    keys = causal_keys(lane.batch.sequence_length)
    core = (
        _attention_core(attention, keys)
        if isinstance(attention, AttentionSpec)
        else _grouped_query_core(attention, keys)
    )
    block = params.mtp_params(mtp, attention, model.hidden_size)
    num_blocks = 1 if mtp.sharing == "shared" else mtp.depth
    yield Component(name="mtp_block", count=num_blocks, params=block, terms=(_linear(block), core))
    yield Component(
        name="mtp_block_reused",
        count=mtp.depth - num_blocks,
        params=BlockParams(total=0, active=0, matmul=block.matmul),
        terms=(_linear(block), core),
    )
    head = BlockParams(total=0, active=0, matmul=model.vocab_size * model.hidden_size)
    yield Component(name="mtp_head", count=mtp.depth, params=head, terms=(_linear(head),))


def _parameters_only(name: str, count: int) -> Component:
    return Component(name=name, count=1, params=BlockParams(total=count, active=count, matmul=0))


def _linear(block: BlockParams) -> Term:
    return Term(kind="linear", forward=2.0 * (block.matmul - block.detached_matmul))


def _attention_core(attention: AttentionSpec, keys: float) -> Term:
    width = attention.qk_nope_head_dim + attention.qk_rope_head_dim + attention.v_head_dim
    return Term(kind="core", forward=2.0 * attention.num_heads * width * keys)


def _grouped_query_core(spec: GroupedQuerySpec, keys: float) -> Term:
    return Term(kind="core", forward=2.0 * spec.num_heads * 2 * spec.head_dim * keys)


def _indexer_terms(
    block: BlockParams, sparse: SparseAttentionSpec, sequence_length: int
) -> tuple[Term, Term]:
    is_trained = sparse.indexer_loss_coefficient > 0
    scores = (
        2.0 * sparse.index_num_heads * (sparse.index_head_dim + 1) * causal_keys(sequence_length)
    )
    return (
        Term(
            kind="linear",
            forward=2.0 * block.detached_matmul,
            training_factor=2 if is_trained else 1,
            is_indexer=True,
        ),
        Term(
            kind="core",
            forward=scores,
            training_factor=3 if is_trained else 1,
            is_indexer=True,
        ),
    )


def _ssm_core(mamba: MambaSpec) -> Term:
    d_inner = mamba.num_heads * mamba.head_dim
    if mamba.version == "mamba2":
        convolution = 2 * mamba.conv_kernel_size * params.mamba2_conv_channels(mamba)
        return Term(kind="core", forward=float(5 * d_inner * mamba.state_size + convolution))
    per_state_element = max(7, 4 * mamba.mimo_rank)
    return Term(kind="core", forward=float(per_state_element * d_inner * mamba.state_size))


def _recurrent_core(recurrent: RecurrentSpec) -> Term:
    state = recurrent.num_heads * recurrent.key_dim * recurrent.value_dim
    convolution = 2 * recurrent.conv_kernel_size * params.recurrent_conv_channels(recurrent)
    return Term(kind="core", forward=float(state * (2 * recurrent.value_dim + 7) + convolution))


def _frozen(component: Component) -> Component:
    """Without the backward of everything that is not an indexer."""
    terms = (t if t.is_indexer else replace(t, training_factor=1) for t in component.terms)
    return replace(component, terms=tuple(terms))


def _row(component: Component) -> ComponentFlops:
    return ComponentFlops(
        component=component.name,
        count=component.count,
        params=component.count * component.params.total,
        active_params=component.count * component.params.active,
        forward_flops_per_token=component.count * sum(term.forward for term in component.terms),
        training_flops_per_token=component.count * sum(term.training for term in component.terms),
    )
