"""The whole E block as one dense formula in fp64: every expert computed for every token, then weighted, in plain loops."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lanewise.lane.schema import MoeSpec
from lanewise.models.moe import MixtureOfExperts


def choose(
    spec: MoeSpec, scores: list[float], bias: list[float], *, null_score: float, num_null: int
) -> list[int]:
    """Picks of one token, best first, ties to the lower slot; −1 for null slots.

    Args:
        spec: of the block.
        scores: of the real experts.
        bias: of the real experts, then of the null slots if there are any.
        null_score: of every null slot.
        num_null: null slots.
    """
    num_experts = spec.num_experts
    picks = math.ceil(spec.top_k / spec.real_slot_ratio)
    values = [score + b for score, b in zip(scores, bias, strict=False)]
    size = num_experts // spec.num_expert_groups
    groups = [values[start : start + size] for start in range(0, num_experts, size)]
    best = sorted(range(len(groups)), key=lambda g: -sum(sorted(groups[g])[-2:]))
    allowed = set(best[: spec.top_k_groups])
    slots = [(values[e], e) for e in range(num_experts) if e // size in allowed]
    slots += [(null_score + bias[num_experts], -1)] * num_null if num_null else []
    return [slot for _, slot in sorted(slots, key=lambda pair: -pair[0])[:picks]]


def dense(block: MixtureOfExperts, x: Tensor, expert_ids: Tensor | None = None) -> Tensor:
    """Output of the block for [B, T, d], fp64; `expert_ids` [S, k] to follow, or None to choose.

    Differentiable in `x` and the weights; the choice is not.
    """
    spec, router = block.spec, block.router
    tokens = x.double().reshape(-1, x.shape[-1])
    logits = tokens @ router.weight.double().T
    num_null = router.num_null_slots
    if spec.score_function == "sigmoid":
        scores = 1 / (1 + torch.exp(-logits))
        null_scores = [0.5] * len(tokens)
    else:
        total = torch.exp(logits).sum(-1, keepdim=True) + num_null
        scores = torch.exp(logits) / total
        null_scores = (1 / total).flatten().tolist()
    outputs = [
        _act(tokens @ block.w_in[e].double(), spec.activation) @ block.w_out[e].double()
        for e in range(spec.num_experts)
    ]
    every = torch.stack(outputs, dim=1)
    rows = []
    for s in range(len(tokens)):
        ids = (
            choose(
                spec,
                scores[s].tolist(),
                router.bias.tolist(),
                null_score=null_scores[s],
                num_null=num_null,
            )
            if expert_ids is None
            else expert_ids[s].tolist()
        )
        real = [e for e in ids if e >= 0]
        routed = torch.zeros_like(tokens[s])
        for e in real:
            gate = scores[s, e] / scores[s, real].sum() * spec.routed_scaling_factor
            routed = routed + gate * every[s, e]
        rows.append(routed)
    result = torch.stack(rows)
    if block.shared_in is not None:
        hidden = _act(tokens @ block.shared_in.weight.double().T, spec.activation)
        shared = hidden @ block.shared_out.weight.double().T
        if block.shared_gate is not None:
            shared = shared / (1 + torch.exp(-tokens @ block.shared_gate.weight.double().T))
        result = result + shared
    return result.view(x.shape)


def _act(pre: Tensor, activation: str) -> Tensor:
    if activation == "swiglu":
        gate, up = pre.chunk(2, dim=-1)
        return gate / (1 + torch.exp(-gate)) * up
    if activation == "relu2":
        return pre.clamp(min=0) ** 2
    return pre * 0.5 * (1 + torch.erf(pre / math.sqrt(2)))
