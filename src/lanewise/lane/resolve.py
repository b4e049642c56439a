"""Decide every default of a lane: feature states with who decided them, and what they set on this device.

Priority: explicit > ledger for this lane > ledger for the same model on the same machine class > the feature's stance.
An ablation's overrides stand above all of them, because the arm is the experiment.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any, Literal

from lanewise.errors import LaneError, NotBuiltError, UsageError
from lanewise.lane import machine
from lanewise.lane.config import Config, apply_config
from lanewise.lane.digest import config_digest, lane_digest, model_digest
from lanewise.lane.features import BY_KEY, FEATURES, Feature, Preference
from lanewise.lane.ledger import Ledger, LedgerAnswer, LedgerEntry, VersionOf
from lanewise.lane.names import canonical_name
from lanewise.lane.op_choice import runs_op
from lanewise.lane.resolved import FeatureDecision, FeatureSource, ResolvedLane
from lanewise.lane.schema import Lane, ModelSpec
from lanewise.lane.suggest import did_you_mean

OP_NAMES: tuple[str, ...] = tuple(
    dict.fromkeys(
        op for feature in FEATURES for state in feature.settings.values() for op in state.ops
    )
)
"""Ops that features switch, hence every op a lane may pin by hand."""


def resolve(
    lane: Lane,
    *,
    machine_class: str,
    device_type: machine.DeviceType,
    mode: Literal["train", "ablate"],
    ledger: Ledger | None = None,
    config: Config | None = None,
    overrides: Mapping[str, str] = MappingProxyType({}),
    version_of: VersionOf | None = None,
) -> ResolvedLane:
    """Resolve a lane for one machine.

    Args:
        lane: what to train.
        machine_class: class of the machine that will run it, e.g. `cpu-x86_64-2c`.
        device_type: device the run uses; picks each feature's backends.
        mode: `train` or `ablate`, part of the canonical name.
        ledger: defaults earned by evidence; entries of `config` are asked before it.
        config: the article's configuration: fills in what the lane leaves open.
        overrides: feature → state, the arm of an ablation.
        version_of: present versions, by which evidence expires; None takes every entry at its word.

    Raises:
        LaneError: unknown feature, state or op; a feature without blocks in this lane was asked for; the machine is
            not the one the lane names; an override meets an op pinned by hand.
        NotBuiltError: a feature this version does not implement was asked for.
        UsageError: the machine class is a nickname, or a feature has no setting for this device.
    """
    _check_machine(lane, machine_class, device_type)
    if config is not None:
        lane = apply_config(lane, config)
    ledgers = [*([config.ledger] if config else []), *([ledger] if ledger else [])]
    _check_names(lane.features, where="features")
    _check_names(overrides, where="ablation")
    _check_ops(lane.ops)
    digest = lane_digest(lane)
    ask = partial(
        _ask,
        ledgers,
        lane_digest=digest,
        model_digest=model_digest(lane),
        machine_class=machine_class,
        silenced=partial(_silenced, lane.model, device_type, version_of),
    )
    _check_applicable(lane, overrides)
    decisions = tuple(
        _decide(feature, lane.features, overrides, ask)
        for feature in FEATURES
        if feature.applies_to(lane.model)
    )
    op_preferences = _op_preferences(decisions, lane.model, device_type)
    _check_pins_against_overrides(lane.ops, overrides)
    op_preferences.update({op: (backend,) for op, backend in lane.ops.items()})
    return ResolvedLane(
        lane=lane,
        canonical_name=canonical_name(lane, machine_class=machine_class, mode=mode),
        digest=digest,
        config_digest=config_digest(
            digest, {decision.key: decision.state for decision in decisions}, op_preferences
        ),
        machine_class=machine_class,
        device_type=device_type,
        mode=mode,
        features=decisions,
        op_preferences=op_preferences,
        model_switches=_switches(decisions, "model"),
        runtime_switches=_switches(decisions, "runtime"),
    )


def with_seed(resolved: ResolvedLane, seed: int) -> ResolvedLane:
    """The same lane with other random numbers: weights, order of the data and everything that is drawn while training.

    Args:
        resolved: with all its decisions.
        seed: replaces the lane's; the seed of the data moves by as much.
    """
    shift = seed - resolved.lane.seed
    data = resolved.lane.data.model_copy(update={"seed": resolved.lane.data.seed + shift})
    lane = resolved.lane.model_copy(update={"seed": seed, "data": data})
    digest = lane_digest(lane)
    states = {decision.key: decision.state for decision in resolved.features}
    return resolved.model_copy(
        update={
            "lane": lane,
            "digest": digest,
            "config_digest": config_digest(digest, states, resolved.op_preferences),
        }
    )


def find_feature(key: str) -> Feature:
    """The feature of this key.

    Raises:
        LaneError: there is none; suggests the nearest.
    """
    feature = BY_KEY.get(key)
    if feature is None:
        raise LaneError(
            f"no feature '{key}'. {did_you_mean(key, BY_KEY)} `lanewise feature list` shows all."
        )
    return feature


def state_fault(feature: Feature, state: str) -> str | None:
    """Why `state` is no state of the feature, or None."""
    if state in feature.states:
        return None
    return f"= '{state}' is no state of this feature. {did_you_mean(state, feature.states)}"


def _decide(
    feature: Feature,
    explicit: Mapping[str, str],
    overrides: Mapping[str, str],
    ask: Callable[[str], LedgerAnswer | None],
) -> FeatureDecision:
    state: str
    source: FeatureSource
    answer: LedgerAnswer | None = None
    if feature.key in overrides:
        state, source = overrides[feature.key], "ablation"
    elif feature.key in explicit:
        state, source = explicit[feature.key], "explicit"
    else:
        answer = ask(feature.key)
        if answer is not None and answer.state is not None and answer.source is not None:
            state, source = answer.state, answer.source
        else:
            state, source = feature.default_state, "stance"
    if not feature.built and state != "off":
        raise NotBuiltError(
            f"feature {feature.key} = '{state}' was asked for, and this version does not implement it; "
            f'set features.{feature.key} = "off" or remove it. `lanewise feature list` shows what is built'
        )
    return FeatureDecision(
        key=feature.key,
        role=feature.role.value,
        state=state,
        source=source,
        ledger_digest=answer.ledger_digest if answer else None,
        evidence=answer.evidence if answer else (),
        passed_over=answer.passed_over if answer else None,
    )


def _ask(ledgers: Iterable[Ledger], feature: str, **scope: Any) -> LedgerAnswer | None:
    """The first ledger that gives a state answers; else the first that had an entry says why it does not speak."""
    answers = [found for ledger in ledgers if (found := ledger.ask(feature, **scope)) is not None]
    return next((a for a in answers if a.state is not None), answers[0] if answers else None)


def _silenced(
    model: ModelSpec,
    device_type: machine.DeviceType,
    version_of: VersionOf | None,
    entry: LedgerEntry,
) -> str | None:
    setting = BY_KEY[entry.feature].settings[entry.state]
    asked = {
        op: by_device[device_type][0]
        for op, by_device in setting.ops.items()
        if runs_op(op, model) and by_device.get(device_type)
    }
    return entry.silenced(version_of, asked)


def _op_preferences(
    decisions: Iterable[FeatureDecision], model: ModelSpec, device_type: machine.DeviceType
) -> dict[str, Preference]:
    preferences: dict[str, Preference] = {}
    for decision in decisions:
        feature = BY_KEY[decision.key]
        for op, by_device in feature.settings[decision.state].ops.items():
            if not runs_op(op, model):
                continue
            if device_type not in by_device and decision.source in ("explicit", "ablation"):
                raise UsageError(
                    f"feature {feature.key} = '{decision.state}' names no backend of {op} for device {device_type} "
                    f"(it has {', '.join(by_device)}); remove the setting, or pin one with --set ops.{op}=<backend>"
                )
            # Without a setting for this device nobody asked for anything: the op tries its own order.
            preferences[op] = by_device.get(device_type, ())
    return preferences


def _switches(
    decisions: Iterable[FeatureDecision], kind: Literal["model", "runtime"]
) -> dict[str, bool]:
    switches: dict[str, bool] = {}
    for decision in decisions:
        switches.update(getattr(BY_KEY[decision.key].settings[decision.state], kind))
    return switches


def _check_machine(lane: Lane, machine_class: str, device_type: machine.DeviceType) -> None:
    machine.require_machine_class(machine_class)
    if machine.device_type_of(machine_class) != device_type:
        raise UsageError(
            f"machine {machine_class} has no device '{device_type}'; "
            f"use device {machine.device_type_of(machine_class)}"
        )
    wanted = lane.topology.machine
    if wanted not in ("auto", machine_class):
        raise LaneError(
            f"lane '{lane.name}' is for machine {wanted}, this is {machine_class}; "
            "run it there, or --set topology.machine=auto"
        )


def _check_names(states: Mapping[str, str], *, where: str) -> None:
    for key, state in states.items():
        reason = state_fault(find_feature(key), state)
        if reason is not None:
            raise LaneError(f"{where}.{key} {reason}")


def _check_ops(ops: Mapping[str, str]) -> None:
    for op in ops:
        if op not in OP_NAMES:
            raise LaneError(f"ops.{op}: no op '{op}'. {did_you_mean(op, OP_NAMES)}")


def _check_applicable(lane: Lane, overrides: Mapping[str, str]) -> None:
    wanted = {key: state for key, state in lane.features.items() if state != "off"}
    for key, state in {**wanted, **overrides}.items():
        feature = BY_KEY[key]
        reason = feature.why_not(lane.model)
        if reason is not None:
            raise LaneError(
                f"feature {key} = '{state}' was asked for on lane '{lane.name}', but {reason}; remove the setting"
            )


def _check_pins_against_overrides(ops: Mapping[str, str], overrides: Mapping[str, str]) -> None:
    for key, state in overrides.items():
        for op in BY_KEY[key].settings[state].ops:
            if op in ops:
                raise LaneError(
                    f"ops.{op} = '{ops[op]}' pins the op that feature {key} switches, so both arms would be the same; "
                    "remove the pin to ablate this feature"
                )
