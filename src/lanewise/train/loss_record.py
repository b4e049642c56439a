"""Auxiliary losses in a receipt: what they were, and what they added to the loss."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from lanewise.receipts.extension_keys import LAYER_LOSSES_KEY as LAYER_LOSSES_KEY
from lanewise.receipts.extension_keys import LOSS_PARTS_KEY as LOSS_PARTS_KEY

AUXILIARY_KEY = "io.lanewise.auxiliary_losses"
"""Key in `extensions`: unweighted auxiliary losses, e.g. `mtp_1` in nats per token, of the run's first and last step that
had them: STP has a window of steps."""

Summary = dict[str, float | None]
Values = Mapping[str, Sequence[float]]
"""Auxiliary loss by name → its value in every step that had it."""


LayerValues = Mapping[tuple[int, str], Sequence[float]]
"""(layer, auxiliary loss) → its value in every step that had it."""


def loss_extensions(
    unweighted: Values, parts: Values, of_layers: LayerValues | None = None
) -> dict[str, Any]:
    """The entries of `extensions`; none for a run without auxiliary losses. A value that is not finite is null."""
    extensions: dict[str, Any] = {}
    if unweighted:
        extensions[AUXILIARY_KEY] = {name: _ends(values) for name, values in unweighted.items()}
    if parts:
        extensions[LOSS_PARTS_KEY] = {name: _summary(values) for name, values in parts.items()}
    if of_layers:
        table: dict[str, dict[str, Summary]] = {}
        for (layer, name), values in sorted(of_layers.items()):
            table.setdefault(name, {})[str(layer)] = _summary(values)
        extensions[LAYER_LOSSES_KEY] = table
    return extensions


def _summary(values: Sequence[float]) -> Summary:
    return {**_ends(values), "mean": _finite(math.fsum(values) / len(values))}


def _ends(values: Sequence[float]) -> Summary:
    return {"first": _finite(values[0]), "last": _finite(values[-1])}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
