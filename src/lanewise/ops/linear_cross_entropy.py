"""Linear head and cross-entropy, averaged over the targets that count.

    loss = (1 / |C|) Σ_{s ∈ C} [ log Σ_w exp(h_s·W_w) − h_s·W_{target_s} ],   C = {s : target_s ≠ ignore_index}

Legend: S tokens, d hidden size, W vocabulary. Problem dims: S, d, W.
Shapes: hidden [S, d], weight [W, d], targets [S] int64 → scalar, in nats per token. No target counts → 0, with zero
gradients. A target outside [0, W) that is not ignore_index is an error of the indexing kernel.
Dtypes: hidden and weight alike; loss, softmax and sums over tokens in fp32 (fp64 for fp64 inputs).
Source: the formula; the chunked evaluation follows Wijmans et al., "Cut your losses", arXiv 2411.09009, §3, without
its recomputation of logits.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lanewise.ops.observe import Launch
from lanewise.ops.spec import Backend, OpSpec

SPEC = OpSpec(
    name="linear_cross_entropy",
    reference="reference",
    backends=(
        Backend(
            name="chunked.torch",
            target="lanewise.kernels.linear_cross_entropy_torch:chunked",
            note="logits of one token chunk at a time; gradients in the forward",
        ),
        Backend(
            name="plain.torch",
            target="lanewise.kernels.linear_cross_entropy_torch:plain",
            note="whole logits, then torch.nn.functional.cross_entropy",
        ),
        Backend(
            name="reference",
            target="lanewise.ops.linear_cross_entropy:reference",
            note="the oracle: the formula over whole logits",
        ),
    ),
)


def reference(hidden: Tensor, weight: Tensor, targets: Tensor, ignore_index: int) -> Tensor:
    """The formula over whole logits."""
    wide = torch.promote_types(hidden.dtype, torch.float32)
    logits_SW = (hidden @ weight.t()).to(wide)
    counts = targets != ignore_index
    target_S1 = torch.where(counts, targets, 0).unsqueeze(1)
    loss_S = torch.logsumexp(logits_SW, dim=1) - logits_SW.gather(1, target_S1).squeeze(1)
    return torch.where(counts, loss_S, 0.0).sum() / counts.sum().clamp(min=1)


def linear_cross_entropy(
    run: Launch, hidden: Tensor, weight: Tensor, targets: Tensor, ignore_index: int
) -> Tensor:
    """Mean cross-entropy of a linear head, with the chosen backend.

    Args:
        run: the chosen backend.
        hidden: [S, d].
        weight: [W, d].
        targets: [S] int64; `ignore_index` marks tokens that do not count.
        ignore_index: e.g. −100.

    Returns:
        Scalar, nats per counted token.
    """
    if hidden.dim() != 2 or weight.dim() != 2 or hidden.shape[1] != weight.shape[1]:
        raise ValueError(
            f"linear_cross_entropy: hidden is {list(hidden.shape)} and weight {list(weight.shape)}; "
            "they must be [S, d] and [W, d]"
        )
    if targets.shape != hidden.shape[:1] or targets.dtype != torch.int64:
        raise ValueError(
            f"linear_cross_entropy: targets are {list(targets.shape)} {targets.dtype} and must be "
            f"[S] = {list(hidden.shape[:1])} int64"
        )
    loss: Tensor = run(hidden, weight, targets, ignore_index)
    return loss
