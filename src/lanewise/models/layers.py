"""What the blocks share: the bias-free linear map, marks on parameters, start values, the block's result.

Parameters are fp32 masters; a linear map casts its weight to the dtype of its input, so the compute dtype is decided
by what the model feeds in and nothing here branches on it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SKIPPED_ID = -2
"""Expert id of a token that did not pass through the block."""
_KEEP_FP32 = "lanewise_keep_fp32"
_NO_WEIGHT_DECAY = "lanewise_no_weight_decay"
_HIDDEN_MATRIX = "lanewise_hidden_matrix"
NO_LOSSES: Mapping[str, Tensor] = MappingProxyType({})

IGNORE_INDEX = -100
"""Target that does not count towards the loss."""

DTYPES: Mapping[str, torch.dtype] = MappingProxyType(
    {"fp32": torch.float32, "bf16": torch.bfloat16}
)
"""Names of precisions in a lane."""


class Context(NamedTuple):
    """What a sub-layer is told beside its input.

    Attributes:
        document_ids: int64 [B, T], rising by one where a document begins inside a row; None when a row is one document.
        key_ids: int64 [B, T, k], keys selected by the nearest earlier layer with an indexer (−1 pads); positions count
            from the start of the row, or of the generated text.
        expert_ids: int64 [S, k], routing to follow instead of choosing, or None.
    """

    document_ids: Tensor | None = None
    key_ids: Tensor | None = None
    expert_ids: Tensor | None = None


NO_CONTEXT = Context()


class BlockOutput(NamedTuple):
    """Result of one sub-layer.

    Everything a layer tells others or its counters is returned, never kept in the module: a layer that is computed
    again in the backward pass then does no harm.

    Attributes:
        delta: [B, T, d], to be added to the residual stream.
        aux_losses: name → fp32 scalar already weighted.
        key_ids: the keys this layer selected, for later layers; None when it selects none.
        expert_ids: int64 [S, k], the routing that was followed: −1 a null slot, −2 a token that skipped the block; None
            without experts.
    """

    delta: Tensor
    aux_losses: Mapping[str, Tensor] = NO_LOSSES
    key_ids: Tensor | None = None
    expert_ids: Tensor | None = None


BlockState = tuple[Any, ...]
"""What a sub-layer carries from token to token in decoding; a NamedTuple of the block, never changed in place.

Its fields are tensors, or the state of a block that this one wraps.
"""


class Block(nn.Module):
    """Base of the residual sub-layers, one per pattern letter: [B, T, d] → `BlockOutput`."""

    def reset_parameters(
        self, *, std: float, output_std: float, generator: torch.Generator
    ) -> None:
        """Draw start values in place.

        Args:
            std: of weight matrices.
            output_std: of the matrices that write to the residual stream.
            generator: CPU generator, the only source of randomness.
        """
        raise NotImplementedError

    def forward(self, x: Tensor, context: Context = NO_CONTEXT) -> BlockOutput:
        """Transform whole rows [B, T, d], as in training."""
        raise NotImplementedError

    def extend(
        self, x: Tensor, state: BlockState | None, context: Context = NO_CONTEXT
    ) -> tuple[BlockOutput, BlockState]:
        """Transform the next T ≥ 1 tokens of B texts, given what came before; a prefill when nothing did.

        `extend` over a text in any pieces equals `forward` over the whole up to rounding.

        Args:
            x: [B, T, d].
            state: what the last call returned, or None at the start of the texts.
            context: `key_ids` only; a text is one document.
        """
        raise NotImplementedError

    def observe(self, output: BlockOutput) -> None:
        """Count what a training step must remember of this output, e.g. tokens per expert; once per micro-batch."""


RunBlock = Callable[[Block, Tensor, Context], BlockOutput]
"""How a layer is run in training; replaced from outside, e.g. by one that computes it again in the backward pass."""


def run_plainly(block: Block, x: Tensor, context: Context) -> BlockOutput:
    """Call the block and keep what its backward needs."""
    output: BlockOutput = block(x, context)
    return output


class Linear(nn.Module):
    """`y = x Wᵀ` without bias; the weight is cast to the dtype of `x`.

    Args:
        in_features: size of the last dim of the input.
        out_features: size of the last dim of the output.
    """

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.weight = hidden_matrix(nn.Parameter(torch.empty(out_features, in_features)))

    def forward(self, x: Tensor) -> Tensor:
        """Map [..., in_features] to [..., out_features]."""
        return F.linear(x, self.weight.to(x.dtype))


class RMSNorm(nn.Module):
    """RMSNorm inside a block: `x / sqrt(mean(x²) + eps) · weight`, computed by torch.

    The pre-norm of a sub-layer is not this module: it belongs to the op `add_norm`.

    Args:
        size: size of the last dim.
        eps: added to the mean square.
    """

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = special_parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalise [..., size]."""
        return F.rms_norm(x, (x.shape[-1],), self.weight.to(x.dtype), self.eps)


def activate(x: Tensor, activation: str) -> Tensor:
    """Activation of an MLP: `gelu` (exact), `relu2` [..., F] → [..., F], or `swiglu` [..., 2F] → [..., F], gate first."""
    if activation == "swiglu":
        gate, up = x.chunk(2, dim=-1)
        return F.silu(gate) * up
    return F.relu(x).square() if activation == "relu2" else F.gelu(x)


def special_parameter(start: Tensor) -> nn.Parameter:
    """A parameter that stays fp32 under mixed precision and is never decayed (norms, biases, decays, dt, D)."""
    parameter = nn.Parameter(start)
    setattr(parameter, _KEEP_FP32, True)
    setattr(parameter, _NO_WEIGHT_DECAY, True)
    return parameter


def keep_fp32(parameter: nn.Parameter) -> nn.Parameter:
    """Mark a decayed matrix that stays fp32 under mixed precision (the router)."""
    setattr(parameter, _KEEP_FP32, True)
    return parameter


def hidden_matrix(parameter: nn.Parameter) -> nn.Parameter:
    """Mark a matrix between hidden states [R, C], or a stack of them [E, R, C], each a linear map of its own."""
    setattr(parameter, _HIDDEN_MATRIX, True)
    return parameter


def is_orthogonalised(parameter: nn.Parameter) -> bool:
    """Whether Muon updates this parameter: marked hidden matrices but the router's, which must stay fp32.

    Not marked, hence left to AdamW: embedding, head and hash tables, convolution filters, per-head state weights, norms,
    biases and other vectors. A matrix of one row or column is a vector.
    """
    return (
        getattr(parameter, _HIDDEN_MATRIX, False)
        and not must_stay_fp32(parameter)
        and min(parameter.shape[-2:]) > 1
    )


def must_stay_fp32(parameter: nn.Parameter) -> bool:
    """Whether mixed precision and sharding must leave this parameter in fp32."""
    return getattr(parameter, _KEEP_FP32, False)


def is_decayed(parameter: nn.Parameter) -> bool:
    """Whether weight decay applies: matrices and stacks of matrices that are not marked."""
    return parameter.ndim >= 2 and not getattr(parameter, _NO_WEIGHT_DECAY, False)


def forked(generator: torch.Generator) -> torch.Generator:
    """A generator that follows from the state of `generator` and does not move it.

    What is added to a model draws from it, so that the rest starts with the same weights as without the addition.
    """
    copy = generator.clone_state()
    seed = torch.randint(1 << 62, (), generator=copy).item()
    return torch.Generator().manual_seed(int(seed))


def init_normal(parameter: Tensor, std: float, generator: torch.Generator) -> None:
    """Fill in place from N(0, std²)."""
    with torch.no_grad():
        parameter.normal_(0.0, std, generator=generator)


def init_dt_bias(
    parameter: Tensor, *, dt_min: float, dt_max: float, dt_floor: float, generator: torch.Generator
) -> None:
    """Fill in place so that `softplus(dt_bias)` is log-uniform in [dt_min, dt_max], at least dt_floor.

    The inverse of softplus is `dt + log(−expm1(−dt))` (Mamba, arXiv 2312.00752, appendix E.2).
    """
    with torch.no_grad():
        uniform = torch.rand(parameter.shape, generator=generator, dtype=torch.float32)
        log_dt = math.log(dt_min) + uniform * (math.log(dt_max) - math.log(dt_min))
        dt = log_dt.exp().clamp_(min=dt_floor)
        parameter.copy_(dt + torch.log(-torch.expm1(-dt)))
