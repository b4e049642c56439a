"""The router of a mixture of experts: which experts a token visits and with what weight.

    s = σ(W_r x), or softmax(W_r x), in fp32                 scores of E real experts and M null slots
    picks = top-k_max of s + b                               the bias steers the choice only (DeepSeek-V3, arXiv 2412.19437)
    g_i = s_i / Σ_{real picks} s · routed_scaling_factor     gates; 0 for picks of null slots

Groups (DeepSeek-V3 §2.1.2): experts stand in `num_expert_groups` equal groups; a token may choose only from the
`top_k_groups` groups whose two best values of s + b sum highest. Null slots belong to no group and can always be picked.

Null slots (null experts: AdaMoE, arXiv 2406.13233; numbers in `lane.expert_slots`): all M copies share the logit 0 and
one bias. Their score never reaches a gate, so a learned logit would get no gradient; what moves them is the bias, which
balances the load per copy against the load per expert, and thereby the share of null picks towards M / (E + M). Equal
values make a null slot a threshold: experts above it are picked first, the picks left over compute nothing. A pick of
a null slot has id −1 and gate 0; a token whose picks are all null has gates 0.

Bias update, once per optimizer step, from the picks per slot n_i since the last one (a null copy counts n_null / M):

    sign    b_i ← b_i + rate · sign(mean n − n_i)                                                    DeepSeek-V3
    ema     e_i = (mean n − n_i) / mean n,  m_i ← β m_i + (1 − β) e_i,  b_i ← b_i + rate · clip(m_i, −1, 1),  β = 0.9

`ema` is the clipped moving average of the load error towards the uniform load; the clip keeps its step within that of
`sign`. Neither is trained by gradients. Routing that is dealt leaves both alone: its load is not the router's doing. So does
a rate of 0, which the dense warm-up of sparse attention sets.

Legend: S tokens, d hidden, E experts, M null slots, k picks.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lanewise.lane.expert_slots import num_null_slots, num_picks
from lanewise.lane.schema import MoeSpec
from lanewise.models.layers import init_normal, keep_fp32

NULL_ID = -1
"""Id of a pick that computes nothing."""
LOAD_ERROR_DECAY = 0.9
"""β of the moving average of the load error."""
LEAST_SCORE_SUM = 1e-30
"""Scores of a token that sum to less are not normalised."""
GROUP_SCORE_EXPERTS = 2
"""Experts whose best values make the score of a group."""


class Routing(NamedTuple):
    """The routing of S tokens.

    Attributes:
        expert_ids: int64 [S, k], each in [0, E) or −1.
        gates: [S, k] in the dtype of the router, 0 where the id is −1.
        logits: [S, E] of the real experts.
        scores: [S, E] of the real experts.
    """

    expert_ids: Tensor
    gates: Tensor
    logits: Tensor
    scores: Tensor


class Router(nn.Module):
    """Scores, choice, gates, and the bias that balances the load.

    Args:
        spec: the block's sizes and settings.
        hidden_size: d.

    Attributes:
        weight: fp32 [E, d], stays fp32 under mixed precision.
        bias: fp32 [E], or [E + 1] with the bias of all null slots last; a persistent buffer, not a parameter.
        load_error: fp32 like `bias`, the moving average of `ema`; a persistent buffer, None for `sign`.
        load: int64 [E + 1], picks since the last `update_bias`, those of null slots last; 0 between optimizer steps.
    """

    bias: Tensor
    load: Tensor
    load_error: Tensor | None

    def __init__(self, spec: MoeSpec, hidden_size: int) -> None:
        super().__init__()
        self.spec = spec
        self.num_null_slots = num_null_slots(spec)
        self.num_picks = num_picks(spec)
        self.weight = keep_fp32(nn.Parameter(torch.empty(spec.num_experts, hidden_size)))
        num_biases = spec.num_experts + (self.num_null_slots > 0)
        self.register_buffer("bias", torch.zeros(num_biases))
        self.register_buffer(
            "load_error", torch.zeros(num_biases) if spec.bias_update == "ema" else None
        )
        self.register_buffer(
            "load", torch.zeros(spec.num_experts + 1, dtype=torch.int64), persistent=False
        )

    def reset_parameters(self, *, std: float, generator: torch.Generator) -> None:
        """Draw the weight from N(0, std²)."""
        init_normal(self.weight, std, generator)

    def forward(self, tokens: Tensor, expert_ids: Tensor | None = None) -> Routing:
        """Route [S, d].

        Args:
            tokens: [S, d], any floating dtype.
            expert_ids: int64 [S, k] to follow instead of choosing (negative ids compute nothing); gates come from the scores of
                these experts.

        Raises:
            ValueError: `expert_ids` is not [S, k].
        """
        logits = F.linear(tokens.to(self.weight.dtype), self.weight)
        slots = F.pad(logits, (0, self.num_null_slots))
        slot_scores = (
            torch.softmax(slots, dim=-1)
            if self.spec.score_function == "softmax"
            else torch.sigmoid(slots)
        )
        scores = slot_scores[:, : self.spec.num_experts]
        if expert_ids is None:
            expert_ids = self.choose(slot_scores.detach())
        elif expert_ids.ndim != 2 or expert_ids.shape[0] != tokens.shape[0]:
            raise ValueError(
                f"the routing to follow is {list(expert_ids.shape)} and there are {tokens.shape[0]} tokens; "
                "give int64 [S, k] of this micro-batch"
            )
        return Routing(expert_ids, self._gates(scores, expert_ids), logits, scores)

    def choose(self, slot_scores: Tensor) -> Tensor:
        """The best slots by score and bias.

        Args:
            slot_scores: [S, E + M], those of the null slots last.

        Returns:
            int64 [S, k_max], −1 for null slots; best first.
        """
        num_experts = self.spec.num_experts
        biased = slot_scores + self._slot_bias()
        if self.spec.top_k_groups < self.spec.num_expert_groups:
            allowed = self._in_best_groups(biased[:, :num_experts])
            allowed = F.pad(allowed, (0, self.num_null_slots), value=True)
            biased = biased.masked_fill(~allowed, -torch.inf)
        slot_ids = biased.topk(self.num_picks, dim=-1).indices
        return slot_ids.masked_fill(slot_ids >= num_experts, NULL_ID)

    def deal(self, num_tokens: int, device: torch.device) -> Tensor:
        """Experts in turn, int64 [S, k]: pick j of token s is expert (s·k + j) mod E, so no load differs by more than 1."""
        k = self.spec.top_k
        picks = torch.arange(num_tokens * k, device=device) % self.spec.num_experts
        return picks.view(num_tokens, k)

    def _slot_bias(self) -> Tensor:
        if not self.num_null_slots:
            return self.bias
        real, null = self.bias[:-1], self.bias[-1:]
        return torch.cat([real, null.expand(self.num_null_slots)])

    def _in_best_groups(self, biased: Tensor) -> Tensor:
        """Whether an expert stands in one of the token's best groups, bool [S, E]."""
        groups = biased.reshape(len(biased), self.spec.num_expert_groups, -1)
        size = groups.shape[-1]
        best = groups.topk(min(GROUP_SCORE_EXPERTS, size), dim=-1).values.sum(-1)
        chosen = best.topk(self.spec.top_k_groups, dim=-1).indices
        mask = torch.zeros_like(best, dtype=torch.bool).scatter(-1, chosen, True)
        return mask.repeat_interleave(size, dim=-1)

    def _gates(self, scores: Tensor, expert_ids: Tensor) -> Tensor:
        picked = scores.gather(-1, expert_ids.clamp(min=0))
        picked = picked.masked_fill(expert_ids < 0, 0.0)
        return normalised(picked) * self.spec.routed_scaling_factor

    def count(self, expert_ids: Tensor) -> None:
        """Add the picks of a micro-batch to `load`."""
        self.load += count_picks(expert_ids, self.spec.num_experts)

    @torch.no_grad()
    def update_bias(self) -> Tensor:
        """Move the bias by the load since the last call, and start a new count.

        Returns:
            int64 [E + 1]: that load, picks of null slots last.
        """
        load = self.load.clone()
        self.load.zero_()
        if self.spec.routing_mode != "forced_balanced" and self.spec.bias_update_rate > 0:
            self._move_bias(load.to(self.bias.dtype))
        return load

    def _move_bias(self, load: Tensor) -> None:
        num_slots = self.spec.num_experts + self.num_null_slots
        per_slot = load[: len(self.bias)].clone()
        per_slot[self.spec.num_experts :] /= max(self.num_null_slots, 1)
        mean = load.sum() / num_slots
        error = mean - per_slot
        if self.load_error is None:
            step = error.sign()
        else:
            relative = error / mean.clamp(min=torch.finfo(mean.dtype).tiny)
            self.load_error.lerp_(relative, 1 - LOAD_ERROR_DECAY)
            step = self.load_error.clamp(-1.0, 1.0)
        self.bias += self.spec.bias_update_rate * step


def normalised(scores: Tensor) -> Tensor:
    """Scores [S, n] over their sum; 0 where there is nothing to share out."""
    total = scores.sum(-1, keepdim=True)
    # Without a real pick, or where scores all but underflow: 0/0 is no number, and 1/total overflows in the gradient.
    return scores / torch.where(total > LEAST_SCORE_SUM, total, torch.ones_like(total))


def count_picks(expert_ids: Tensor, num_experts: int) -> Tensor:
    """Picks per expert and of null slots, int64 [E + 1]; static shape, so that a compiled block stays one graph.

    Args:
        expert_ids: int64 [S, k], −1 for null slots; −2, of tokens that skipped the block, does not count.
        num_experts: E.
    """
    flat = expert_ids.reshape(-1)
    places = torch.where(flat < 0, num_experts - 1 - flat, flat)  # −1 becomes E, −2 becomes E + 1
    counts = torch.zeros(num_experts + 2, dtype=torch.int64, device=flat.device)
    return counts.index_add_(0, places, torch.ones_like(flat))[: num_experts + 1]
