"""What a plan can detect, and what detecting an effect takes: looks, levels and blocks, all before the first block."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence

from lanewise.errors import UsageError
from lanewise.lab import protocol
from lanewise.lab.arms import NO_FEATURE, Arms
from lanewise.lab.keys import split_key
from lanewise.lab.margin import Noise
from lanewise.lab.plan import FeaturePlan
from lanewise.measure.boundary import fewest_blocks, plan_boundary, smallest_effect
from lanewise.measure.looks import Question, single_look
from lanewise.measure.stats import mde
from lanewise.receipts.decision import Boundary


def parse_effect(text: str) -> float:
    """Size on the log scale of an effect such as `2%`.

    Raises:
        UsageError: it is not a positive percentage.
    """
    found = re.fullmatch(r"\s*[+±]?([0-9]+(?:\.[0-9]+)?)\s*%\s*", text)
    ratio = float(found.group(1)) / 100 if found else 0.0
    if ratio <= 0:
        raise UsageError(
            f"--effect {text!r} is not a change of step time; write a positive percentage: 2% or 0.5%"
        )
    return math.log1p(ratio)


def question(
    feature: str,
    num_blocks: int,
    *,
    margin_log: float,
    tax_budget_ratio: float | None,
    boundary: Boundary | None = None,
    alpha: float = protocol.ALPHA,
) -> Question:
    """What is asked of a feature's blocks.

    Args:
        feature: its key; an A/A is looked at once, after all blocks, because nothing it could show ends it early.
        num_blocks: blocks planned.
        margin_log: practical margin.
        tax_budget_ratio: budget of a tax.
        boundary: looks as an earlier plan wrote them down; None plans them.
        alpha: chance of a false difference over the looks to be planned.
    """
    if split_key(feature)[0] == NO_FEATURE:
        return single_look(num_blocks, margin_log=margin_log)
    return Question(
        boundary=boundary or plan_boundary(num_blocks, alpha=alpha),
        margin_log=margin_log,
        tax_budget_ratio=tax_budget_ratio,
    )


def blocks_to_find(
    effect_log: float, asked: Iterable[Arms], noise: Noise, *, alpha: float = protocol.ALPHA
) -> Mapping[str, int]:
    """Feature → fewest blocks that find an effect with 80 % power, at the known noise and with the planned looks.

    Args:
        effect_log: the effect; for a tax a distance from its budget, on either side.
        asked: features.
        noise: of a block's contrast, and the margin that an estimate must reach.
        alpha: chance of a false difference over a feature's looks.

    Raises:
        UsageError: the effect is within the margin, or takes more blocks than a campaign may have.
    """
    needed: dict[str, int] = {}
    by_margin: dict[float, int] = {}
    for arms in asked:
        margin = _smallest_verdict(arms.feature, noise.margin.log_value, arms.tax_budget_ratio)
        if margin not in by_margin:
            by_margin[margin] = _fewest(effect_log, margin, noise, alpha)
        needed[arms.feature] = by_margin[margin]
    return needed


def registered(
    features: Sequence[FeaturePlan],
    asked: Iterable[Arms],
    noise: Noise,
    *,
    looks_once: Collection[str] = (),
    alpha: float = protocol.ALPHA,
) -> tuple[FeaturePlan, ...]:
    """The features with their looks written down, and the smallest effect these find.

    Args:
        features: with their blocks.
        asked: their arms.
        noise: of a block's contrast.
        looks_once: features that are looked at after all blocks alone.
        alpha: chance of a false difference over a feature's looks.
    """
    budgets = {arms.feature: arms.tax_budget_ratio for arms in asked}
    found: dict[tuple[int, bool, float], tuple[Boundary, float]] = {}
    planned = []
    for feature in features:
        if feature.skipped_reason is not None:
            planned.append(feature)
            continue
        key = feature.feature
        margin = _smallest_verdict(key, noise.margin.log_value, budgets[key])
        once = key in looks_once
        case = (feature.blocks, once or split_key(key)[0] == NO_FEATURE, margin)
        if case not in found:
            boundary = question(
                key,
                feature.blocks,
                margin_log=noise.margin.log_value,
                tax_budget_ratio=budgets[key],
                boundary=single_look(feature.blocks, margin_log=margin, alpha=alpha).boundary
                if once
                else None,
                alpha=alpha,
            ).boundary
            found[case] = (
                boundary,
                smallest_effect(noise.block_sd_log, boundary, margin_log=margin),
            )
        boundary, detectable = found[case]
        planned.append(
            feature.model_copy(update={"boundary": boundary, "detectable_log": detectable})
        )
    return tuple(planned)


def planned_mde(noise_log: float, features: Iterable[FeaturePlan]) -> float:
    """Smallest effect on log step time that every planned feature's looks find with 80 % power."""
    known = [f.detectable_log for f in features if f.detectable_log is not None]
    return max(known, default=mde(noise_log, protocol.MIN_BLOCKS))


def _smallest_verdict(feature: str, margin_log: float, tax_budget_ratio: float | None) -> float:
    """How far from the effect tested a mean must lie: δ, or nothing for a tax against its budget and for an A/A."""
    return (
        0.0 if split_key(feature)[0] == NO_FEATURE or tax_budget_ratio is not None else margin_log
    )


def _fewest(effect_log: float, margin_log: float, noise: Noise, alpha: float) -> int:
    effect = f"{math.expm1(effect_log):.2%}"
    known = f"block noise {math.expm1(noise.block_sd_log):.2%} ({noise.source})"
    if effect_log <= margin_log:
        raise UsageError(
            f"--effect {effect} lies within the margin of {math.expm1(margin_log):.2%} ({noise.margin.source}), and "
            "an estimate within the margin is never a verdict; ask for a larger --effect, or lower the margin with "
            "an A/A of more blocks on a quieter machine (`lanewise calibrate`)"
        )
    most = protocol.MAX_ASKED_BLOCKS
    found = fewest_blocks(
        noise.block_sd_log, effect_log, margin_log=margin_log, alpha=alpha, most=most
    )
    if found is None:
        least = smallest_effect(
            noise.block_sd_log, plan_boundary(most, alpha=alpha), margin_log=margin_log
        )
        raise UsageError(
            f"--effect {effect} takes more than {most} blocks at {known} and margin {math.expm1(margin_log):.2%}; "
            f"{most} find {math.expm1(least):.2%} with 80 % power. Ask for that, measure the noise with "
            "`lanewise calibrate`, or use a quieter machine"
        )
    return max(found, protocol.VERDICT_BLOCKS)
