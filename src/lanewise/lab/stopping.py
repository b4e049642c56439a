"""Looks at a feature's blocks as they stand on the disk. Runner and analysis ask here, so they cannot disagree."""

from __future__ import annotations

from collections.abc import Sequence

from lanewise.lab.arms import Arms
from lanewise.lab.detect import question
from lanewise.lab.judge import JudgedBlock
from lanewise.lab.plan import CampaignPlan
from lanewise.lab.protocol import ALPHA
from lanewise.measure.looks import Look, Question, single_look, walk


def asked(plan: CampaignPlan, arms: Arms) -> Question:
    """What the plan asks of a feature; plans of 1.0 looked once, after all blocks."""
    planned = plan.feature(arms.feature)
    if planned.boundary is None:
        return single_look(
            planned.blocks,
            margin_log=plan.margin.log_value,
            tax_budget_ratio=arms.tax_budget_ratio,
        )
    return question(
        arms.feature,
        planned.blocks,
        margin_log=plan.margin.log_value,
        tax_budget_ratio=arms.tax_budget_ratio,
        boundary=planned.boundary,
    )


def confidence(plan: CampaignPlan, arms: Arms) -> float:
    """Coverage that intervals of a feature claim; plans of 1.0 and screens wrote down no looks."""
    boundary = plan.feature(arms.feature).boundary
    return 1 - (ALPHA if boundary is None else boundary.alpha)


def looks_at(
    plan: CampaignPlan, arms: Arms, blocks: Sequence[JudgedBlock], *, ended: bool
) -> tuple[Look, ...]:
    """The looks that the blocks which count have passed, the last of them the one that stops if one does.

    Args:
        plan: the plan.
        arms: the feature.
        blocks: finished blocks in the order they were run. A block's validity may depend on itself and on earlier blocks
            only, or a look could change after it was taken.
        ended: no further block will come, so that what is left after the last planned look counts as the last one.
    """
    return walk(contrasts(blocks), asked(plan, arms), ended=ended)


def contrasts(blocks: Sequence[JudgedBlock]) -> list[float]:
    """Effects of the blocks that count, in the order given."""
    return [contrast for block in blocks if (contrast := block.contrast_log) is not None]
