"""Block `A`, sparse: DeepSeek sparse attention (DeepSeek-V3.2-Exp, 2025, eqs. 1–4) on MLA in absorbed form.

    key_ids = top-k of the indexer's scores among the keys a token sees; a shared layer takes those of an earlier layer
    out = W_o W_uv softmax(scale · [q_nope W_uk | R(q_rope)] · [c | R(k_rope)], over key_ids) c
    aux_losses["indexer"] = coefficient · KL(mean over heads of that softmax ‖ softmax of the index scores on key_ids)

In the dense warm-up attention is dense, the KL is taken over all visible keys, and the indexer alone is trained
(`models.indexer.freeze_all_but_indexers`). Legend as in `models.mla` and `models.indexer`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lanewise.lane.index_layers import IndexRole, computes_index
from lanewise.lane.schema import AttentionSpec, SparseAttentionSpec
from lanewise.models.attention import Attention
from lanewise.models.indexer import Indexer, IndexVectors
from lanewise.models.layers import (
    NO_CONTEXT,
    NO_LOSSES,
    Block,
    BlockOutput,
    BlockState,
    Context,
)
from lanewise.models.mla import MlaProjections
from lanewise.ops.opset import OpSet


class SparseState(NamedTuple):
    """What sparse attention carries from token to token.

    Attributes:
        keys: latent and rotated rope key of all tokens so far [B, T, C+D_r].
        index_keys: rotated keys of the indexer [B, T, D_I]; [B, T, 0] in a shared layer.
    """

    keys: Tensor
    index_keys: Tensor


class SparseAttention(Block):
    """Sparse MLA sub-layer.

    Args:
        spec: sizes of the block, with a sparse table.
        role: `full` and `promoted` layers have an indexer and return what they select in `BlockOutput.key_ids`; a
            `shared` layer attends to `Context.key_ids`.
        hidden_size: d.
        sequence_length: longest T of training.
        eps: of the norms.
        ops: the op set of the model.
    """

    def __init__(
        self,
        spec: AttentionSpec,
        role: IndexRole,
        *,
        hidden_size: int,
        sequence_length: int,
        eps: float,
        ops: OpSet,
    ) -> None:
        super().__init__()
        self.sparse = require_sparse(spec)
        self.ops = ops
        self.mla = MlaProjections(
            spec, hidden_size=hidden_size, sequence_length=sequence_length, eps=eps
        )
        self.indexer = (
            Indexer(self.sparse, spec, hidden_size=hidden_size, eps=eps)
            if computes_index(role)
            else None
        )

    def reset_parameters(
        self, *, std: float, output_std: float, generator: torch.Generator
    ) -> None:
        """Draw every weight from N(0, std²), the output projection from N(0, output_std²)."""
        self.mla.reset_parameters(std=std, output_std=output_std, generator=generator)
        if self.indexer is not None:
            self.indexer.reset_parameters(std=std, generator=generator)

    def forward(self, x: Tensor, context: Context = NO_CONTEXT) -> BlockOutput:
        """Attend over [B, T, d] to the selected keys.

        Raises:
            ValueError: a shared layer is given no keys.
        """
        mla, sparse = self.mla, self.sparse
        cos, sin = mla.rope(0, x.shape[1], x)
        query_latents = mla.query_latents(x)
        q = mla.absorbed_queries(mla.queries(query_latents), cos, sin)
        keys = mla.latent_keys(x, cos, sin)
        if self.indexer is None:
            return BlockOutput(self._attend(q, keys, _given(context))[0])
        index: IndexVectors = self.indexer(x, query_latents, cos, sin)
        key_ids = self.ops.index_topk(*index, sparse.top_k, context.document_ids)
        delta, target = self._attend(q, keys, key_ids)
        losses = NO_LOSSES
        if sparse.indexer_loss_coefficient > 0:
            loss = self.ops.indexer_loss(*index, key_ids, target)
            losses = {"indexer": sparse.indexer_loss_coefficient * loss}
        return BlockOutput(delta, losses, key_ids=key_ids)

    def extend(
        self, x: Tensor, state: BlockState | None, context: Context = NO_CONTEXT
    ) -> tuple[BlockOutput, SparseState]:
        """Attend from the next tokens to the keys selected among all so far.

        Raises:
            ValueError: a shared layer is given no keys.
        """
        mla = self.mla
        before = None if state is None else SparseState(*state)
        past = 0 if before is None else before.keys.shape[1]
        cos, sin = mla.rope(past, past + x.shape[1], x)
        query_latents = mla.query_latents(x)
        q = mla.absorbed_queries(mla.queries(query_latents), cos, sin)
        keys = mla.latent_keys(x, cos, sin)
        if self.indexer is None:
            after = _append(before, keys, x.new_empty(*x.shape[:2], 0))
            return BlockOutput(self._attend(q, after.keys, _given(context))[0]), after
        index: IndexVectors = self.indexer(x, query_latents, cos, sin)
        after = _append(before, keys, index.k)
        key_ids = self.ops.index_topk(index.q, after.index_keys, index.weights, self.sparse.top_k)
        delta, _ = self._attend(q, after.keys, key_ids)
        return BlockOutput(delta, key_ids=key_ids), after

    def _attend(self, q: Tensor, keys: Tensor, key_ids: Tensor) -> tuple[Tensor, Tensor]:
        """The block's output [B, T, d], and the heads' mean probability of every selected key [B, T, k]."""
        mla = self.mla
        latent_values, probability = self.ops.sparse_attention(
            q, keys, key_ids, mla.scale, mla.spec.kv_lora_rank
        )
        return mla.project_out(mla.expand_values(latent_values)), probability


class WarmupAttention(Attention):
    """Dense MLA whose indexer learns to rank keys as dense attention does, before it may select any.

    Parameters have the names of the sparse block's, which takes them over. Arguments as `Attention`; the spec has a sparse
    table.
    """

    def __init__(
        self,
        spec: AttentionSpec,
        *,
        hidden_size: int,
        sequence_length: int,
        eps: float,
        ops: OpSet,
    ) -> None:
        super().__init__(
            spec, hidden_size=hidden_size, sequence_length=sequence_length, eps=eps, ops=ops
        )
        self.sparse = require_sparse(spec)
        self.indexer = Indexer(self.sparse, spec, hidden_size=hidden_size, eps=eps)

    def reset_parameters(
        self, *, std: float, output_std: float, generator: torch.Generator
    ) -> None:
        """Draw every weight from N(0, std²), the output projection from N(0, output_std²)."""
        super().reset_parameters(std=std, output_std=output_std, generator=generator)
        self.indexer.reset_parameters(std=std, generator=generator)

    def forward(self, x: Tensor, context: Context = NO_CONTEXT) -> BlockOutput:
        """Attend densely over [B, T, d] and score the indexer against it."""
        output = super().forward(x, context)
        mla = self.mla
        cos, sin = mla.rope(0, x.shape[1], x)
        # Attention's probabilities are a target: taken from the absorbed form, whose scores are the same in any form.
        with torch.no_grad():
            query_latents = mla.query_latents(x)
            q = mla.absorbed_queries(mla.queries(query_latents), cos, sin)
            keys = mla.latent_keys(x, cos, sin)
        index: IndexVectors = self.indexer(x, query_latents, cos, sin)
        loss = self.ops.indexer_warmup_loss(*index, q, keys, mla.scale, context.document_ids)
        losses = {"indexer": self.sparse.indexer_loss_coefficient * loss}
        return output._replace(aux_losses={**output.aux_losses, **losses})


def require_sparse(spec: AttentionSpec) -> SparseAttentionSpec:
    """The sparse table of a spec that must have one."""
    if spec.sparse is None:
        raise ValueError("sparse attention was built without [model.attention.sparse]")
    return spec.sparse


def _given(context: Context) -> Tensor:
    if context.key_ids is None:
        raise ValueError(
            "a layer that shares its index was given no key_ids in its context; a layer with an indexer must run first "
            "and the model pass its selection on"
        )
    return context.key_ids


def _append(before: SparseState | None, keys: Tensor, index_keys: Tensor) -> SparseState:
    if before is None:
        return SparseState(keys, index_keys)
    return SparseState(
        torch.cat([before.keys, keys], dim=1), torch.cat([before.index_keys, index_keys], dim=1)
    )
