"""The optimizers of `optimizer_step` on torch: AdamW as torch.optim builds it, Muon beside it where a group asks for it.

A group's own `weight_decay` counts; a group without one is not decayed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch

from lanewise.kernels import muon_torch

Groups = Iterable[dict[str, Any]]


def per_tensor(
    param_groups: Groups, lr: float, betas: tuple[float, float], eps: float
) -> torch.optim.Optimizer:
    """The control: torch's CPU default, about ten small kernels per parameter; Muon one matrix at a time."""
    options = {"lr": lr, "betas": betas, "eps": eps, "foreach": False, "fused": False}
    return _build(param_groups, options, muon_torch.step_per_matrix)


def foreach(
    param_groups: Groups, lr: float, betas: tuple[float, float], eps: float
) -> torch.optim.Optimizer:
    """Each of the ten kernels over the list of all parameters; Muon on all matrices of a shape at once."""
    options = {"lr": lr, "betas": betas, "eps": eps, "foreach": True}
    return _build(param_groups, options, muon_torch.step_batched)


def fused(
    param_groups: Groups, lr: float, betas: tuple[float, float], eps: float
) -> torch.optim.Optimizer:
    """One kernel reads and writes parameter, gradient and both moments; Muon on all matrices of a shape at once."""
    options = {"lr": lr, "betas": betas, "eps": eps, "fused": True}
    return _build(param_groups, options, muon_torch.step_batched)


MuonStep = Callable[[dict[str, Any], dict[torch.Tensor, Any]], None]


def _build(
    param_groups: Groups, options: dict[str, Any], muon_step: MuonStep
) -> torch.optim.Optimizer:
    groups = list(param_groups)
    if any(group.get("algorithm") == "muon" for group in groups):
        return MuonAndAdamW(groups, options, muon_step)
    return torch.optim.AdamW(groups, weight_decay=0.0, **options)


class MuonAndAdamW(torch.optim.Optimizer):
    """One optimizer, so one state dict: its own groups by Muon, the others by a `torch.optim.AdamW` inside.

    Args:
        param_groups: at least one with `"algorithm": "muon"`.
        options: of torch.optim.AdamW.
        muon_step: updates one Muon group, given the group and the state of its parameters.
    """

    def __init__(self, param_groups: Groups, options: dict[str, Any], muon_step: MuonStep) -> None:
        defaults = {**options, "weight_decay": 0.0, "algorithm": "adamw"}
        super().__init__(param_groups, defaults)
        self._muon_step = muon_step
        others = self._groups_of("adamw")
        self._adamw = torch.optim.AdamW(others, weight_decay=0.0, **options) if others else None

    def _groups_of(self, algorithm: str) -> list[dict[str, Any]]:
        return [group for group in self.param_groups if group["algorithm"] == algorithm]

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Update every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self._groups_of("muon"):
            self._muon_step(group, self.state)
        if self._adamw is not None:
            # Loading a state dict replaces groups and state, so they are shared anew at every step.
            self._adamw.param_groups = self._groups_of("adamw")
            self._adamw.state = self.state
            self._adamw.step()
        return loss
