"""What a resumed campaign must agree with: the command that started it, and every flag given beside `--resume`.

A plan is written once, so a flag that says something else cannot be followed; it is refused rather than passed over.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from lanewise.errors import CampaignError, UsageError
from lanewise.lab.arms import NO_FEATURE, OBSERVER, PLANTED
from lanewise.lab.campaign import CampaignFolder, plans_and_damaged
from lanewise.lab.keys import Verb, split_key
from lanewise.lab.plan import CampaignPlan
from lanewise.lab.prepare import CampaignOptions, measured_lane
from lanewise.lane.compare import diff_lanes

NAMES: Final[Mapping[Verb, str]] = MappingProxyType(
    {"ablate": "campaign", "calibrate": "calibration", "screen": "screen"}
)
"""What each command's campaigns are called."""

NONE: Final = "none"


@dataclass(frozen=True, kw_only=True, slots=True)
class Given:
    """What stood on the command line beside `--resume`.

    Attributes:
        options: as parsed, defaults included.
        flags: those that were typed, by their long names: `--steps`.
        screen_design: of a screen; None for other commands.
    """

    options: CampaignOptions
    flags: frozenset[str]
    screen_design: str | None = None


def verbs_of(plan: CampaignPlan) -> tuple[Verb, ...]:
    """Commands that may resume a plan: the one that made it, or those that may have where it does not say."""
    if plan.started_by is not None:
        return (plan.started_by,)
    if plan.screen_design is not None:
        return ("screen",)
    if plan.blocks and plan.blocks.keys() <= {PLANTED, OBSERVER}:
        return ("calibrate",)
    return ("calibrate", "ablate") if tuple(plan.blocks) == (NO_FEATURE,) else ("ablate",)


def resume_text(plan: CampaignPlan) -> str:
    """The command that goes on with a plan."""
    return f"lanewise {verbs_of(plan)[0]} {plan.lane.name} --resume {plan.campaign_id}"


def newest_unfinished(store_root: str, lane_name: str, verb: Verb) -> CampaignFolder:
    """The newest campaign of a lane and command that lacks blocks, or only its decisions because its process was killed at the end.

    Raises:
        UsageError: there is none; names what other commands left unfinished on this lane.
        CampaignError: a plan is damaged, which may be the one that is meant, or the journal of the newest one is.
    """
    plans, damaged = plans_and_damaged(store_root)
    if damaged:
        raise CampaignError(f"{damaged[0]}; to go on with another one, name it after --resume")
    others = []
    for plan in plans:
        if plan.lane.name != lane_name:
            continue
        folder = CampaignFolder.find(store_root, plan.campaign_id)
        if folder.is_complete():
            continue
        if verb in verbs_of(plan):
            return folder
        others.append(plan)
    found = (
        f"; unfinished there is a {NAMES[verbs_of(others[0])[0]]}: `{resume_text(others[0])}`"
        if others
        else ""
    )
    raise UsageError(
        f"no unfinished {NAMES[verb]} of lane {lane_name!r} in {store_root}; run `lanewise {verb} {lane_name}` "
        f"without --resume{found}"
    )


def require_verb(plan: CampaignPlan, verb: Verb) -> None:
    """Refuse a campaign of another command.

    Raises:
        UsageError: with the command that resumes it.
    """
    if verb not in verbs_of(plan):
        started_by = verbs_of(plan)[0]
        raise UsageError(
            f"{plan.campaign_id} is a {NAMES[started_by]}, started by `lanewise {started_by}`; continue it with "
            f"`{resume_text(plan)}`"
        )


def require_agreement(plan: CampaignPlan, given: Given) -> None:
    """Refuse flags that contradict a plan; those that agree are fine.

    Raises:
        UsageError: names the first flag, what it says and what the plan has.
    """
    for flag, (asked, planned) in _CHECKS.items():
        if flag in given.flags:
            require_same(plan, flag, asked(given), planned(plan))
    if given.flags & {"--set", "--config"}:
        lane, _notes = measured_lane(given.options)
        found = diff_lanes(lane, plan.lane)
        for field in (*found.identity, *found.other):
            flag = " and ".join(sorted(given.flags & {"--set", "--config"}))
            require_same(plan, flag, f"{field.path} = {field.a}", str(field.b))


def require_same(plan: CampaignPlan, flag: str, asked: str | None, planned: str) -> None:
    """Refuse one flag whose words differ from the plan's; None asks for nothing.

    Raises:
        UsageError: they differ.
    """
    if asked is not None and asked != planned:
        raise UsageError(
            f"{flag} was given beside --resume and says {asked}, and campaign {plan.campaign_id} was planned with "
            f"{planned}; leave it out to go on as planned, or start a new campaign without --resume"
        )


def seconds_text(seconds: float) -> str:
    """A budget; what a clock took between two readings is not seen."""
    return f"{seconds:.4g} s"


def ratio_text(ratio: float | None) -> str:
    """An effect or a delay: `2 %`."""
    return NONE if ratio is None else f"{100 * ratio:.4g} %"


def blocks_text(plan: CampaignPlan) -> str:
    """Blocks of each feature: `16`, or `3 to 6`."""
    counts = sorted(set(plan.blocks.values())) or [0]
    return str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"


def _features(plan: CampaignPlan) -> str:
    if plan.factors:
        return _listed((*plan.factors, *plan.left_out))
    return _listed(split_key(feature.feature)[0] for feature in plan.features)


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(set(names)))


def _effect(effect_log: float | None) -> str:
    return ratio_text(None if effect_log is None else math.expm1(effect_log))


def _text(value: object) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return NONE if value is None else str(value)


def _pinning(pinned: bool) -> str:
    return "pinned processes" if pinned else "processes that are not pinned"


_Asked = Callable[[Given], str | None]
_Planned = Callable[[CampaignPlan], str]

_CHECKS: Final[Mapping[str, tuple[_Asked, _Planned]]] = MappingProxyType(
    {
        "--feature": (lambda g: _listed(g.options.features), _features),
        "--budget": (
            lambda g: seconds_text(g.options.budget_seconds),
            lambda p: seconds_text(p.budget_seconds),
        ),
        "--design": (
            lambda g: g.screen_design or g.options.design,
            lambda p: p.screen_design or p.design,
        ),
        "--block-design": (lambda g: g.options.block_design, lambda p: p.block_design),
        "--blocks": (lambda g: _text(g.options.blocks), blocks_text),
        "--effect": (lambda g: _effect(g.options.effect_log), lambda p: _effect(p.effect_log)),
        "--claims": (lambda g: g.options.claims, lambda p: p.claims),
        "--steps": (lambda g: _text(g.options.steps), lambda p: _text(p.steps)),
        "--target-loss": (
            lambda g: _text(g.options.target_loss),
            lambda p: _text(p.target_loss),
        ),
        "--seed": (lambda g: str(g.options.seed), lambda p: str(p.order_seed)),
        "--threads": (lambda g: str(g.options.num_threads), lambda p: str(p.num_threads)),
        "--data": (lambda g: _text(g.options.data_path), lambda p: _text(p.data_path)),
        "--device": (lambda g: g.options.device_type, lambda p: p.device_type),
        "--pin": (lambda g: _pinning(g.options.pin), lambda p: _pinning(p.pinned)),
        "--cache": (lambda g: g.options.cache, lambda p: _text(p.cache)),
    }
)
"""Flag → what it says, and what a plan has; compared as a person reads them."""
