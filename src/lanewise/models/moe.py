"""Block `E`: mixture of experts with a shared expert; no token is dropped.

    s = σ(W_r x) in fp32                       scores
    selected = top-k of s + bias               the bias steers selection only (DeepSeek-V3, arXiv 2412.19437)
    gate_i = s_i / Σ_selected s · routed_scaling_factor
    out = Σ_selected gate_i · expert_i(x) + shared(x)

After each optimizer step the bias moves by ± `bias_update_rate` towards experts that got too little; it is not
trained. With `extra_aux_losses` the block also returns
`aux_loss_coefficient · E · Σ_i f_i P_i + z_loss_coefficient · mean(logsumexp(logits)²)`
(Switch, arXiv 2101.03961; ST-MoE, arXiv 2202.08906), with f the share of assignments and P the mean normalised score.
Legend: B batch, T sequence, d hidden, S = B·T tokens, E experts, k top-k, F expert hidden size.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lanewise.lane.schema import MoeSpec
from lanewise.models.layers import (
    NO_CONTEXT,
    NO_LOSSES,
    Block,
    BlockOutput,
    Context,
    Linear,
    activate,
    hidden_matrix,
    init_normal,
    keep_fp32,
)
from lanewise.ops.opset import OpSet


class MixtureOfExperts(Block):
    """MoE sub-layer.

    Args:
        spec: sizes and coefficients of the block.
        hidden_size: d.
        extra_aux_losses: whether the load-balance and z-losses are added (a tax).
        ops: the op set of the model.

    Attributes:
        bias: fp32 [E], added to the scores for selection; a persistent buffer, not a parameter.
        load: int64 [E], assignments since the last `update_bias`.
    """

    bias: Tensor
    load: Tensor

    def __init__(
        self, spec: MoeSpec, *, hidden_size: int, extra_aux_losses: bool, ops: OpSet
    ) -> None:
        super().__init__()
        self.spec = spec
        self.ops = ops
        self.extra_aux_losses = extra_aux_losses
        experts, ffn = spec.num_experts, spec.expert_hidden_size
        self.router = Linear(hidden_size, experts)
        keep_fp32(self.router.weight)
        self.w_in = hidden_matrix(
            nn.Parameter(torch.empty(experts, hidden_size, self._num_in_maps() * ffn))
        )
        self.w_out = hidden_matrix(nn.Parameter(torch.empty(experts, ffn, hidden_size)))
        shared = spec.shared_expert_hidden_size
        self.shared_in = Linear(hidden_size, self._num_in_maps() * shared) if shared else None
        self.shared_out = Linear(shared, hidden_size) if shared else None
        self.register_buffer("bias", torch.zeros(experts))
        self.register_buffer("load", torch.zeros(experts, dtype=torch.int64))

    def _num_in_maps(self) -> int:
        return 2 if self.spec.activation == "swiglu" else 1

    def reset_parameters(
        self, *, std: float, output_std: float, generator: torch.Generator
    ) -> None:
        """Draw every weight from N(0, std²), output maps from N(0, output_std²)."""
        init_normal(self.router.weight, std, generator)
        init_normal(self.w_in, std, generator)
        init_normal(self.w_out, output_std, generator)
        if self.shared_in is not None and self.shared_out is not None:
            init_normal(self.shared_in.weight, std, generator)
            init_normal(self.shared_out.weight, output_std, generator)

    def forward(self, x: Tensor, context: Context = NO_CONTEXT) -> BlockOutput:  # noqa: ARG002
        """Route and transform [B, T, d]."""
        tokens = x.reshape(-1, x.shape[-1])
        logits = self.router(tokens.to(self.router.weight.dtype))
        scores = torch.sigmoid(logits)
        expert_ids = torch.topk(scores.detach() + self.bias, self.spec.top_k, dim=-1).indices
        selected = scores.gather(-1, expert_ids)
        gates = selected / selected.sum(-1, keepdim=True) * self.spec.routed_scaling_factor
        output = self.ops.moe_experts(
            tokens,
            expert_ids,
            gates.to(x.dtype),
            self.w_in.to(x.dtype),
            self.w_out.to(x.dtype),
            self.spec.activation,
        )
        if self.shared_in is not None and self.shared_out is not None:
            hidden = activate(self.shared_in(tokens), self.spec.activation)
            output = output + self.shared_out(hidden)
        aux_losses = (
            self._aux_losses(logits, scores, expert_ids) if self.extra_aux_losses else NO_LOSSES
        )
        return BlockOutput(output.view_as(x), aux_losses, expert_ids=expert_ids)

    def observe(self, output: BlockOutput) -> None:
        """Count the assignments of a micro-batch."""
        if output.expert_ids is not None:
            self.load += count_assignments(output.expert_ids, self.spec.num_experts)

    def _aux_losses(self, logits: Tensor, scores: Tensor, expert_ids: Tensor) -> dict[str, Tensor]:
        load = count_assignments(expert_ids, self.spec.num_experts)
        share = load.to(scores.dtype) / load.sum()
        probability = (scores / scores.sum(-1, keepdim=True)).mean(0)
        balance = self.spec.num_experts * (share * probability).sum()
        z = torch.logsumexp(logits, dim=-1).square().mean()
        return {
            "load_balance": self.spec.aux_loss_coefficient * balance,
            "router_z": self.spec.z_loss_coefficient * z,
        }

    @torch.no_grad()
    def update_bias(self) -> Tensor:
        """Move the bias by the sign of the load error and start a new count.

        Returns:
            fp32 scalar: coefficient of variation of assignments per expert since the last call.
        """
        load = self.load.to(self.bias.dtype)
        error = load.mean() - load
        self.bias += self.spec.bias_update_rate * error.sign()
        self.load.zero_()
        return load.std(correction=0) / load.mean().clamp(min=1)


def count_assignments(expert_ids: Tensor, num_experts: int) -> Tensor:
    """Assignments per expert, int64 [E]; static shape, so that a compiled block stays one graph.

    Args:
        expert_ids: int64 [S, k].
        num_experts: E.
    """
    flat = expert_ids.reshape(-1)
    return torch.zeros(num_experts, dtype=torch.int64, device=flat.device).index_add_(
        0, flat, torch.ones_like(flat)
    )
