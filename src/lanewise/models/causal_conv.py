"""Depthwise causal convolution of Mamba-2 and M2RNN, within documents, and its decoding state.

    y[t, c] = bias[c] + Σ_j weight[c, j] · x[t − (J − 1) + j, c]

where x before the start of the document of t counts as zero. Legend: B batch, T sequence, C channels, J taps.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def causal_depthwise_conv(
    x: Tensor, weight: Tensor, bias: Tensor, document_ids: Tensor | None = None
) -> Tensor:
    """Filter whole rows.

    Args:
        x: [B, T, C].
        weight: [C, J], the last tap multiplies the present.
        bias: [C].
        document_ids: int64 [B, T], never falling along a row and rising where a document begins; None when a row is one
            document.

    Returns:
        [B, T, C] in the dtype of `x`.
    """
    if document_ids is not None:
        # Rounded to the dtype of x as `_filter` rounds them, summed in fp32 or wider as conv1d sums.
        wide = torch.promote_types(x.dtype, torch.float32)
        weight, bias = (part.to(x.dtype).to(wide) for part in (weight, bias))
        return _within_documents(x, weight, bias, document_ids).to(x.dtype)
    return _filter(F.pad(x, (0, 0, weight.shape[1] - 1, 0)), weight, bias)


def extend_causal_conv(
    x: Tensor, weight: Tensor, bias: Tensor, state: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Filter the next tokens.

    Args:
        x: [B, T, C].
        weight: [C, J], the last tap multiplies the present.
        bias: [C].
        state: the J − 1 inputs before `x` [B, J − 1, C]; None at the start of the texts.

    Returns:
        [B, T, C] in the dtype of `x`, and the state after it.
    """
    if state is None:
        state = x.new_zeros(x.shape[0], weight.shape[1] - 1, x.shape[2])
    with_state = torch.cat([state, x], dim=1)
    # A copy, so that the state does not keep the whole piece alive.
    return _filter(with_state, weight, bias), with_state[:, x.shape[1] :].clone()


def _filter(padded: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """[B, J − 1 + T, C] → [B, T, C]."""
    kernel = weight.to(padded.dtype).unsqueeze(1)
    y = F.conv1d(padded.transpose(1, 2), kernel, bias.to(padded.dtype), groups=len(kernel))
    return y.transpose(1, 2)


def _within_documents(x: Tensor, weight: Tensor, bias: Tensor, document_ids: Tensor) -> Tensor:
    y = bias + weight[:, -1] * x
    for lag in range(1, min(weight.shape[1], x.shape[1])):
        same_document = document_ids[:, lag:] == document_ids[:, :-lag]
        # Selected, not multiplied by zero: what stands in another document does not matter, not even an infinity.
        earlier = torch.where(same_document.unsqueeze(-1), x[:, :-lag], 0)
        y = y + F.pad(weight[:, -1 - lag] * earlier, (0, 0, lag, 0))
    return y
