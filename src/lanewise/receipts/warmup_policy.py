"""Why a run compiled before its first step, or did not: one vocabulary for what public samples call by two.

Two public samples name the same decisions differently, the summary of a compile lane and the policy that decides on a
warm-up. `FORMER_NAMES` maps every name of both; docs/VIEWS.md shows the table.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from types import MappingProxyType


class WarmupPolicy(enum.StrEnum):
    """What was done about compiling ahead of the first step."""

    EXPLICIT = "explicit"
    """A made-up batch goes forward and backward before step 0, so that no training step compiles."""
    NOTHING_COMPILED = "nothing_compiled"
    """The lane runs eagerly, so there is nothing to warm up."""
    LEFT_TO_FIRST_STEP = "left_to_first_step"
    """Skipped because regional compile with experts stalled in it on CUDA; the first steps compile."""
    SKIPPED_OFF_CUDA = "skipped_off_cuda"
    """Skipped because the device is not CUDA; the first steps compile. lanewise itself does not skip it."""
    SWITCHED_OFF = "switched_off"
    """The user asked for none."""

    @property
    def is_enabled(self) -> bool:
        """Whether anything was compiled ahead of the first step."""
        return self is WarmupPolicy.EXPLICIT


FORMER_NAMES: Mapping[str, WarmupPolicy] = MappingProxyType(
    {
        # the summary of a compile lane
        "compile_disabled": WarmupPolicy.NOTHING_COMPILED,
        "lazy_compile_after_skip": WarmupPolicy.LEFT_TO_FIRST_STEP,
        "explicit_cuda_warmup": WarmupPolicy.EXPLICIT,
        "non_cuda_compile": WarmupPolicy.SKIPPED_OFF_CUDA,
        # the policy that decides
        "user_disabled": WarmupPolicy.SWITCHED_OFF,
        "fsdp_cuda_eager_mode": WarmupPolicy.NOTHING_COMPILED,
        "non_cuda_lane": WarmupPolicy.SKIPPED_OFF_CUDA,
        "cuda_regional_compile_plus_moe": WarmupPolicy.LEFT_TO_FIRST_STEP,
        "explicit_warmup_allowed": WarmupPolicy.EXPLICIT,
    }
)
"""Name in either public sample → ours."""
