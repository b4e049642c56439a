"""The article's configuration: `speed_defaults`, `experimental_taxes` and `observability`, from TOML or YAML.

A plain value is the user's word: `true` and `auto` mean `on`, `false` means `off`, another state is given by name. A
table (or an array of tables) under `speed_defaults` is a ledger entry, as `graduate` writes it: state, scope, evidence.
A table under `experimental_taxes` records a tax that stays at its default (off, but for those that are part of a lane that
has their table). A tax inside `speed_defaults` is refused (rule R4: what costs step time never becomes a default).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pydantic import Field, ValidationError

from lanewise.errors import LaneError, Problem
from lanewise.lane.features import BY_KEY, Feature, Role
from lanewise.lane.ledger import Demotion, Effect, Ledger, LedgerEntry, Scope, TaxRecord
from lanewise.lane.machine import is_scope
from lanewise.lane.schema import Lane, ObservabilitySpec
from lanewise.lane.sources import Document, KeyPath, dotted, parse_toml, parse_yaml, read_text
from lanewise.lane.spec import Spec
from lanewise.lane.suggest import did_you_mean

TABLES = ("speed_defaults", "experimental_taxes", "observability")
_TAX_RECORD_KEYS = tuple(key for key in TaxRecord.model_fields if key != "feature")
_ENTRY_TABLES: Mapping[str, type[Spec]] = MappingProxyType(
    {"scope": Scope, "effect": Effect, "demoted": Demotion}
)


class Config(Spec):
    """What a configuration file says.

    Attributes:
        features: feature → state, as the user asked.
        observability: switches of `ObservabilitySpec` that the file names.
        ledger: defaults with evidence.
        taxes: records of taxes, without influence.
    """

    features: dict[str, str] = Field(default_factory=dict)
    observability: dict[str, bool] = Field(default_factory=dict)
    ledger: Ledger = Ledger()
    taxes: tuple[TaxRecord, ...] = ()


def load_config(path: str | Path) -> Config:
    """Read a configuration file; `.yaml` and `.yml` are YAML, everything else TOML.

    Raises:
        LaneError: with every problem found, each with its line.
    """
    file = Path(path)
    text = read_text(file, what="configuration")
    read = parse_yaml if file.suffix.lower() in (".yaml", ".yml") else parse_toml
    config = parse_config(read(text, name=str(path)))
    digest = "sha256:" + hashlib.sha256(text.encode()).hexdigest()
    return config.model_copy(update={"ledger": config.ledger.model_copy(update={"digest": digest})})


def parse_config(document: Document) -> Config:
    """Validate a parsed configuration.

    Raises:
        LaneError: with every problem found.
    """
    reader = _Reader(document)
    config = reader.read()
    if reader.problems:
        raise LaneError(reader.problems)
    return config


def apply_config(lane: Lane, config: Config) -> Lane:
    """The lane with the configuration's words filled in wherever the lane itself says nothing.

    The configuration holds defaults for many lanes, so a state the lane sets wins, and a feature that touches none of
    the lane's blocks is left out.
    """
    defaults = {
        key: state for key, state in config.features.items() if BY_KEY[key].applies_to(lane.model)
    }
    set_by_lane = lane.observability.model_fields_set
    switches = {key: value for key, value in config.observability.items() if key not in set_by_lane}
    return lane.model_copy(
        update={
            "features": {**defaults, **lane.features},
            "observability": lane.observability.model_copy(update=switches),
        }
    )


class _Reader:
    """Walks one document, collecting problems instead of stopping at the first."""

    def __init__(self, document: Document) -> None:
        self.document = document
        self.problems: list[Problem] = []
        self.features: dict[str, str] = {}
        self.entries: list[LedgerEntry] = []
        self.taxes: list[TaxRecord] = []

    def read(self) -> Config:
        for name, table in self._tables():
            if name == "speed_defaults":
                self._read_defaults(table)
            elif name == "experimental_taxes":
                self._read_taxes(table)
        return Config(
            features=self.features,
            observability=self._read_observability(),
            ledger=Ledger(entries=tuple(self.entries)),
            taxes=tuple(self.taxes),
        )

    def _tables(self) -> Iterator[tuple[str, Mapping[str, Any]]]:
        for name, table in self.document.tables.items():
            if name not in TABLES:
                self._fault((name,), f"unknown table. {did_you_mean(name, TABLES)}")
            elif not isinstance(table, Mapping):
                self._fault((name,), f"= {table!r} is not a table")
            else:
                yield name, table

    def _read_defaults(self, table: Mapping[str, Any]) -> None:
        known = [key for key, feature in BY_KEY.items() if feature.role is not Role.TAX]
        for key, value in table.items():
            path = ("speed_defaults", key)
            feature = BY_KEY.get(key)
            if feature is None:
                self._fault(path, f"unknown feature. {did_you_mean(key, known)}")
            elif feature.role is Role.TAX:
                self._fault(
                    path,
                    "is a tax: it costs step time and never becomes a speed default (rule R4); "
                    "move it to experimental_taxes",
                )
            elif isinstance(value, Mapping):
                self._read_entry(feature, value, path)
            elif isinstance(value, list):
                for index, item in enumerate(value):
                    self._read_entry(feature, item, (*path, index))
            else:
                self._read_state(feature, value, path)

    def _read_taxes(self, table: Mapping[str, Any]) -> None:
        known = [key for key, feature in BY_KEY.items() if feature.role is Role.TAX]
        for key, value in table.items():
            path = ("experimental_taxes", key)
            feature = BY_KEY.get(key)
            if feature is None:
                self._fault(path, f"unknown tax. {did_you_mean(key, known)}")
            elif feature.role is not Role.TAX:
                self._fault(path, "is not a tax; move it to speed_defaults")
            elif isinstance(value, Mapping):
                self._read_tax_record(feature, value, path)
            else:
                self._read_state(feature, value, path)

    def _read_observability(self) -> dict[str, bool]:
        table = self.document.tables.get("observability", {})
        switches: dict[str, bool] = {}
        for key, value in table.items() if isinstance(table, Mapping) else ():
            path = ("observability", key)
            if key not in ObservabilitySpec.model_fields:
                suggestion = did_you_mean(key, ObservabilitySpec.model_fields)
                self._fault(path, f"unknown key. {suggestion}")
            elif not isinstance(value, bool):
                self._fault(path, f"= {value!r} is not true or false")
            else:
                switches[key] = value
        return switches

    def _read_state(self, feature: Feature, value: Any, path: KeyPath) -> None:
        if value is True or value == "auto":
            self.features[feature.key] = "on"
        elif value is False:
            self.features[feature.key] = "off"
        elif value in feature.states:
            self.features[feature.key] = value
        else:
            states = ", ".join(("true", "false", "auto", *feature.states))
            self._fault(path, f"= {value!r} is no state of {feature.key}; use one of {states}")

    def _read_entry(self, feature: Feature, value: Any, path: KeyPath) -> None:
        if not isinstance(value, Mapping):
            self._fault(
                path, f"= {value!r} is not a ledger entry (a table with state, scope, evidence)"
            )
            return
        try:
            entry = LedgerEntry.model_validate({**value, "feature": feature.key})
        except ValidationError as error:
            for fault in error.errors(include_url=False):
                self._entry_fault(fault["type"], fault["msg"], (*path, *fault["loc"]))
            return
        if entry.state not in feature.states:
            self._fault(
                (*path, "state"), f"= {entry.state!r} is no state; use {_or(feature.states)}"
            )
        elif not (entry.scope.lanes or entry.scope.models):
            self._fault(
                (*path, "scope"),
                "names no lane and no model; list digests under `lanes` or `models`",
            )
        elif not is_scope(entry.scope.machine_class):
            self._fault(
                (*path, "scope", "machine_class"),
                f"= {entry.scope.machine_class!r} is no machine class (cpu-x86_64-2c, h100-sxm-80gb) and none without its "
                "memory (h100-sxm); `lanewise doctor` prints this machine's",
            )
        else:
            self.entries.append(entry)

    def _read_tax_record(self, feature: Feature, value: Mapping[str, Any], path: KeyPath) -> None:
        known = {key: item for key, item in value.items() if key in _TAX_RECORD_KEYS}
        for key in value.keys() - known.keys():
            self._fault((*path, key), f"unknown key. {did_you_mean(key, _TAX_RECORD_KEYS)}")
        state = value.get("state")
        if state not in feature.states:
            self._fault((*path, "state"), f"= {state!r} is no state; use {_or(feature.states)}")
        elif state != feature.default_state:
            wish = "true" if state == "on" else "false"
            self._fault(
                (*path, "state"),
                f"= {state!r}: a recorded tax stays {feature.default_state} by default; to ask for it, "
                f"write `{feature.key} = {wish}` under experimental_taxes",
            )
        else:
            self._keep_tax_record({**known, "feature": feature.key}, path)

    def _keep_tax_record(self, value: Mapping[str, Any], path: KeyPath) -> None:
        try:
            self.taxes.append(TaxRecord.model_validate(value))
        except ValidationError as error:
            for fault in error.errors(include_url=False):
                self._entry_fault(fault["type"], fault["msg"], (*path, *fault["loc"]))

    def _entry_fault(self, kind: str, message: str, path: KeyPath) -> None:
        if kind == "extra_forbidden":
            table: type[Spec] = _ENTRY_TABLES.get(str(path[-2]), LedgerEntry)
            known = [key for key in table.model_fields if key != "feature"]
            self._fault(path, f"unknown key. {did_you_mean(str(path[-1]), known)}")
        elif kind == "missing":
            self._fault(path, "is missing; a ledger entry has state, scope and evidence")
        else:
            self._fault(path, f"{message[0].lower()}{message[1:]}")

    def _fault(self, path: KeyPath, message: str) -> None:
        self.problems.append(
            Problem(where=self.document.where(path), path=dotted(path), message=message)
        )


def _or(words: tuple[str, ...]) -> str:
    return " or ".join(f"'{word}'" for word in words)
