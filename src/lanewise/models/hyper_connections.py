"""Hyper-connections: n residual streams that every sub-layer reads, mixes and writes to by learned weights (a tax).

    x_i     = Σ_n p_in H_n                           input of sub-layer i, then RMSNorm
    H'_n    = Σ_m R_i,nm H_m + w_in F_i(x_i)         R_i doubly stochastic: Sinkhorn over exp(logits_i), in fp32
    hidden  = RMSNorm(mean_n H_n)                    the streams are copies of the embedding at the start

Sources: Hyper-Connections, arXiv 2409.19606; manifold constraint on R, arXiv 2512.24880. p, w and R are static here: they
belong to a sub-layer and do not depend on its input, so nothing looks ahead. The published branch mixer takes its weights
from a pooling over all positions of the row, which lets a token see later ones; no such form is built.

Start: p_i is 1 on stream i mod n and 0 elsewhere, w is 1, R near the identity (the static start of arXiv 2409.19606, §3.2).
All streams are then equal and rows of R sum to 1, so the start is the plain residual stream, while the streams get
different gradients. Rows are normalised last, hence exact; columns sum to 1 as far as the iterations get.
The mean, and not the sum, is normalised at the end, so that `eps` means what it means with one stream.
Legend: B batch, T sequence, d hidden, n streams, L sub-layers.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lanewise.lane.taxes import HyperConnectionsSpec
from lanewise.models.layers import special_parameter
from lanewise.models.residual import Stream
from lanewise.ops.opset import OpSet

START_LOGIT = 8.0
"""Logit of the diagonal of R at the start, the others being 0: e⁻⁸ of every stream goes to each other one."""


class Streams(NamedTuple):
    """What is carried between sub-layers.

    Attributes:
        values: [n, B, T, d]; stream first, so that mixing is one matrix product.
        mixing: fp32 [L, n, n], R of every sub-layer, computed once per forward.
    """

    values: Tensor
    mixing: Tensor


class HyperConnections(Stream):
    """Several residual streams.

    Args:
        spec: number of streams and of Sinkhorn iterations.
        num_layers: L.
        hidden_size: d.
        eps: of the norms.
        compute_dtype: what sub-layers are fed; None leaves it as the streams are.
        residual_dtype: of the streams; None leaves it as the embedding is.
        ops: the op set of the model.

    Attributes:
        read: p, fp32 [L, n].
        write: w, fp32 [L, n].
        mixing_logits: fp32 [L, n, n].
    """

    def __init__(
        self,
        spec: HyperConnectionsSpec,
        *,
        num_layers: int,
        hidden_size: int,
        eps: float,
        compute_dtype: torch.dtype | None,
        residual_dtype: torch.dtype | None,
        ops: OpSet,
    ) -> None:
        super().__init__(
            num_layers=num_layers,
            hidden_size=hidden_size,
            eps=eps,
            compute_dtype=compute_dtype,
            residual_dtype=residual_dtype,
            ops=ops,
        )
        self.spec = spec
        streams = torch.eye(spec.num_streams)
        self.read = special_parameter(streams[torch.arange(num_layers) % spec.num_streams])
        self.write = special_parameter(torch.ones(num_layers, spec.num_streams))
        self.mixing_logits = special_parameter((START_LOGIT * streams).repeat(num_layers, 1, 1))

    def open(self, x: Tensor) -> tuple[Streams, Tensor]:
        """As `Stream.open`; every stream starts as the embedding."""
        x = self._begin(x)
        values = x.unsqueeze(0).expand(self.spec.num_streams, *x.shape)
        carried = Streams(values, sinkhorn(self.mixing_logits, self.spec.sinkhorn_iterations))
        return carried, self._normed_input(carried, 0)

    def add(self, delta: Tensor, carried: Streams, index: int) -> tuple[Streams, Tensor]:
        """As `Stream.add`; mixes the streams first."""
        values = carried.values
        mixing = carried.mixing[index - 1].to(values.dtype)
        write = self.write[index - 1].to(values.dtype)
        mixed = (mixing @ values.flatten(1)).view_as(values)
        carried = carried._replace(values=mixed + write.view(-1, 1, 1, 1) * delta.to(values.dtype))
        return carried, self._normed_input(carried, index)

    def stream(self, carried: Streams) -> Tensor:
        """As `Stream.stream`: the mean of the streams."""
        return carried.values.mean(0)

    def _normed_input(self, carried: Streams, index: int) -> Tensor:
        if index == len(self.read):
            return self._add_norm(self.stream(carried), None, index)[1]
        values = carried.values
        read = self.read[index].to(values.dtype)
        x = (read @ values.flatten(1)).view(values.shape[1:])
        return self._add_norm(x, None, index)[1]


def sinkhorn(logits: Tensor, iterations: int) -> Tensor:
    """Doubly stochastic matrices from exp(logits) (Sinkhorn and Knopp 1967): columns, then rows, normalised in turn.

    Works on logarithms, so that no exponential under- or overflows.

    Args:
        logits: [..., n, n], fp32 or fp64.
        iterations: how many times; rows sum to 1 after any number, columns ever better.

    Returns:
        [..., n, n] in the dtype of `logits`.
    """
    for _ in range(iterations):
        logits = logits - torch.logsumexp(logits, dim=-2, keepdim=True)
        logits = logits - torch.logsumexp(logits, dim=-1, keepdim=True)
    return logits.exp()
