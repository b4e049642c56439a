"""The measurement protocol's constants: what `protocol_digest` covers, and every number a verdict rests on.

Two receipts are comparable only under the same protocol, so a change here is a new version.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Final, Literal

from lanewise.measure.stats import STEPS_PER_ARM_AND_QUAD
from lanewise.measure.steady import RULE as WARMUP_RULE

BlockDesign = Literal["lockstep", "sequential", "toggle"]

METHOD: Final = "paired-blocks-t"
"""Median over quads of mean log B − mean log A per block; t-interval over blocks."""

METHOD_VERSION: Final = "1"
"""How a block is measured; every receipt hashes it."""

DECISION_VERSION: Final = "2"
"""How blocks become a decision. 1: one look, t interval. 2: planned looks, stage-wise interval; equal to 1 with one look."""

CONFIDENCE: Final = 0.95

LEAD_STEPS: Final = 2
"""Steps each arm takes before the first quad. They never count; what is detected on top of them is dropped too."""

MIN_QUADS: Final = 3
"""Fewest quads of a block: both orders occur, and a median has a middle."""

MAX_QUADS: Final = 24
"""More steps in one process sharpen a block less than one more block does."""

MIN_STEADY_QUADS: Final = 2
"""Fewest quads left after warm-up; a block with fewer has no steady state."""

STEPS_PER_QUAD: Final = STEPS_PER_ARM_AND_QUAD
"""Steps of one arm in a quad."""

MIN_BLOCKS: Final = 2
"""Fewest blocks of a feature: one block has no spread."""

VERDICT_BLOCKS: Final = 3
"""With two blocks the t-interval spans 12.7 standard errors; the plan aims for no fewer than this."""

TARGET_BLOCKS: Final = 4

MAX_BLOCKS: Final = 12
"""Most blocks that a budget alone buys."""

MAX_ASKED_BLOCKS: Final = 48
"""Most blocks that an effect asked for may take: beyond them a quieter machine is cheaper."""

ASSUMED_NOISE_LOG: Final = MappingProxyType({"lockstep": 0.03, "sequential": 0.10, "toggle": 0.03})
"""SD of a block's contrast on a shared CPU (docs: P1b, A/A probes); an A/A campaign replaces it. For `toggle` of a quad."""

CALIBRATION_BLOCKS: Final = 8
"""Fewest blocks of an A/A campaign that may widen the practical margin."""

PAIRED_LOSS_STEPS: Final = 8
"""Steps over which two arms of equal mathematics must agree. Rounding keeps them within 1e-7 of each other for about
twenty steps of the tiny lane; then training amplifies it by half each step until only the batch is common to both, so
later differences say nothing about correctness."""

_LOSS_RATIO_PER_STEP = MappingProxyType({"fp32": 2e-5, "bf16": 2e-3})


def parameters(design: BlockDesign, *, num_threads: int) -> dict[str, str | int | float | bool]:
    """What a child hashes into `protocol_digest`: everything but how many blocks and quads were affordable."""
    return {
        "method": METHOD,
        "method_version": METHOD_VERSION,
        "design": design,
        "order": "randomised ABBA/BAAB",
        "warmup_rule": WARMUP_RULE,
        "lead_steps": LEAD_STEPS,
        "num_threads": num_threads,
    }


def loss_tolerance(step: int, loss: float, compute: str) -> float:
    """Largest difference, in nats, between the losses of two arms that promise the same mathematics.

    Both start from the same weights and rows, so step 0 differs by rounding only, and each step adds its own. A wrong
    forward breaks the bound at step 0, a wrong gradient at step 1 (the auxiliary losses of `nam56r-tiny`, a change of
    mathematics on purpose, move step 1 by 1e-3 nats, more than four times the bound).

    Args:
        step: optimizer step, 0-based.
        loss: loss of the control at that step.
        compute: dtype of the matmuls, `fp32` or `bf16`.
    """
    return abs(loss) * _LOSS_RATIO_PER_STEP[compute] * (step + 1)
