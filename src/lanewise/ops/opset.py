"""The ops of one model, each bound to its backend once: what blocks call and what receipts read."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from lanewise.errors import BackendError
from lanewise.ops import (
    add_norm,
    attention_core,
    index_topk,
    indexer_loss,
    indexer_warmup_loss,
    linear_cross_entropy,
    m2rnn_scan,
    mimo_scan,
    mla_ingress,
    moe_experts,
    optimizer_step,
    sparse_attention,
    ssd_scan,
    ssm_scan,
)
from lanewise.ops.dispatch import choose, did_you_mean, load
from lanewise.ops.observe import Launch, LaunchCounters, Observation
from lanewise.ops.registry import SPECS
from lanewise.ops.spec import Capabilities, Choice, Problem


class OpSet:
    """The ops a model calls. Each method is documented in the module of its op.

    Blocks hold one `OpSet` and never name a backend. Build it with `resolve`.
    """

    def __init__(self, launches: Mapping[str, Launch], counters: LaunchCounters) -> None:
        self._launches = dict(launches)
        self._counters = counters

    @classmethod
    def resolve(
        cls,
        preferences: Mapping[str, tuple[str, ...]],
        problems: Mapping[str, Problem],
        capabilities: Capabilities,
    ) -> OpSet:
        """Choose and import a backend for every op that has a problem.

        Args:
            preferences: op → backends to try in order; a missing op or an empty tuple follows the op's own order.
                Ops without a problem are not resolved, whatever is preferred for them.
            problems: op → shapes and dtype of its call sites.
            capabilities: of the machine, from `dispatch.capabilities`.

        Raises:
            BackendError: an op or backend is unknown, or nothing that was asked for can run.
        """
        _refuse_unknown({*preferences, *problems})
        counters = LaunchCounters()
        launches = {}
        for op, problem in problems.items():
            spec = SPECS[op]
            choice = choose(spec, preferences.get(op, ()), problem, capabilities)
            backend = spec.backend(choice.chosen)
            assert backend is not None, "choose returns names of the table"
            launches[op] = Launch(choice, load(backend.target), counters)
        return cls(launches, counters)

    @property
    def choices(self) -> Mapping[str, Choice]:
        """Op → how its backend was chosen."""
        return MappingProxyType({op: launch.choice for op, launch in self._launches.items()})

    def observed(self) -> Mapping[str, Observation]:
        """Op → what ran since the last reset, for every resolved op."""
        return MappingProxyType({op: self._counters.observation(op) for op in self._launches})

    def reset_counters(self) -> None:
        """Forget eager launches, e.g. after warm-up; traces stay, since compiled code is not traced again."""
        self._counters.reset()

    @contextlib.contextmanager
    def wrapped(
        self, wrap: Callable[[str, Callable[..., Any]], Callable[..., Any]]
    ) -> Iterator[None]:
        """Run every op's backend through `wrap(op, function)` for a while; nothing is left of it afterwards.

        Ops traced into compiled code stay as they are: with another function they would be compiled anew.
        """
        eager = [
            (op, launch, launch.function)
            for op, launch in self._launches.items()
            if self._counters.observation(op).proof != "trace"
        ]
        for op, launch, function in eager:
            launch.function = wrap(op, function)
        try:
            yield
        finally:
            for _op, launch, function in eager:
                launch.function = function

    def _launch(self, op: str) -> Launch:
        if op not in self._launches:
            raise BackendError(
                f"op {op} was called and no backend was chosen for it; add it to the problems "
                f"given to OpSet.resolve (resolved: {', '.join(sorted(self._launches)) or 'none'})"
            )
        return self._launches[op]

    def add_norm(
        self, x: Tensor, residual: Tensor | None, weight: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        """Residual add and RMSNorm; see `ops.add_norm`."""
        return add_norm.add_norm(self._launch("add_norm"), x, residual, weight, eps)

    def mla_ingress(
        self, q: Tensor, kv: Tensor, k_rope: Tensor, cos: Tensor, sin: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Rotate and assemble q, k, v of MLA; see `ops.mla_ingress`."""
        return mla_ingress.mla_ingress(self._launch("mla_ingress"), q, kv, k_rope, cos, sin)

    def attention_core(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        scale: float,
        document_ids: Tensor | None = None,
    ) -> Tensor:
        """Causal softmax attention; see `ops.attention_core`."""
        return attention_core.attention_core(
            self._launch("attention_core"), q, k, v, scale, document_ids
        )

    def index_topk(
        self,
        q_index: Tensor,
        k_index: Tensor,
        weights: Tensor,
        top_k: int,
        document_ids: Tensor | None = None,
    ) -> Tensor:
        """Keys with the highest index scores; see `ops.index_topk`."""
        run = self._launch("index_topk")
        return index_topk.index_topk(run, q_index, k_index, weights, top_k, document_ids)

    def sparse_attention(
        self, q: Tensor, keys: Tensor, key_ids: Tensor, scale: float, num_value_dims: int
    ) -> tuple[Tensor, Tensor]:
        """Attention over selected keys; see `ops.sparse_attention`."""
        run = self._launch("sparse_attention")
        return sparse_attention.sparse_attention(run, q, keys, key_ids, scale, num_value_dims)

    def indexer_loss(
        self, q_index: Tensor, k_index: Tensor, weights: Tensor, key_ids: Tensor, target: Tensor
    ) -> Tensor:
        """KL of the indexer on the selected keys; see `ops.indexer_loss`."""
        run = self._launch("indexer_loss")
        return indexer_loss.indexer_loss(run, q_index, k_index, weights, key_ids, target)

    def indexer_warmup_loss(
        self,
        q_index: Tensor,
        k_index: Tensor,
        weights: Tensor,
        q: Tensor,
        keys: Tensor,
        scale: float,
        document_ids: Tensor | None = None,
    ) -> Tensor:
        """KL of the indexer against dense attention; see `ops.indexer_warmup_loss`."""
        run = self._launch("indexer_warmup_loss")
        return indexer_warmup_loss.indexer_warmup_loss(
            run, q_index, k_index, weights, q, keys, scale, document_ids
        )

    def moe_experts(
        self,
        x: Tensor,
        expert_ids: Tensor,
        gates: Tensor,
        w_in: Tensor,
        w_out: Tensor,
        activation: str,
    ) -> Tensor:
        """Chosen experts of every token, summed by gate; see `ops.moe_experts`."""
        return moe_experts.moe_experts(
            self._launch("moe_experts"), x, expert_ids, gates, w_in, w_out, activation
        )

    def ssm_scan(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        dt: Tensor,
        a_dt: Tensor,
        trap: Tensor,
        angles: Tensor,
        q_bias: Tensor,
        k_bias: Tensor,
        skip: Tensor,
        z: Tensor | None,
        chunk_size: int,
        document_ids: Tensor | None = None,
    ) -> Tensor:
        """Mamba-3 scan; see `ops.ssm_scan`."""
        run = self._launch("ssm_scan")
        return ssm_scan.ssm_scan(
            run, q, k, v, dt, a_dt, trap, angles, q_bias, k_bias, skip, z, chunk_size, document_ids
        )

    def ssd_scan(
        self,
        x: Tensor,
        dt: Tensor,
        a: Tensor,
        b: Tensor,
        c: Tensor,
        skip: Tensor,
        chunk_size: int,
        document_ids: Tensor | None = None,
    ) -> Tensor:
        """Mamba-2 scan; see `ops.ssd_scan`."""
        run = self._launch("ssd_scan")
        return ssd_scan.ssd_scan(run, x, dt, a, b, c, skip, chunk_size, document_ids)

    def mimo_scan(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        dt: Tensor,
        a_dt: Tensor,
        trap: Tensor,
        angles: Tensor,
        q_bias: Tensor,
        k_bias: Tensor,
        skip: Tensor,
        z: Tensor | None,
        psi_x: Tensor,
        psi_z: Tensor | None,
        psi_o: Tensor | None,
        chunk_size: int,
        document_ids: Tensor | None = None,
    ) -> Tensor:
        """Mamba-3 MIMO scan; see `ops.mimo_scan`."""
        return mimo_scan.mimo_scan(
            self._launch("mimo_scan"), q, k, v, dt, a_dt, trap, angles, q_bias, k_bias, skip,
            z, psi_x, psi_z, psi_o, chunk_size, document_ids,
        )  # fmt: skip

    def m2rnn_scan(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        weight: Tensor,
        forget: Tensor,
        state_gradient_clip: float,
        document_ids: Tensor | None = None,
    ) -> Tensor:
        """Matrix-state recurrence; see `ops.m2rnn_scan`."""
        run = self._launch("m2rnn_scan")
        return m2rnn_scan.m2rnn_scan(
            run, q, k, v, weight, forget, state_gradient_clip, document_ids
        )

    def linear_cross_entropy(
        self, hidden: Tensor, weight: Tensor, targets: Tensor, ignore_index: int = -100
    ) -> Tensor:
        """Mean cross-entropy of a linear head; see `ops.linear_cross_entropy`."""
        return linear_cross_entropy.linear_cross_entropy(
            self._launch("linear_cross_entropy"), hidden, weight, targets, ignore_index
        )

    def optimizer_step(
        self,
        param_groups: Iterable[dict[str, object]],
        lr: float,
        betas: tuple[float, float],
        eps: float,
    ) -> torch.optim.Optimizer:
        """An optimizer whose `.step()` is the counted launch; see `ops.optimizer_step`."""
        return optimizer_step.optimizer_step(
            self._launch("optimizer_step"), param_groups, lr, betas, eps
        )


def _refuse_unknown(ops: set[str]) -> None:
    for op in sorted(ops - SPECS.keys()):
        raise BackendError(
            f"no op is called '{op}'.{did_you_mean(op, SPECS)} Ops: {', '.join(SPECS)}."
        )
