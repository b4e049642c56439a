"""Blocks of several machines of one class in one campaign: each is within one machine; together they count if they agree.

A block never crosses a machine, so its contrast is clean whichever ran it. Whether the contrasts of two machines may be
pooled is asked of the blocks themselves: the means of a machine's blocks and of the first machine's must differ by less than
2 standard errors, with the SD within machines pooled over all of them (measurement protocol, plan for hosts that are lent
for minutes). Where they differ by more, or too few blocks tell, the feature has no verdict. Leaving out the blocks that
disagree instead would choose evidence by its outcome.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

POOL_STANDARD_ERRORS = 2.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Disagreement:
    """Why a machine's blocks are not pooled with the first machine's.

    Attributes:
        text: in words.
        is_difference: whether the means differ; else too few blocks tell whether they do.
    """

    text: str
    is_difference: bool


def disagreements(strata: Mapping[str, Sequence[float]]) -> dict[str, Disagreement]:
    """Machines whose blocks do not join those of the first one.

    Args:
        strata: machine → contrasts of its blocks that count, on the log scale; the first machine is the reference.
    """
    known = {machine: contrasts for machine, contrasts in strata.items() if contrasts}
    if len(known) < 2:
        return {}
    first, *others = known
    degrees = sum(len(contrasts) - 1 for contrasts in known.values())
    if degrees == 0:
        text = "another machine of the class, and no machine has two blocks to compare it by"
        return {machine: Disagreement(text=text, is_difference=False) for machine in others}
    squares = sum(
        (value - fmean(contrasts)) ** 2 for contrasts in known.values() for value in contrasts
    )
    sd = math.sqrt(squares / degrees)
    found = {}
    for machine in others:
        gap = abs(fmean(known[machine]) - fmean(known[first]))
        error = sd * math.sqrt(1 / len(known[machine]) + 1 / len(known[first]))
        if gap >= POOL_STANDARD_ERRORS * error and gap > 0.0:
            times = f"{gap / error:.1f} standard errors" if error > 0 else "with no noise at all"
            text = (
                f"another machine of the class, whose blocks differ from the first one's by {math.expm1(gap):.2%}, "
                f"{times}, and {POOL_STANDARD_ERRORS:g} are too many to pool them; run a campaign on each"
            )
            found[machine] = Disagreement(text=text, is_difference=True)
    return found
