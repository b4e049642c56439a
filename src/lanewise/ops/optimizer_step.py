"""AdamW, and Muon for groups that ask for it. The op builds the optimizer; its `.step()` is the counted launch.

AdamW (Loshchilov and Hutter, arXiv 1711.05101, algorithm 2, with the learning rate inside the decay as in torch):

    p ← p · (1 − lr·λ)
    m ← β₁ m + (1 − β₁) g          v ← β₂ v + (1 − β₂) g²
    p ← p − lr · [m / (1 − β₁ᵗ)] / ( sqrt[v / (1 − β₂ᵗ)] + eps )

Muon (Jordan et al., "Muon: an optimizer for hidden layers in neural networks", 2024) for a matrix of R rows and C columns,
scaled so that AdamW's learning rate and decay suit it (Moonlight, arXiv 2502.16982, eq. 4):

    p ← p · (1 − lr·λ)
    M ← μ M + G                    U = G + μ M                                    Nesterov momentum
    X = U / max(‖U‖_F, 1e−7);  num_iterations times:  A = X Xᵀ,  X ← 3.4445 X + (−4.7750 A + 2.0315 A²) X
    p ← p − lr · 0.2 sqrt(max(R, C)) · X

In terms of the singular values of U the iteration applies a polynomial to each of them and leaves the singular vectors
alone; five times bring those above 1 % of ‖U‖_F into [0.68, 1.14]. It runs on the wide side (X is transposed when R > C).
A parameter [E, R, C] is E matrices.

Legend: t step from 1, λ the group's weight decay (0 when a group names none), μ its momentum. Problem dims: num_tensors,
numel (all parameters together).
Dtypes: moments have the dtype of their parameter, and so has the iteration.
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
            note="torch.optim.AdamW(fused=True): one kernel per parameter; Muon on all matrices of a shape at once",
        ),
        Backend(
            name="foreach.torch",
            target="lanewise.kernels.optimizer_step_torch:foreach",
            note="torch.optim.AdamW(foreach=True): kernels over lists of parameters; Muon as in fused.torch",
        ),
        Backend(
            name="per_tensor.torch",
            target="lanewise.kernels.optimizer_step_torch:per_tensor",
            note="torch.optim.AdamW's own CPU default; Muon one matrix at a time",
        ),
        Backend(
            name="reference",
            target="lanewise.ops.optimizer_step:reference",
            note="the oracle: the formula, one parameter at a time",
        ),
    ),
)


COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic: steep at 0, and near 1 it only stays near 1."""
MIN_NORM = 1e-7
RMS_SCALE = 0.2
"""Root mean square of AdamW's usual update, which an orthogonal matrix × 0.2 sqrt(max(R, C)) has too."""


class ReferenceOptimizer(torch.optim.Optimizer):
    """The formulas, one parameter at a time."""

    def __init__(
        self,
        param_groups: Iterable[dict[str, Any]],
        lr: float,
        betas: tuple[float, float],
        eps: float,
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": 0.0, "algorithm": "adamw"}
        super().__init__(param_groups, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            update = _update_muon if group["algorithm"] == "muon" else _update
            for p in group["params"]:
                if p.grad is not None:
                    update(p, p.grad, self.state[p], group)
        return loss


def _update_muon(
    p: torch.Tensor, gradient: torch.Tensor, state: dict[str, Any], group: dict[str, Any]
) -> None:
    if not state:
        state.update(momentum_buffer=torch.zeros_like(p))
    momentum = group["momentum"]
    m = state["momentum_buffer"] = momentum * state["momentum_buffer"] + gradient
    u = gradient + momentum * m
    p.mul_(1 - group["lr"] * group["weight_decay"])
    rows, columns = p.shape[-2:]
    matrices = zip(p.view(-1, rows, columns), u.view(-1, rows, columns), strict=True)
    for p_RC, u_RC in matrices:
        x_RC = newton_schulz(u_RC, group["num_iterations"])
        p_RC.sub_(group["lr"] * RMS_SCALE * max(rows, columns) ** 0.5 * x_RC)


def newton_schulz(u_RC: torch.Tensor, num_iterations: int) -> torch.Tensor:
    """The iteration on one matrix [R, C], literally."""
    x: torch.Tensor = u_RC.mT if u_RC.shape[0] > u_RC.shape[1] else u_RC
    x = x / torch.linalg.matrix_norm(x).clamp(min=MIN_NORM)
    a, b, c = COEFFICIENTS
    for _ in range(num_iterations):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if u_RC.shape[0] > u_RC.shape[1] else x


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
    return ReferenceOptimizer(param_groups, lr, betas, eps)


def optimizer_step(
    run: Launch,
    param_groups: Iterable[dict[str, Any]],
    lr: float,
    betas: tuple[float, float],
    eps: float,
) -> torch.optim.Optimizer:
    """Build the optimizer with the chosen backend.

    Args:
        run: the chosen backend; counted once per `.step()`.
        param_groups: `{"params": [...], "weight_decay": λ}` each; other keys of torch.optim.AdamW are allowed. A group
            with `"algorithm": "muon"` names `momentum` and `num_iterations` and holds matrices [R, C] or [E, R, C].
        lr: learning rate of all groups.
        betas: AdamW's decay of the two moments.
        eps: AdamW's, added to the root of the second moment.

    Returns:
        An optimizer with torch's interface and state dict.

    Raises:
        ValueError: a group is empty, or gives Muon something that is no matrix.
    """
    groups = [dict(group) for group in param_groups]
    for index, group in enumerate(groups):
        if not group.get("params"):
            raise ValueError(
                f"optimizer_step: group {index} of {len(groups)} has no parameters; leave it out"
            )
        shapes = [list(p.shape) for p in group["params"] if p.dim() not in (2, 3)]
        if group.get("algorithm") == "muon" and shapes:
            raise ValueError(
                f"optimizer_step: group {index} gives Muon a parameter {shapes[0]}; it takes matrices [R, C] or stacks "
                "[E, R, C], give others to AdamW"
            )
    optimizer: torch.optim.Optimizer = run.function(groups, lr, betas, eps)
    optimizer.register_step_post_hook(lambda *_: run.count())
    return optimizer
