"""Read TOML and YAML files into tables, remembering the line of every key so that a problem can name its place."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lanewise.errors import LaneError, Problem
from lanewise.lane.statements import statements

KeyPath = tuple[str | int, ...]

MAX_BYTES = 2**20
"""Longest lane or configuration file; the longest that ships has 4 KiB."""
MAX_DEPTH = 32
"""Tables and lists inside each other."""

_KEY_PART = re.compile(r"""\s*(?:"((?:[^"\\]|\\.)*)"|'([^']*)'|([A-Za-z0-9_-]+))\s*""")
_TOO_DEEP = f"nested deeper than {MAX_DEPTH} tables and lists; a lane has four levels"
_TOML_PLACE = re.compile(r"\s*\(at (?:line (\d+), column (\d+)|end of document)\)")


@dataclass(frozen=True, kw_only=True, slots=True)
class Document:
    """A parsed file.

    Attributes:
        name: file as the user wrote it, used in messages.
        tables: its content.
        lines: path of a key → 1-based line.
    """

    name: str
    tables: dict[str, Any]
    lines: Mapping[KeyPath, int]

    def where(self, path: KeyPath) -> str:
        """`file:line` of a key, of its nearest enclosing table, or the file alone."""
        for length in range(len(path), 0, -1):
            line = self.lines.get(path[:length])
            if line is not None:
                return f"{self.name}:{line}"
        return self.name


def dotted(path: KeyPath) -> str:
    """`model.moe.top_k` for `("model", "moe", "top_k")`."""
    return ".".join(str(part) for part in path)


def read_text(path: Path, *, what: str) -> str:
    """The text of a file.

    Raises:
        LaneError: it is missing, a folder, unreadable, or not UTF-8.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise LaneError(
                f"'{path}' is longer than {MAX_BYTES} bytes; a {what} file is a few tables of settings"
            )
        # Line ends as Python's text files have them.
        return content.decode("utf-8").replace("\r\n", "\n").replace("\r", "\n")
    except FileNotFoundError as error:
        raise LaneError(f"no {what} file '{path}'; check the path") from error
    except IsADirectoryError as error:
        raise LaneError(f"'{path}' is a folder, not a {what} file; name the file in it") from error
    except UnicodeDecodeError as error:
        raise LaneError(
            f"'{path}' is not UTF-8 text (byte {error.start}); a {what} file is plain text"
        ) from error
    except OSError as error:
        raise LaneError(f"cannot read the {what} file '{path}': {error.strerror}") from error
    except ValueError as error:
        raise LaneError(f"{str(path)!r} is no path of a {what} file: {error}") from error


def parse_toml(text: str, *, name: str) -> Document:
    """Parse TOML.

    Raises:
        LaneError: the text is not TOML; names the line.
    """
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        message = str(error)
        place = _TOML_PLACE.search(message)
        last_line = text.count("\n") + 1
        line = int(place[1]) if place and place[1] else last_line
        column = f" (column {place[2]})" if place and place[2] else ""
        reason = _TOML_PLACE.sub("", message)
        raise LaneError(
            [Problem(where=f"{name}:{line}", path="", message=f"not valid TOML: {reason}{column}")]
        ) from error
    except (RecursionError, ValueError) as error:
        # tomllib lets these through: tables in tables without end, integers of thousands of digits, impossible dates.
        raise _unusable("TOML", name, error) from error
    require_shallow(tables, name)
    return Document(name=name, tables=tables, lines=dict(_toml_lines(text)))


def parse_yaml(text: str, *, name: str) -> Document:
    """Parse YAML with the safe loader; the document must be a mapping without repeated keys.

    Raises:
        LaneError: the text is not YAML, not a mapping, or repeats a key; names the line.
    """
    # PyYAML is loaded only here: lanes are TOML, and the command line must start fast.
    import yaml

    try:
        _require_plain(text, name)
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        tables = yaml.safe_load(text)
    except (RecursionError, ValueError) as error:
        raise _unusable("YAML", name, error) from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = name if mark is None else f"{name}:{mark.line + 1}"
        reason = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise LaneError(
            [Problem(where=where, path="", message=f"not valid YAML: {reason}")]
        ) from error
    if not isinstance(tables, dict):
        raise LaneError(
            f"{name}: the YAML document is not a mapping of tables; see `lanewise lane show --help`"
        )
    require_shallow(tables, name)
    lines: dict[KeyPath, int] = {}
    for path, line in _yaml_lines(node, ()):
        if path in lines:
            message = f"set twice, first on line {lines[path]}; keep one"
            raise LaneError([Problem(where=f"{name}:{line}", path=dotted(path), message=message)])
        lines[path] = line
    return Document(name=name, tables=tables, lines=lines)


def require_shallow(tables: Mapping[str, Any], name: str) -> None:
    """Refuse what is nested too deep to be walked.

    Raises:
        LaneError: it is nested deeper than `MAX_DEPTH`.
    """
    level: list[Any] = [tables]
    for _ in range(MAX_DEPTH):
        level = [
            item
            for value in level
            for item in (value.values() if isinstance(value, dict) else value)
            if isinstance(item, (dict, list))
        ]
        if not level:
            return
    raise LaneError([Problem(where=name, path="", message=_TOO_DEEP)])


def _require_plain(text: str, name: str) -> None:
    """Refuse YAML of a few lines that unfolds into billions of keys, or into lists in lists without end.

    Raises:
        LaneError: it has aliases, or is nested deeper than `MAX_DEPTH`.
    """
    import yaml

    opened = (
        yaml.FlowSequenceStartToken,
        yaml.FlowMappingStartToken,
        yaml.BlockSequenceStartToken,
        yaml.BlockMappingStartToken,
    )
    closed = (yaml.FlowSequenceEndToken, yaml.FlowMappingEndToken, yaml.BlockEndToken)
    depth = 0
    for token in yaml.scan(text):
        if isinstance(token, yaml.AliasToken):
            raise LaneError(f"{name}: has YAML aliases (*name); write the values out")
        depth += isinstance(token, opened) - isinstance(token, closed)
        if depth > MAX_DEPTH:
            raise LaneError([Problem(where=name, path="", message=_TOO_DEEP)])


def _unusable(language: str, name: str, error: RecursionError | ValueError) -> LaneError:
    reason = _TOO_DEEP if isinstance(error, RecursionError) else " ".join(str(error).split())
    return LaneError([Problem(where=name, path="", message=f"not usable {language}: {reason}")])


def _yaml_lines(node: Any, prefix: KeyPath) -> Iterator[tuple[KeyPath, int]]:
    if node.id == "mapping":
        for key, value in node.value:
            path = (*prefix, str(key.value))
            yield path, key.start_mark.line + 1
            yield from _yaml_lines(value, path)
    elif node.id == "sequence":
        for index, value in enumerate(node.value):
            yield (*prefix, index), value.start_mark.line + 1
            yield from _yaml_lines(value, (*prefix, index))


def _toml_lines(text: str) -> Iterator[tuple[KeyPath, int]]:
    """Line of every table header and key of a text known to be valid TOML."""
    prefix: KeyPath = ()
    elements_of_array: dict[KeyPath, int] = {}
    for line, statement in statements(text):
        if statement.startswith("[["):
            array = _key_parts(statement[2:])[0]
            index = elements_of_array.get(array, 0)
            elements_of_array[array] = index + 1
            prefix = (*array, index)
            yield prefix, line
        elif statement.startswith("["):
            prefix = _key_parts(statement[1:])[0]
            yield prefix, line
        else:
            keys, _rest = _key_parts(statement)
            for length in range(1, len(keys) + 1):
                yield (*prefix, *keys[:length]), line
            yield from _inline_keys(tomllib.loads(statement), prefix, line)


def _inline_keys(value: Any, prefix: KeyPath, line: int) -> Iterator[tuple[KeyPath, int]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield (*prefix, key), line
            yield from _inline_keys(item, (*prefix, key), line)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _inline_keys(item, (*prefix, index), line)


def _key_parts(statement: str) -> tuple[KeyPath, str]:
    """The dotted key at the start of a statement, and what follows it."""
    parts: list[str] = []
    position = 0
    while match := _KEY_PART.match(statement, position):
        parts.append(next(group for group in match.groups() if group is not None))
        position = match.end()
        if statement[position : position + 1] != ".":
            break
        position += 1
    return tuple(parts), statement[position:]
