"""STP, semantic tube prediction (arXiv 2602.22617): hidden states should move straight ahead over a text.

    L = 1 − mean cos(h[r] − h[s], h[t] − h[r])        over spans s < r < t, rows and chosen layers

0 for a straight path, 2 for one that turns back. The spans of a step are drawn anew from (seed, step), so that a resumed
run sees those it would have seen: three integers in [0, T − 2), sorted, plus (0, 1, 2). A span that crosses from one
document into another does not count; where none counts, and for T < 3, L = 0.

Legend: B batch, T sequence, d hidden, n spans.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lanewise.lane.taxes import StpSpec

_SPANS = 0x5750
"""Third word of the seed, apart from other uses of (seed, step)."""

LEAST_STEP = 1e-3
"""Steps of a path shorter than this count as this long: the cosine's gradient grows as one over the step, without bound
where two hidden states coincide (their entries are of order 1)."""


class TrajectoryPenalty:
    """The penalty of one lane.

    Args:
        spec: coefficient, spans, window and layers.
        seed: of the lane.
    """

    def __init__(self, spec: StpSpec, *, seed: int) -> None:
        self.spec = spec
        self.layers = spec.layers
        self.coefficient = spec.coefficient
        self._seed = seed

    def is_active(self, step: int) -> bool:
        """Whether start_step ≤ step < end_step."""
        end = self.spec.end_step
        return self.spec.start_step <= step and (end is None or step < end)

    def __call__(
        self, paths: Sequence[Tensor], step: int, document_ids: Tensor | None = None
    ) -> Tensor:
        """The unweighted penalty, an fp32 scalar (fp64 for fp64 paths).

        Args:
            paths: hidden states [B, T, d] of each chosen layer.
            step: the optimizer step, 0-based.
            document_ids: int64 [B, T], rising by one where a document begins; None when rows are one document.
        """
        length = paths[0].shape[1]
        if length < 3:
            return paths[0].new_zeros((), dtype=torch.promote_types(paths[0].dtype, torch.float32))
        generator = np.random.PCG64(np.random.SeedSequence((self._seed, step, _SPANS)))
        spans = draw_spans(generator, num_spans=self.spec.num_spans, length=length)
        return trajectory_loss(paths, spans.to(paths[0].device), document_ids)


def draw_spans(generator: np.random.PCG64, *, num_spans: int, length: int) -> Tensor:
    """Triples s < r < t of positions below `length`, int64 [n, 3].

    NumPy keeps the raw output of PCG64 the same across versions and platforms; the remainder's bias is below 2⁻⁴⁰.

    Args:
        generator: advanced by three draws a span.
        num_spans: n.
        length: T ≥ 3.
    """
    raw = generator.random_raw(3 * num_spans) % np.uint64(length - 2)
    spans = np.sort(raw.astype(np.int64).reshape(num_spans, 3), axis=1) + np.arange(3)
    return torch.from_numpy(spans)


def trajectory_loss(
    paths: Sequence[Tensor], spans: Tensor, document_ids: Tensor | None = None
) -> Tensor:
    """1 − mean cos over spans, rows and paths; 0 where no span counts.

    Args:
        paths: hidden states [B, T, d] each.
        spans: int64 [n, 3], s < r < t.
        document_ids: int64 [B, T], rising by one where a document begins; None when rows are one document.
    """
    s, r, t = spans.unbind(dim=1)
    cosines_PBn = torch.stack([_turns(path, s, r, t) for path in paths])
    if document_ids is None:
        return 1 - cosines_PBn.mean()
    counts_Bn = document_ids[:, s] == document_ids[:, t]
    turned = torch.where(counts_Bn, 1 - cosines_PBn, 0.0).sum()
    return turned / (counts_Bn.sum() * len(paths)).clamp(min=1)


def _turns(path: Tensor, s: Tensor, r: Tensor, t: Tensor) -> Tensor:
    """cos(h[r] − h[s], h[t] − h[r]): [B, T, d] → [B, n]."""
    path = path.to(torch.promote_types(path.dtype, torch.float32))
    first, second = path[:, r] - path[:, s], path[:, t] - path[:, r]
    return F.cosine_similarity(first, second, dim=-1, eps=LEAST_STEP)
