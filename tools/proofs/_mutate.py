"""Ways to spoil a document: bytes, text and parsed tables, each drawn from a seeded generator."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator
from datetime import date, datetime, time
from typing import Any

Place = tuple[Any, Any]
"""A table or list and the key or index of one of its items."""

OddValue = Callable[[random.Random], Any]

ODD_TEXTS = (
    "",
    "none",
    "NaN",
    "\x00",
    "\u2028\u0085",
    "a\nb",
    "[red]x[/red]",
    "../../etc/passwd",
    "€𝔘é\u202e",
    "sha256:" + "0" * 64,
    "A" * 70_000,
    "AEM" * 5_000,
    "9" * 5_000,
    "2026-13-45T99:99:99Z",
)
ODD_NUMBERS = (
    0,
    -1,
    1,
    2,
    3,
    2**31 - 1,
    2**31,
    10**9,
    2**53,
    2**63,
    10**400,
    -(10**400),
    0.0,
    -0.0,
    0.5,
    -1e-3,
    1e-300,
    1e300,
    1.7976931348623157e308,
)
NOT_JSON_NUMBERS = (float("nan"), float("inf"), float("-inf"))
TOML_ONLY = (date(2026, 11, 23), datetime(2026, 11, 23, 10, 0), time(10, 0))
ODD_BYTES = (
    b"\x00",
    b"\xff",
    b"\xed\xa0\x80",
    b"\\ud800",
    b'"""',
    b"'''",
    b"NaN",
    b"1e999",
    b"-Infinity",
    b"9" * 5_000,
    b"[" * 3_000,
    b'{"a":' * 3_000,
    b"a." * 3_000,
    b"\r\n",
    b"\n\n[model]\n",
    b"[[x]]\n",
    b"#\xe2\x80\xa8 x",
    b'extends = "nam56r-tiny"\n',
    b",",
    b"{",
    b"}",
    b"]",
    b"=",
)


def spoil_bytes(content: bytes, rng: random.Random) -> bytes:
    """One to three damages to bytes: flips, cuts, repeated or foreign stretches."""
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        content = rng.choice(_BYTE_DAMAGES)(content, rng)
    return content


def spoil_tables(tables: Any, rng: random.Random, odd: OddValue) -> Any:
    """One to three changes to a copy of parsed tables: other values, other types, keys gone, new, renamed or moved."""
    spoiled = copy.deepcopy(tables)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        places = list(_places(spoiled))
        if not places:
            break
        rng.choice(_TABLE_DAMAGES)(places, rng, odd)
    return spoiled


def odd_toml_value(rng: random.Random) -> Any:
    """A value TOML can hold and a lane rarely should."""
    return rng.choice((_text, _number, _not_json, _toml_only, _container, _boolean))(rng)


def odd_json_value(rng: random.Random) -> Any:
    """A value of JSON as Python reads it."""
    return rng.choice((_text, _number, _container, _boolean, _null))(rng)


def _flip(content: bytes, rng: random.Random) -> bytes:
    if not content:
        return content
    at = rng.randrange(len(content))
    return content[:at] + bytes([content[at] ^ (1 << rng.randrange(8))]) + content[at + 1 :]


def _cut(content: bytes, rng: random.Random) -> bytes:
    return content[: rng.randint(0, len(content))]


def _drop(content: bytes, rng: random.Random) -> bytes:
    start, end = sorted(rng.randint(0, len(content)) for _ in range(2))
    return content[:start] + content[min(end, start + 40) :]


def _repeat(content: bytes, rng: random.Random) -> bytes:
    lines = content.split(b"\n")
    at = rng.randrange(len(lines))
    return b"\n".join([*lines[: at + 1], *lines[at : at + rng.randint(1, 3)], *lines[at + 1 :]])


def _insert(content: bytes, rng: random.Random) -> bytes:
    at = rng.randint(0, len(content))
    return content[:at] + rng.choice(ODD_BYTES) + content[at:]


def _instead(content: bytes, rng: random.Random) -> bytes:
    """A stretch replaced by as many foreign bytes, as a disk block of another file would."""
    at = rng.randint(0, len(content))
    length = rng.choice((1, 2, 8, 64))
    return content[:at] + rng.randbytes(length) + content[at + length :]


_BYTE_DAMAGES = (_flip, _flip, _cut, _drop, _repeat, _insert, _insert, _instead)


def _other_value(places: list[Place], rng: random.Random, odd: OddValue) -> None:
    inside, key = rng.choice(places)
    inside[key] = odd(rng)


def _other_number(places: list[Place], rng: random.Random, _odd: OddValue) -> None:
    """A number near the one that stands there: still of the right type, perhaps against a rule."""
    numbers = [(inside, key) for inside, key in places if type(inside[key]) in (int, float)]
    inside, key = rng.choice(numbers or places)
    if numbers:
        value = inside[key]
        inside[key] = rng.choice((value + 1, value * 2, value - 1, -value, value * 10**6))


def _gone(places: list[Place], rng: random.Random, _odd: OddValue) -> None:
    inside, key = rng.choice(places)
    del inside[key]


def _new(places: list[Place], rng: random.Random, odd: OddValue) -> None:
    inside, _key = rng.choice(places)
    if isinstance(inside, dict):
        inside[rng.choice(("surprise", "", "a.b", "top_k", "nåme", "x\ny", "__class__"))] = odd(rng)
    else:
        inside.insert(rng.randint(0, len(inside)), odd(rng))


def _renamed(places: list[Place], rng: random.Random, _odd: OddValue) -> None:
    inside, key = rng.choice(places)
    if isinstance(inside, dict):
        inside[str(key)[:-1] or "x"] = inside.pop(key)
    else:
        inside.reverse()


def _moved(places: list[Place], rng: random.Random, _odd: OddValue) -> None:
    inside, key = rng.choice(places)
    other, place = rng.choice(places)
    inside[key] = copy.deepcopy(other[place])


_TABLE_DAMAGES = (
    _other_value,
    _other_value,
    _other_number,
    _other_number,
    _gone,
    _new,
    _renamed,
    _moved,
)


def _text(rng: random.Random) -> str:
    return rng.choice(ODD_TEXTS)


def _number(rng: random.Random) -> int | float:
    return rng.choice(ODD_NUMBERS)


def _not_json(rng: random.Random) -> float:
    return rng.choice(NOT_JSON_NUMBERS)


def _toml_only(rng: random.Random) -> Any:
    return rng.choice(TOML_ONLY)


def _boolean(rng: random.Random) -> bool:
    return rng.random() < 0.5


def _null(_rng: random.Random) -> None:
    return None


def _container(rng: random.Random) -> Any:
    nested: Any = 1
    for _ in range(rng.choice((1, 5, 30, 70))):
        nested = [nested] if rng.random() < 0.5 else {"a": nested}
    return rng.choice(([], {}, [1] * 2_000, ["x"], {"a": 1}, nested))


def _places(value: Any) -> Iterator[Place]:
    """Every item of every table and list, without recursion, since a spoiled one may be deep."""
    level = [value]
    while level:
        inside = level.pop()
        items = list(inside.items()) if isinstance(inside, dict) else list(enumerate(inside))
        for key, item in items:
            yield inside, key
            if isinstance(item, (dict, list)):
                level.append(item)
