"""The per-step series of a run and the summary of its steady steps."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType

import numpy as np

from lanewise.receipts.schema import StepSeries, StepSummary

NO_PARTS: Mapping[str, float] = MappingProxyType({})


class StepRecorder:
    """Appends one entry per step; a constant number of appends, no arithmetic, no I/O."""

    def __init__(self) -> None:
        self._step: list[int] = []
        self._start_seconds: list[float] = []
        self._duration_seconds: list[float] = []
        self._data_wait_seconds: list[float] = []
        self._loss: list[float] = []
        self._grad_norm: list[float] = []
        self._tags: dict[str, list[int]] = {}
        self._loss_parts: list[Mapping[str, float]] = []

    def __len__(self) -> int:
        return len(self._step)

    def record(
        self,
        *,
        step: int,
        start_seconds: float,
        duration_seconds: float,
        data_wait_seconds: float,
        loss: float,
        grad_norm: float,
        tags: Collection[str] = (),
        loss_parts: Mapping[str, float] = NO_PARTS,
    ) -> None:
        """Append one step.

        Args:
            step: optimizer step, 0-based; a resumed run does not start at 0.
            start_seconds: since the run began.
            duration_seconds: of the whole step, data wait included if the caller includes it.
            data_wait_seconds: of that, waiting for the loader.
            loss: nats per token.
            grad_norm: global norm before clipping.
            tags: what else happened in this step (`compile`, `gc`, `checkpoint`, `eval`); tagged steps are kept.
            loss_parts: weighted auxiliary losses of this step, by name.
        """
        index = len(self._step)
        self._step.append(step)
        self._start_seconds.append(start_seconds)
        self._duration_seconds.append(duration_seconds)
        self._data_wait_seconds.append(data_wait_seconds)
        self._loss.append(loss)
        self._grad_norm.append(grad_norm)
        for tag in tags:
            self._tags.setdefault(tag, []).append(index)
        self._loss_parts.append(loss_parts)

    @property
    def durations_seconds(self) -> tuple[float, ...]:
        """Duration of every step so far, in order."""
        return tuple(self._duration_seconds)

    def tagged(self, *tags: str) -> frozenset[int]:
        """Indices (not step numbers) of the steps that carry any of `tags`."""
        return frozenset(index for tag in tags for index in self._tags.get(tag, ()))

    def tag_counts(self) -> dict[str, int]:
        """Tag → number of steps carrying it, as `Timing.step_tags` wants it."""
        return {tag: len(indices) for tag, indices in sorted(self._tags.items())}

    def series(self) -> StepSeries:
        """Everything recorded, as the sidecar of a receipt."""
        return StepSeries(
            step=tuple(self._step),
            start_seconds=tuple(self._start_seconds),
            duration_seconds=tuple(self._duration_seconds),
            data_wait_seconds=tuple(self._data_wait_seconds),
            loss=tuple(self._loss),
            grad_norm=tuple(self._grad_norm),
            tags={tag: tuple(indices) for tag, indices in sorted(self._tags.items())},
            loss_parts={
                name: tuple(parts.get(name) for parts in self._loss_parts)
                for name in self.loss_parts()
            },
        )

    def loss_parts(self) -> dict[str, tuple[float, ...]]:
        """Weighted auxiliary losses by name, sorted: the values of the steps that had one, finite or not."""
        names = sorted({name for parts in self._loss_parts for name in parts})
        return {
            name: tuple(parts[name] for parts in self._loss_parts if name in parts)
            for name in names
        }


def summarise(durations_seconds: Sequence[float]) -> StepSummary:
    """Location and spread of step durations, in seconds.

    `p10` and `p90` interpolate linearly; `mad` is the unscaled median absolute deviation from the median.

    Raises:
        ValueError: no durations; a summary of nothing does not exist (store None instead).
    """
    if not durations_seconds:
        raise ValueError("no step durations to summarise; keep the field null and say why")
    values = np.asarray(durations_seconds, dtype=np.float64)
    p10, median, p90 = (float(q) for q in np.quantile(values, (0.1, 0.5, 0.9)))
    return StepSummary(
        count=len(values),
        median=median,
        mean=float(values.mean()),
        p10=p10,
        p90=p90,
        mad=float(np.median(np.abs(values - median))),
    )
