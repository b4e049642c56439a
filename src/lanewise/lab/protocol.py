"""The measurement protocol's constants: what `protocol_digest` covers, and every number a verdict rests on.

Two receipts are comparable only under the same protocol, so a change here is a new version.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Final, Literal

from lanewise.measure.stats import STEPS_PER_ARM_AND_QUAD
from lanewise.measure.steady import RULE
from lanewise.measure.steady_pair import PAIR_RULE
from lanewise.receipts.environment import HUGE_PAGES_TUNABLE

BlockDesign = Literal["lockstep", "sequential", "toggle"]

Claims = Literal["each", "family"]
"""What 5 % is shared by: the looks of one feature, or those of all features of a campaign."""

METHOD: Final = "paired-blocks-t"
"""Centre over quads of mean log B − mean log A per block; t-interval over blocks."""

METHOD_VERSION: Final = "2"
"""How a block is measured; every receipt hashes it. 1: the median over quads. 2: their Hodges–Lehmann centre, whose SD over 80
A/A blocks of 23 quads on a shared CPU was 1.47 % against 1.64 %."""

DECISION_VERSION: Final = "2"
"""How blocks become a decision. 1: one look, t interval. 2: planned looks, stage-wise interval; equal to 1 with one look."""

CONFIDENCE: Final = 0.95

ALPHA: Final = 0.05
"""Two-sided chance of a false difference over all looks of a feature, or over all features that share it."""

LEAD_STEPS: Final = 2
"""Steps each arm takes before the first quad. They never count; what is detected on top of them is dropped too."""

MIN_QUADS: Final = 5
"""Fewest quads of a block: ten quiet steps have to follow one that compiled or took memory, and on a GPU both lead steps do."""

MAX_QUADS: Final = 64
"""Beyond this what differs between processes rules a block, and more steps in one tell nothing."""

QUAD_NOISE_RATIO: Final = MappingProxyType({"lockstep": 10.0, "sequential": 1.0})
"""SD of one quad's contrast ÷ SD that remains between blocks however long they are. 82 A/A lockstep blocks of 16 quads
on a shared 2-core machine: quads have 8 to 12 %, and blocks 2.2 % where their quads alone explain 2.5 %,
so less than about 1 % is left to processes. A sequential block's noise is what drifts between visits."""

MIN_STEADY_QUADS: Final = 2
"""Fewest quads left after warm-up; a block with fewer has no steady state."""

STEPS_PER_QUAD: Final = STEPS_PER_ARM_AND_QUAD
"""Steps of one arm in a quad."""

MIN_BLOCKS: Final = 2
"""Fewest blocks of a feature: one block has no spread."""

VERDICT_BLOCKS: Final = 3
"""With two blocks the t-interval spans 12.7 standard errors; the plan aims for no fewer than this."""

MAX_BLOCKS: Final = 12
"""Most blocks that a budget alone buys."""

MAX_ASKED_BLOCKS: Final = 48
"""Most blocks that an effect asked for may take: beyond them a quieter machine is cheaper."""

ASSUMED_NOISE_LOG: Final = MappingProxyType({"lockstep": 0.03, "sequential": 0.10, "toggle": 0.03})
"""SD of a block's contrast on a shared CPU (docs: P1b, A/A probes); an A/A campaign replaces it. For `toggle` of a quad."""

CALIBRATION_BLOCKS: Final = 8
"""Fewest blocks of an A/A campaign that may widen the practical margin."""

PAIRED_LOSS_STEPS: Final = MappingProxyType({"fp32": 8, "bf16": 4})
"""Compute dtype → steps over which two arms of equal mathematics must agree. In fp32 rounding keeps them within 1e-7 of each
other for about twenty steps of the tiny lane; then training amplifies it by half each step until only the batch is common
to both, so later differences say nothing about correctness. In bf16 it starts higher and grows faster: on an H100 three
features of one lane, among them two implementations of AdamW, differed by 1e-4 nats at step 1, 7e-4 at step 3 and 7e-2 at
step 5."""

FOREIGN_LOAD_LIMIT: Final = 0.25
"""A block during which others took more of its processors' time than this is disturbed. Turns are drawn at random, so a
busy machine biases nothing; the limit keeps one block from ruling the spread."""

STEAL_LIMIT: Final = 0.10
"""The same for time the hypervisor gave to other machines."""

GOODPUT_CLOSURE_RATIO: Final = 1e-3
"""Largest part of wall time by which steps and badput may miss it."""

EVENT_WALL_RATIO: Final = 5e-3
"""Largest part of wall time by which the sum of device events may miss it (P3), what the host did between the steps set aside:
events lie around all that is done with a step, its wall time does not. On an H100 that was 0.22 ms of a step of 51 ms."""

EVENT_WALL_SECONDS_PER_STEP: Final = 5e-5
"""The same for short steps: an event is a moment on the device, which comes some microseconds after the host asked for it."""

HOST_BOUND_BUSY_RATIO: Final = 0.8
"""A step of which the device works less than this is said to be bound to the host. Kept out of every verdict: it is the
lane's own property, and what a feature then saves is the host's time."""

_LOSS_RATIO_PER_STEP = MappingProxyType({"fp32": 2e-5, "bf16": 5e-4})


def parameters(
    design: BlockDesign,
    *,
    num_threads: int,
    pinned: bool = False,
    cache: Literal["warm", "cold"] | None = None,
) -> dict[str, str | int | float | bool]:
    """What a child hashes into `protocol_digest`: everything but how many blocks and quads were affordable.

    Args:
        design: how a block is run.
        num_threads: threads of a process.
        pinned: whether processes are kept to processors of their own.
        cache: state of the compile caches that runs find; None where nobody prepared them.
    """
    return {
        "method": METHOD,
        "method_version": METHOD_VERSION,
        "design": design,
        "order": "randomised ABBA/BAAB",
        "warmup_rule": RULE if design == "sequential" else PAIR_RULE,
        "lead_steps": LEAD_STEPS,
        "num_threads": num_threads,
        "pinned": pinned,
        "compile_cache": cache or "shared",
        "malloc": HUGE_PAGES_TUNABLE,
    }


def steps_of(quads: int) -> int:
    """Optimizer steps that each arm takes in a block of so many quads."""
    return LEAD_STEPS + STEPS_PER_QUAD * quads


def quads_of(steps: int) -> int | None:
    """Quads of a block in which each arm takes exactly so many steps; None where there is no such block."""
    quads, rest = divmod(steps - LEAD_STEPS, STEPS_PER_QUAD)
    return quads if rest == 0 and quads >= MIN_QUADS else None


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
