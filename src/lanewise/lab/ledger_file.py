"""The ledger on disk: TOML whose upper part belongs to people and whose lower part belongs to `lanewise graduate`.

A marked line parts the two and holds the digest of what follows, so that an edit below it is noticed and never lost
silently. The upper part is kept to the byte; a feature it names is left to it.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from lanewise.errors import LaneError, StoreError, UsageError
from lanewise.lane.config import Config, parse_config
from lanewise.lane.features import BY_KEY
from lanewise.lane.ledger import LedgerEntry, TaxRecord
from lanewise.lane.schema import ObservabilitySpec
from lanewise.lane.sources import parse_toml, read_text
from lanewise.receipts.files import is_remote, write_bytes

FILE_NAME: Final = "ledger.toml"
MARK: Final = "# ---- written by `lanewise graduate`; edits belong above this line · "
_OBSERVABILITY = dict.fromkeys(ObservabilitySpec.model_fields, True)


@dataclass(frozen=True, kw_only=True, slots=True)
class LedgerFile:
    """A ledger as it is on disk.

    Attributes:
        text: all of it; empty where there is no file.
        hand_text: the part above the mark.
        entries: below the mark.
        taxes: below the mark.
        by_hand: features and taxes that the upper part names.
        hand_observability: whether the upper part has that table.
    """

    text: str
    hand_text: str
    entries: tuple[LedgerEntry, ...]
    taxes: tuple[TaxRecord, ...]
    by_hand: frozenset[str]
    hand_observability: bool

    def composed(self, entries: Sequence[LedgerEntry], taxes: Sequence[TaxRecord]) -> str:
        """The text of the ledger with another lower part; what the upper part names is left out of it.

        Raises:
            UsageError: the two parts do not make one TOML file.
        """
        entries = [entry for entry in entries if entry.feature not in self.by_hand]
        taxes = [tax for tax in taxes if tax.feature not in self.by_hand]
        tables = [_entry_text(entry) for entry in entries] + [_tax_text(tax) for tax in taxes]
        if not self.hand_observability and tables:
            tables.append("[observability]\n" + _lines(_OBSERVABILITY))
        if not tables:
            return self.hand_text
        below = "\n" + "\n".join(tables)
        above = self.hand_text
        if above and not above.endswith("\n"):
            above += "\n"
        text = f"{above}{MARK}{_digest(below)}\n{below}"
        self._check(text, entries, taxes)
        return text

    def _check(self, text: str, entries: Sequence[LedgerEntry], taxes: Sequence[TaxRecord]) -> None:
        try:
            config = parse_config(parse_toml(text, name=FILE_NAME))
        except LaneError as error:
            raise UsageError(
                f"the part of the ledger written by hand leaves no room for entries: {error}; write its tables as "
                "[speed_defaults] and [experimental_taxes], not inline"
            ) from error
        written = [e for e in config.ledger.entries if e.feature not in self.by_hand]
        recorded = [tax for tax in config.taxes if tax.feature not in self.by_hand]
        assert sorted(map(repr, written)) == sorted(map(repr, entries)), "TOML must hold entries"
        assert sorted(map(repr, recorded)) == sorted(map(repr, taxes)), "TOML must hold records"


def read_ledger(path: Path) -> LedgerFile:
    """Read a ledger; a missing file is an empty one.

    Raises:
        LaneError: it is no ledger; every fault is named with its line.
        UsageError: somebody edited the part that graduate writes.
    """
    text = read_text(path, what="ledger") if path.exists() or path.is_symlink() else ""
    config = parse_config(parse_toml(text, name=str(path)))
    hand_text, mark, rest = text.partition(MARK)
    if mark and (hand_text and not hand_text.endswith("\n")):
        raise UsageError(
            f"{path}: the line of `lanewise graduate` does not begin a line; restore it"
        )
    digest, _, below = rest.partition("\n")
    if mark and digest.strip() != _digest(below):
        raise UsageError(
            f"{path}: somebody edited the part that `lanewise graduate` writes; move the edit above its line, delete "
            "that line and what follows, and run graduate again: entries are drawn from evidence"
        )
    tables = parse_toml(hand_text, name=str(path)).tables
    by_hand = frozenset(
        key
        for name in ("speed_defaults", "experimental_taxes")
        for key in _mapping(tables.get(name))
    )
    return LedgerFile(
        text=text,
        hand_text=hand_text,
        entries=_below(config, by_hand),
        taxes=tuple(tax for tax in config.taxes if tax.feature not in by_hand),
        by_hand=by_hand,
        hand_observability="observability" in tables,
    )


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Be the only writer of a ledger; a second one waits the milliseconds that reading and writing it takes.

    Raises:
        StoreError: the folder cannot be written.
    """
    if is_remote(str(path)):
        raise UsageError(f"--ledger {path}: no file of this machine, and only those can be locked")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = path.with_name(f".{path.name}.lock").open("a", encoding="ascii")
    except OSError as error:
        raise StoreError(
            f"{path}: cannot be written ({error.strerror or error}); give another --ledger"
        ) from error
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def write_ledger(path: Path, text: str, before: LedgerFile) -> bool:
    """Replace a ledger whole or not at all; returns whether anything changed."""
    if text == before.text:
        return False
    write_bytes(str(path), text.encode())
    return True


def _below(config: Config, by_hand: frozenset[str]) -> tuple[LedgerEntry, ...]:
    return tuple(entry for entry in config.ledger.entries if entry.feature not in by_hand)


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _digest(text: str) -> str:
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


def _entry_text(entry: LedgerEntry) -> str:
    return f"[[speed_defaults.{entry.feature}]]\n" + _lines(
        entry.model_dump(mode="json", exclude={"feature"}, exclude_defaults=True)
    )


def _tax_text(tax: TaxRecord) -> str:
    assert tax.feature in BY_KEY, "records are of known taxes"
    return f"[experimental_taxes.{tax.feature}]\n" + _lines(
        tax.model_dump(mode="json", exclude={"feature"}, exclude_defaults=True)
    )


def _lines(table: Mapping[str, Any]) -> str:
    return "".join(f"{key} = {_value(value)}\n" for key, value in table.items())


def _value(value: Any) -> str:
    """A JSON value as TOML 1.0, tables inline."""
    if isinstance(value, Mapping):
        inside = ", ".join(f"{_key(key)} = {_value(item)}" for key, item in value.items())
        return f"{{ {inside} }}" if inside else "{}"
    if isinstance(value, list):
        return f"[{', '.join(_value(item) for item in value)}]"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        assert math.isfinite(value), "records hold finite numbers"
        return repr(value)
    return _quoted(str(value))


def _key(key: str) -> str:
    return key if key.replace("_", "").isalnum() and key.isascii() else _quoted(key)


def _quoted(text: str) -> str:
    """A basic string: JSON's escapes are TOML's, but for the one control character JSON leaves as it is."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
