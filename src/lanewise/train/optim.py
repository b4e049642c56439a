"""Learning-rate schedule, parameter groups and gradient clipping; the update itself is the op `optimizer_step`."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from lanewise.lane.schema import OptimizerSpec
from lanewise.models.layers import is_decayed, is_orthogonalised


def learning_rate(step: int, spec: OptimizerSpec) -> float:
    """Learning rate of an optimizer step: linear warm-up, then a cosine down to the minimum.

    Args:
        step: 0-based; step 0 already has a positive rate.
        spec: the schedule; at `decay_steps` and later it is `min_learning_rate`.
    """
    peak, low = spec.learning_rate, spec.min_learning_rate
    if step < spec.warmup_steps:
        return peak * (step + 1) / spec.warmup_steps
    span = max(1, spec.decay_steps - spec.warmup_steps)
    progress = min(1.0, (step - spec.warmup_steps) / span)
    return low + 0.5 * (peak - low) * (1 + math.cos(math.pi * progress))


def parameter_groups(model: nn.Module, spec: OptimizerSpec) -> list[dict[str, object]]:
    """Groups in model order for the op `optimizer_step`; empty ones are left out.

    With `muon`: hidden matrices by Muon (`models.layers.is_orthogonalised`). The rest by AdamW: matrices with weight
    decay; norms, biases, decays and other vectors without.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    by_muon = [p for p in parameters if spec.name == "muon" and is_orthogonalised(p)]
    known = {id(p) for p in by_muon}
    rest = [p for p in parameters if id(p) not in known]
    groups: list[dict[str, object]] = [
        {
            "params": by_muon,
            "algorithm": "muon",
            "momentum": spec.muon_momentum,
            "num_iterations": spec.muon_num_iterations,
            "weight_decay": spec.weight_decay,
        },
        {"params": [p for p in rest if is_decayed(p)], "weight_decay": spec.weight_decay},
        {"params": [p for p in rest if not is_decayed(p)], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def set_learning_rate(optimizer: torch.optim.Optimizer, value: float) -> None:
    """Give every group the rate of the coming step."""
    for group in optimizer.param_groups:
        group["lr"] = value


def clip_gradients(parameters: Iterable[nn.Parameter], max_norm: float) -> Tensor:
    """Scale gradients so that their global 2-norm is at most `max_norm`; 0 only measures.

    Returns:
        fp32 scalar: the norm before clipping.
    """
    with_grad = [p for p in parameters if p.grad is not None]
    if max_norm > 0:
        return nn.utils.clip_grad_norm_(with_grad, max_norm)
    return nn.utils.get_total_norm([p.grad for p in with_grad if p.grad is not None])
