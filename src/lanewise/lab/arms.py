"""The two arms of a feature: one resolved lane with it off, one with it on, everything else the same.

Base of `leave-one-out` is the full stack: every feature at its stance unless the lane says otherwise. Base of
`add-one` is the bare lane: every feature off. `both` asks each feature twice, once on either base. Arm A is always the control.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from lanewise.errors import NotBuiltError, UsageError
from lanewise.lab.keys import BASES, BaseDesign, Design, key_at, row_index, split_key
from lanewise.lane.features import BY_KEY, FEATURES, Feature, Role
from lanewise.lane.resolve import find_feature, resolve
from lanewise.lane.resolved import ResolvedLane
from lanewise.lane.schema import Lane
from lanewise.measure.factorial import plackett_burman

NO_FEATURE = "none"
"""An A/A campaign: both arms are the base, what is measured is noise."""

PLANTED = "planted"
"""The positive control: both arms are the base, and every step of arm B is prolonged by a known share of its own time."""

OBSERVER = "observer"
"""What observation costs: arm A is the base with goodput and measurements switched off, arm B with both."""

FULL_STACK = "full_stack"
"""Bare lane against full stack: how much all features give together."""

PSEUDO = frozenset({NO_FEATURE, PLANTED, OBSERVER, FULL_STACK})
"""Questions that are about no feature, so they have no two bases."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Arms:
    """A question a campaign asks, and the two lanes that answer it.

    Attributes:
        feature: the plan's key (`lab.keys`): a feature, with its base in a campaign that uses both; `none`, `planted`,
            `observer`, `full_stack`, or the row of a screen.
        design: base of the comparison.
        title: words for tables.
        role: role of the feature; `stack` for the full stack, `noise` for an A/A, `control` for a planted delay,
            `observer` for the cost of observation, `screen` for a row.
        declared: feature keys in which the arms may differ.
        ops: ops whose backend the arms may choose differently.
        versus: the control by name: its backends on this device, else its state.
        states: arm → state.
        on_by_default: whether the stance has the feature on.
        stance: the stance in words.
        tax_budget_ratio: largest acceptable step-time ratio of a tax; None for others.
        equal_mathematics: whether both arms promise the same loss up to rounding.
        control: arm A.
        treated: arm B.
        planted_ratio: delay in arm B ÷ step time; None but for `planted`.
    """

    feature: str
    title: str
    role: str
    declared: frozenset[str]
    ops: tuple[str, ...]
    versus: str
    states: Mapping[str, str]
    on_by_default: bool
    stance: str
    tax_budget_ratio: float | None
    equal_mathematics: bool
    control: ResolvedLane
    treated: ResolvedLane
    planted_ratio: float | None = None
    design: BaseDesign = "leave-one-out"

    @property
    def subject(self) -> str:
        """The feature itself, whatever its base."""
        return split_key(self.feature)[0]

    def arm(self, name: Literal["A", "B"]) -> ResolvedLane:
        """The resolved lane of one arm."""
        return self.control if name == "A" else self.treated


@dataclass(frozen=True, kw_only=True, slots=True)
class ArmBuilder:
    """Builds arms for one lane on one machine.

    The ledger is left out on purpose: a campaign's base must not move when a feature graduates.

    Attributes:
        lane: the lane with the user's explicit states.
        machine_class: e.g. `cpu-x86_64-2c`.
        device_type: `cpu` or `cuda`.
        design: what the base is; of `both` the full stack, and keys say more.
        factors: features of a screening design, in the order of its columns.
        planted_ratio: delay of the positive control, if the campaign has one.
    """

    lane: Lane
    machine_class: str
    device_type: Literal["cpu", "cuda"]
    design: Design
    planted_ratio: float | None = None
    factors: tuple[str, ...] = ()

    def base(self) -> ResolvedLane:
        """The lane every feature is compared on."""
        return self._resolved(self._base_states())

    def build(self, feature: str) -> Arms:
        """The arms of one key: a feature, `none`, `planted`, `observer`, `full_stack` or the row of a screen.

        Raises:
            UsageError: there is no such feature, or it has nothing to change on this lane.
            NotBuiltError: this version does not implement it.
        """
        subject, base = split_key(feature)
        if base is not None:
            return replace(replace(self, design=base).build(subject), feature=feature)
        row = row_index(feature)
        if row is not None:
            return self._row_arms(feature, row)
        if feature == NO_FEATURE:
            return self._same_arms()
        if feature == PLANTED:
            return self._planted_arms()
        if feature == OBSERVER:
            return self._observer_arms()
        if feature == FULL_STACK:
            return self._stack_arms()
        return self._feature_arms(self._usable(feature))

    def placeholder(self, feature: str) -> Arms:
        """What a decision says about a feature whose arms cannot be built: its description, and the base twice."""
        subject, base = split_key(feature)
        if base is not None:
            return replace(replace(self, design=base).placeholder(subject), feature=feature)
        return self._described(find_feature(feature), control=self.base(), treated=self.base())

    def default_features(self) -> tuple[str, ...]:
        """Features of a campaign that names none: those screened that apply and are built, then the stack as a whole."""
        keys = tuple(
            f.key for f in FEATURES if f.built and f.screened and f.applies_to(self.lane.model)
        )
        return keys if self.design == "add-one" else (*keys, FULL_STACK)

    def keys(self, features: Sequence[str]) -> tuple[str, ...]:
        """What to ask about these features: each on either base where the design is `both`."""
        if self.design != "both":
            return tuple(features)
        return tuple(
            key
            for feature in features
            for key in (
                [feature] if feature in PSEUDO else [key_at(feature, base) for base in BASES]
            )
        )

    def _usable(self, key: str) -> Feature:
        feature = find_feature(key)
        if not feature.built:
            raise NotBuiltError(
                f"feature {key!r} is known and not built in this version, so it cannot be measured; "
                "`lanewise feature list` shows what is built"
            )
        model = self.lane.model
        reason = feature.why_not(model) or feature.no_choice(model, self.device_type)
        if reason is not None:
            raise UsageError(
                f"feature {key!r} cannot be measured on lane {self.lane.name!r}: {reason}; "
                "choose a feature of this lane"
            )
        return feature

    def _feature_arms(self, feature: Feature) -> Arms:
        off, on = control_state(feature), treated_state(feature)
        base = self._base_states()
        if feature.narrow is not None:
            # Narrow before broad: what a broad fusion must beat is the narrow one, also on the bare lane.
            base = {**base, feature.narrow: "on"}
        control = self._resolved({**base, feature.key: off})
        treated = self._resolved({**base, feature.key: on})
        return self._described(feature, control=control, treated=treated)

    def _described(self, feature: Feature, *, control: ResolvedLane, treated: ResolvedLane) -> Arms:
        off, on = control_state(feature), treated_state(feature)
        settings, ops = feature.settings[off].ops, feature.ops_for(self.lane.model)
        named = [
            name for op in settings if op in ops for name in settings[op].get(self.device_type, ())
        ]
        return Arms(
            feature=feature.key,
            title=feature.title,
            role=feature.role.value,
            declared=frozenset({feature.key}),
            ops=ops,
            versus=" + ".join(named) or feature.control_name,
            states={"A": off, "B": on},
            on_by_default=feature.default_state == on,
            stance=feature.stance,
            tax_budget_ratio=feature.tax_budget_ratio,
            equal_mathematics=feature.equal_mathematics,
            control=control,
            treated=treated,
            design=self._base_design,
        )

    def _row_arms(self, key: str, row: int) -> Arms:
        """A row of the screening design as arm B, its mirror image as arm A; other features stay at their stance."""
        features = [self._usable(factor) for factor in self.factors]
        levels = plackett_burman(len(features))[row]
        control, treated = (
            self._resolved(
                {
                    f.key: treated_state(f) if sign * level > 0 else control_state(f)
                    for f, level in zip(features, levels, strict=True)
                }
            )
            for sign in (-1, 1)
        )
        return Arms(
            feature=key,
            title=f"row {row + 1} and its mirror image",
            role="screen",
            declared=frozenset(self.factors),
            ops=tuple(sorted({op for f in features for op in f.ops_for(self.lane.model)})),
            versus="its mirror image",
            states={"A": "mirror", "B": "row"},
            on_by_default=False,
            stance="screened",
            tax_budget_ratio=None,
            equal_mathematics=all(feature.equal_mathematics for feature in features),
            control=control,
            treated=treated,
        )

    def _stack_arms(self) -> Arms:
        control, treated = self._resolved(self._bare_states()), self._resolved({})
        differing = _differing_features(control, treated)
        keys = [BY_KEY[key] for key in sorted(differing)]
        return Arms(
            feature=FULL_STACK,
            title="full stack",
            role="stack",
            declared=frozenset(differing),
            ops=tuple(sorted({op for feature in keys for op in feature.ops_for(self.lane.model)})),
            versus="bare lane",
            states={"A": "bare", "B": "full"},
            on_by_default=True,
            stance="sum of the stances",
            tax_budget_ratio=None,
            equal_mathematics=all(feature.equal_mathematics for feature in keys),
            control=control,
            treated=treated,
        )

    def _same_arms(self) -> Arms:
        base = self.base()
        return Arms(
            feature=NO_FEATURE,
            title="A/A (no feature)",
            role="noise",
            declared=frozenset(),
            ops=(),
            versus="itself",
            states={"A": "base", "B": "base"},
            on_by_default=False,
            stance="noise",
            tax_budget_ratio=None,
            equal_mathematics=True,
            control=base,
            treated=base,
            design=self._base_design,
        )

    @property
    def _base_design(self) -> BaseDesign:
        return "add-one" if self.design == "add-one" else "leave-one-out"

    def _planted_arms(self) -> Arms:
        if self.planted_ratio is None:
            raise UsageError(
                f"{PLANTED!r} is the lab's positive control and needs the size of its delay; "
                "use `lanewise calibrate LANE --control 5%`"
            )
        return replace(
            self._same_arms(),
            feature=PLANTED,
            title=f"planted delay of {100 * self.planted_ratio:g} %",
            role="control",
            states={"A": "base", "B": "delayed"},
            stance="positive control",
            planted_ratio=self.planted_ratio,
        )

    def _observer_arms(self) -> Arms:
        base = self.base()
        bare, observed = (
            base.model_copy(
                update={
                    "lane": base.lane.model_copy(
                        update={
                            "observability": base.lane.observability.model_copy(
                                update={"goodput": on, "measurements": on}
                            )
                        }
                    )
                }
            )
            for on in (False, True)
        )
        return replace(
            self._same_arms(),
            feature=OBSERVER,
            title="goodput and measurements",
            role="observer",
            versus="bare loop",
            states={"A": "bare", "B": "observed"},
            on_by_default=True,
            stance="cost of observation",
            control=bare,
            treated=observed,
        )

    def _base_states(self) -> dict[str, str]:
        return self._bare_states() if self.design == "add-one" else {}

    def _bare_states(self) -> dict[str, str]:
        """Every fast path off, but for one whose op the lane pins by hand: the pin is the user's word.

        Taxes stay as they are: they change what is computed, not how.
        """
        return {
            f.key: control_state(f)
            for f in FEATURES
            if f.built
            and f.role is not Role.TAX
            and f.applies_to(self.lane.model)
            and not self.lane.ops.keys() & set(f.ops_for(self.lane.model))
        }

    def _resolved(self, states: Mapping[str, str]) -> ResolvedLane:
        return resolve(
            self.lane,
            machine_class=self.machine_class,
            device_type=self.device_type,
            mode="ablate",
            ledger=None,
            overrides=dict(states),
        )


def control_state(feature: Feature) -> str:
    """The state of arm A: the first declared, `off`."""
    return feature.states[0]


def treated_state(feature: Feature) -> str:
    """The state of arm B: `on`, or the last declared where a feature has other states."""
    return "on" if "on" in feature.states else feature.states[-1]


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """A feature of a campaign: its arms, and why they cannot be run where that is known beforehand."""

    arms: Arms
    refused: str | None = None


def questions(builder: ArmBuilder, asked: Sequence[str]) -> tuple[Question, ...]:
    """What a campaign asks, each feature once and in order; all features that apply when none is named.

    Raises:
        UsageError: a feature asked for by name cannot be measured. One taken by default is refused with its reason.
    """
    if asked:
        return tuple(
            Question(arms=builder.build(key)) for key in builder.keys(tuple(dict.fromkeys(asked)))
        )
    found = []
    for key in builder.keys(builder.default_features()):
        try:
            found.append(Question(arms=builder.build(key)))
        except UsageError as error:
            found.append(Question(arms=builder.placeholder(key), refused=str(error)))
    return tuple(found)


def _differing_features(a: ResolvedLane, b: ResolvedLane) -> set[str]:
    states = {decision.key: decision.state for decision in a.features}
    return {decision.key for decision in b.features if states.get(decision.key) != decision.state}
