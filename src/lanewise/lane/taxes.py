"""Sizes and coefficients of the opt-in taxes; what switches each on is the feature of the same name in `[features]`.

The tables have defaults throughout, so that any lane can be asked what a tax costs. They are no part of the lane's
FLOP numerator.
"""

from __future__ import annotations

from lanewise.lane.spec import Count, NonNegativeCount, NonNegativeNumber, Ratio, Spec


class StpSpec(Spec):
    """Semantic tube prediction (arXiv 2602.22617), a penalty on hidden states: 1 − cos of two steps of a path."""

    coefficient: NonNegativeNumber = 0.05
    num_spans: Count = 4
    """Triples s < r < t drawn for every step."""
    start_step: NonNegativeCount = 0
    end_step: Count | None = None
    """First step without the penalty again; none keeps it on."""
    layers: tuple[NonNegativeCount, ...] = ()
    """Layers whose residual stream is penalised; empty is the final hidden state."""


class EngramSpec(Spec):
    """Engram branch beside every attention layer: causal averages over the last few positions of a low-rank map."""

    orders: tuple[Count, ...] = (2, 3, 4)
    bottleneck_ratio: Count = 4
    """Width of the branch is hidden_size ÷ this."""
    gated: bool = False
    conv_kernel_size: NonNegativeCount = 0
    """Taps of the depthwise causal convolution with SiLU; 0 leaves it out."""


class HyperConnectionsSpec(Spec):
    """mHC: several residual streams, mixed by a doubly stochastic matrix per sub-layer."""

    num_streams: Count = 4
    sinkhorn_iterations: Count = 5


class DepthRoutingSpec(Spec):
    """MoD: a share of the tokens passes through a token-wise block (E or D), the others skip it."""

    capacity_factor: Ratio = 0.5
    num_first_layers_kept: NonNegativeCount = 4


class MetadataEmbeddingsSpec(Spec):
    """Structure of the text so far (line, indentation, brackets, character class), embedded and added to the input."""

    num_buckets: Count = 64
