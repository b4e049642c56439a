"""Block `E`: mixture of experts with a shared expert; no token is dropped.

    out = Σ_{real picks} gate_i · expert_i(x) + shared(x) · σ(w_s · x)       the last factor with `shared_expert_gate` only

Choice, gates, null slots and bias are the router's (`models.router`). A token whose picks are all null slots is left to
the shared expert. With `extra_aux_losses` the block also returns, over real experts,
`aux_loss_coefficient · E · Σ_i f_i P_i + z_loss_coefficient · mean(logsumexp(logits)²)`
(Switch, arXiv 2101.03961; ST-MoE, arXiv 2202.08906), with f the share of real picks and P the mean normalised score.

Routing modes rule training: `learned` chooses, `forced_balanced` deals tokens to experts in turn, `replayed` follows
`Context.expert_ids`; gates are learned in all three. Evaluation and decoding choose, whatever the mode, unless they are
given ids to follow, because a text that is being written has neither a recording nor a place in a training batch.

Legend: B batch, T sequence, d hidden, S = B·T tokens, E experts, k picks, F expert hidden size.
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
    BlockState,
    Context,
    Linear,
    activate,
    hidden_matrix,
    init_normal,
)
from lanewise.models.router import Router, Routing, count_picks, normalised
from lanewise.ops.opset import OpSet


class MixtureOfExperts(Block):
    """MoE sub-layer.

    Args:
        spec: sizes and coefficients of the block.
        hidden_size: d.
        extra_aux_losses: whether the load-balance and z-losses are added (a tax).
        ops: the op set of the model.
    """

    def __init__(
        self, spec: MoeSpec, *, hidden_size: int, extra_aux_losses: bool, ops: OpSet
    ) -> None:
        super().__init__()
        self.spec = spec
        self.ops = ops
        self.extra_aux_losses = extra_aux_losses
        experts, ffn = spec.num_experts, spec.expert_hidden_size
        self.router = Router(spec, hidden_size)
        self.w_in = hidden_matrix(
            nn.Parameter(torch.empty(experts, hidden_size, self._num_in_maps() * ffn))
        )
        self.w_out = hidden_matrix(nn.Parameter(torch.empty(experts, ffn, hidden_size)))
        shared = spec.shared_expert_hidden_size
        self.shared_in = Linear(hidden_size, self._num_in_maps() * shared) if shared else None
        self.shared_out = Linear(shared, hidden_size) if shared else None
        self.shared_gate = Linear(hidden_size, 1) if spec.shared_expert_gate else None

    def _num_in_maps(self) -> int:
        return 2 if self.spec.activation == "swiglu" else 1

    def reset_parameters(
        self, *, std: float, output_std: float, generator: torch.Generator
    ) -> None:
        """Draw every weight from N(0, std²), output maps from N(0, output_std²)."""
        self.router.reset_parameters(std=std, generator=generator)
        init_normal(self.w_in, std, generator)
        init_normal(self.w_out, output_std, generator)
        if self.shared_in is not None and self.shared_out is not None:
            init_normal(self.shared_in.weight, std, generator)
            init_normal(self.shared_out.weight, output_std, generator)
        if self.shared_gate is not None:
            init_normal(self.shared_gate.weight, std, generator)

    def forward(self, x: Tensor, context: Context = NO_CONTEXT) -> BlockOutput:
        """Route and transform [B, T, d].

        Raises:
            ValueError: the lane replays routing, the block trains, and the context holds no ids.
        """
        tokens = x.reshape(-1, x.shape[-1])
        return self._transform(x, tokens, self._ids_to_follow(tokens, context))

    def extend(
        self,
        x: Tensor,
        state: BlockState | None,  # noqa: ARG002  tokens do not meet, so nothing is carried
        context: Context = NO_CONTEXT,  # noqa: ARG002  a text has no recorded routing
    ) -> tuple[BlockOutput, BlockState]:
        """Route and transform the next tokens [B, T, d]; the state is empty."""
        return self._transform(x, x.reshape(-1, x.shape[-1]), None), ()

    def _ids_to_follow(self, tokens: Tensor, context: Context) -> Tensor | None:
        if context.expert_ids is not None:
            return context.expert_ids
        if not self.training or self.spec.routing_mode == "learned":
            return None
        if self.spec.routing_mode == "replayed":
            raise ValueError(
                'model.moe.routing_mode = "replayed" and no expert ids were given; train with a recording '
                "(`--replay-routing DIR`) or pass expert_ids to the model"
            )
        return self.router.deal(tokens.shape[0], tokens.device)

    def _transform(self, x: Tensor, tokens: Tensor, expert_ids: Tensor | None) -> BlockOutput:
        routing: Routing = self.router(tokens, expert_ids)
        output = self.ops.moe_experts(
            tokens,
            routing.expert_ids,
            routing.gates.to(x.dtype),
            self.w_in.to(x.dtype),
            self.w_out.to(x.dtype),
            self.spec.activation,
        )
        if self.shared_in is not None and self.shared_out is not None:
            shared = self.shared_out(activate(self.shared_in(tokens), self.spec.activation))
            if self.shared_gate is not None:
                shared = shared * torch.sigmoid(self.shared_gate(tokens))
            output = output + shared
        aux_losses = self._aux_losses(routing) if self.extra_aux_losses else NO_LOSSES
        return BlockOutput(output.view_as(x), aux_losses, expert_ids=routing.expert_ids)

    def observe(self, output: BlockOutput) -> None:
        """Count the picks of a micro-batch."""
        if output.expert_ids is not None:
            self.router.count(output.expert_ids)

    def _aux_losses(self, routing: Routing) -> dict[str, Tensor]:
        scores, num_experts = routing.scores, self.spec.num_experts
        load = count_picks(routing.expert_ids, num_experts)[:num_experts]
        share = load.to(scores.dtype) / load.sum().clamp(min=1)
        probability = normalised(scores).mean(0)
        balance = num_experts * (share * probability).sum()
        z = torch.logsumexp(routing.logits, dim=-1).square().mean()
        return {
            "load_balance": self.spec.aux_loss_coefficient * balance,
            "router_z": self.spec.z_loss_coefficient * z,
        }

    def update_bias(self) -> Tensor:
        """Rebalance after an optimizer step; returns int64 [E + 1], the picks per expert and of null slots since the last."""
        return self.router.update_bias()
