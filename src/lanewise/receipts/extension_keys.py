"""Keys in a receipt's `extensions` that views read; written by `train`."""

from __future__ import annotations

from typing import Final

LOSS_PARTS_KEY: Final = "io.lanewise.loss_parts"
"""What every auxiliary loss added to the cross-entropy: first, last and mean of the steps that had it."""
LAYER_LOSSES_KEY: Final = "io.lanewise.layer_losses"
"""Auxiliary loss by name → layer (0-based, as text) → what that layer added: first, last and mean."""
INITIAL_WEIGHTS_KEY: Final = "io.lanewise.initial_weights"
"""Lane digest and step of the checkpoint whose weights step 0 started with."""
KERNELS_KEY: Final = "io.lanewise.kernels"
"""Op → device kernels seen in a profiled step outside of the timed window; absent on a CPU, which has none."""
PROTOCOL_KEY: Final = "io.lanewise.protocol"
"""Parameters of the measurement protocol behind `protocol_digest`."""
