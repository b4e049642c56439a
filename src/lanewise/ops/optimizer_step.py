"""AdamW: Adam with decoupled weight decay. The op builds the optimizer; its `.step()` is the counted launch.

    p ← p · (1 − lr·λ)
    m ← β₁ m + (1 − β₁) g          v ← β₂ v + (1 − β₂) g²
    p ← p − lr · [m / (1 − β₁ᵗ)] / ( sqrt[v / (1 − β₂ᵗ)] + eps )

Legend: t step from 1, λ the group's weight decay (0 when a group names none). Problem dims: num_tensors, numel (all
parameters together).
Dtypes: moments have the dtype of their parameter.
Source: Loshchilov and Hutter, arXiv 1711.05101, algorithm 2, with the learning rate inside the decay as in torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch

from lanewise.ops.observe import Launch
from lanewise.ops.spec import Backend, OpSpec

SPEC = OpSpec(
    name="optimizer_step",
    reference="reference",
    backends=(
        Backend(
            name="fused.torch",
            target="lanewise.kernels.optimizer_step_torch:fused",
            note="torch.optim.AdamW(fused=True): one kernel per parameter",
        ),
        Backend(
            name="foreach.torch",
            target="lanewise.kernels.optimizer_step_torch:foreach",
            note="torch.optim.AdamW(foreach=True): kernels over lists of parameters",
        ),
        Backend(
            name="per_tensor.torch",
            target="lanewise.kernels.optimizer_step_torch:per_tensor",
            note="torch.optim.AdamW's own CPU default",
        ),
        Backend(
            name="reference",
            target="lanewise.ops.optimizer_step:reference",
            note="the oracle: the formula, one parameter at a time",
        ),
    ),
)


class ReferenceAdamW(torch.optim.Optimizer):
    """The formula, one parameter at a time."""

    def __init__(
        self,
        param_groups: Iterable[dict[str, Any]],
        lr: float,
        betas: tuple[float, float],
        eps: float,
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": 0.0}
        super().__init__(param_groups, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    _update(p, p.grad, self.state[p], group)
        return loss


def _update(
    p: torch.Tensor, gradient: torch.Tensor, state: dict[str, Any], group: dict[str, Any]
) -> None:
    if not state:
        state.update(step=0, exp_avg=torch.zeros_like(p), exp_avg_sq=torch.zeros_like(p))
    state["step"] += 1
    beta_1, beta_2 = group["betas"]
    m = state["exp_avg"] = beta_1 * state["exp_avg"] + (1 - beta_1) * gradient
    v = state["exp_avg_sq"] = beta_2 * state["exp_avg_sq"] + (1 - beta_2) * gradient**2
    m_hat = m / (1 - beta_1 ** state["step"])
    v_hat = v / (1 - beta_2 ** state["step"])
    p.mul_(1 - group["lr"] * group["weight_decay"])
    p.sub_(group["lr"] * m_hat / (v_hat.sqrt() + group["eps"]))


def reference(
    param_groups: Iterable[dict[str, Any]], lr: float, betas: tuple[float, float], eps: float
) -> torch.optim.Optimizer:
    """Build the oracle."""
    return ReferenceAdamW(param_groups, lr, betas, eps)


def optimizer_step(
    run: Launch,
    param_groups: Iterable[dict[str, Any]],
    lr: float,
    betas: tuple[float, float],
    eps: float,
) -> torch.optim.Optimizer:
    """Build AdamW with the chosen backend.

    Args:
        run: the chosen backend; counted once per `.step()`.
        param_groups: `{"params": [...], "weight_decay": λ}` each; other keys of torch.optim.AdamW are allowed.
        lr: learning rate.
        betas: decay of the two moments.
        eps: added to the root of the second moment.

    Returns:
        An optimizer with torch's interface and state dict.
    """
    groups = [dict(group) for group in param_groups]
    for index, group in enumerate(groups):
        if not group.get("params"):
            raise ValueError(
                f"optimizer_step: group {index} of {len(groups)} has no parameters; leave it out"
            )
    optimizer: torch.optim.Optimizer = run.function(groups, lr, betas, eps)
    optimizer.register_step_post_hook(lambda *_: run.count())
    return optimizer
