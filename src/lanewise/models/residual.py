"""The residual stream: what sub-layers read from and add to.

    r_0 = embedding        r_{i+1} = r_i + block_i(RMSNorm_i(r_i))        the last norm is the final one

Legend: B batch, T sequence, d hidden.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lanewise.models.layers import special_parameter
from lanewise.ops.opset import OpSet


class Stream(nn.Module):
    """Base of what stands between sub-layers: one residual stream, or several.

    Args:
        num_layers: sub-layers; there is one norm more.
        hidden_size: d.
        eps: of the norms.
        compute_dtype: what sub-layers are fed; None leaves it as the stream is.
        residual_dtype: of the stream; None leaves it as the embedding is.
        ops: the op set of the model.

    Attributes:
        norms: pre-norm weight of each layer, then the final norm's.
    """

    def __init__(
        self,
        *,
        num_layers: int,
        hidden_size: int,
        eps: float,
        compute_dtype: torch.dtype | None,
        residual_dtype: torch.dtype | None,
        ops: OpSet,
    ) -> None:
        super().__init__()
        self.eps = eps
        self.compute_dtype = compute_dtype
        self.residual_dtype = residual_dtype
        self.ops = ops
        self.norms = nn.ParameterList(
            special_parameter(torch.ones(hidden_size)) for _ in range(num_layers + 1)
        )

    def open(self, x: Tensor) -> tuple[Any, Tensor]:
        """Start from the embedding [B, T, d].

        Returns:
            What is carried to the next `add`, and the normed input of the first sub-layer [B, T, d].
        """
        raise NotImplementedError

    def add(self, delta: Tensor, carried: Any, index: int) -> tuple[Any, Tensor]:
        """Add the output of sub-layer `index − 1`.

        Returns:
            What is carried on, and the normed input of sub-layer `index` (or the final hidden state) [B, T, d].
        """
        raise NotImplementedError

    def stream(self, carried: Any) -> Tensor:
        """What is carried, as one residual stream [B, T, d]."""
        raise NotImplementedError

    def _begin(self, x: Tensor) -> Tensor:
        return x if self.residual_dtype is None else x.to(self.residual_dtype)

    def _add_norm(
        self, delta: Tensor, residual: Tensor | None, index: int
    ) -> tuple[Tensor, Tensor]:
        weight = self.norms[index].to(delta.dtype)
        residual, normed = self.ops.add_norm(delta, residual, weight, self.eps)
        return residual, normed if self.compute_dtype is None else normed.to(self.compute_dtype)


class ResidualStream(Stream):
    """One stream, pre-normed before every sub-layer by the op `add_norm`; what is carried is the stream."""

    def open(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """As `Stream.open`."""
        return self._add_norm(self._begin(x), None, 0)

    def add(self, delta: Tensor, carried: Tensor, index: int) -> tuple[Tensor, Tensor]:
        """As `Stream.add`."""
        return self._add_norm(delta.to(carried.dtype), carried, index)

    def stream(self, carried: Tensor) -> Tensor:
        """As `Stream.stream`."""
        return carried
