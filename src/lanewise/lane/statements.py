"""Cuts a TOML text into its statements, in one pass, so that a problem can name the line of its key."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from types import MappingProxyType

_TOKEN = re.compile(
    r""""{3}|'{3}|"(?:[^"\\]|\\.)*"|'[^']*'|[\[\]{}]|\#.*|[^"'\[\]{}#]+""", re.DOTALL
)
_END_OF_LONG_STRING: Mapping[str, re.Pattern[str]] = MappingProxyType(
    {
        # Up to two quotes may stand right before the closing three.
        '"""': re.compile(r'(?:[^"\\]|\\.|"(?!""))*"""{1,3}', re.DOTALL),
        "'''": re.compile(r"(?:[^']|'(?!''))*'''{1,3}", re.DOTALL),
    }
)


def statements(text: str) -> Iterator[tuple[int, str]]:
    """Headers and `key = value` statements of a valid TOML text with their first line; a value may span lines."""
    start = 0
    pending: list[str] = []
    scanner = _Scanner()
    # Not splitlines: a comment may hold signs that Python takes for line ends and TOML does not.
    for number, line in enumerate(text.split("\n"), start=1):
        if not pending:
            if not line.strip() or line.lstrip().startswith("#"):
                continue
            start = number
            scanner = _Scanner()
        pending.append(line)
        scanner.feed(line)
        if scanner.is_closed:
            yield start, "\n".join(pending).strip()
            pending = []


class _Scanner:
    """Follows a statement of valid TOML line by line: is a bracket or a long string still open?"""

    def __init__(self) -> None:
        self._depth = 0
        self._quote: str | None = None

    @property
    def is_closed(self) -> bool:
        """Whether the statement may end here."""
        return self._depth == 0 and self._quote is None

    def feed(self, line: str) -> None:
        """Take the next line, without its line end."""
        position = 0
        while position < len(line):
            if self._quote is not None:
                end = _END_OF_LONG_STRING[self._quote].match(line, position)
                if end is None:
                    return
                self._quote, position = None, end.end()
                continue
            token = _TOKEN.match(line, position)
            if token is None:
                return
            position = token.end()
            found = token[0]
            if found in _END_OF_LONG_STRING:
                self._quote = found
            elif found in ("[", "{"):
                self._depth += 1
            elif found in ("]", "}"):
                self._depth -= 1
