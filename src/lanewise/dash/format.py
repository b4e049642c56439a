"""Numbers as people read them: one place for signs, units and digits.

Every function takes SI base units or plain ratios and returns text. A value that was not measured is `MISSING`, a
change that rounds to zero carries no sign, and the minus is the real one (U+2212).
"""

from __future__ import annotations

import math
from collections.abc import Iterable

MINUS = "−"
MISSING = "—"
NARROW_INTERVAL = 0.002
"""Intervals narrower than this (as a fraction) need a second decimal in percent."""

MOST_DECIMALS = 6
"""Of an end that is almost zero."""

_MIB = 2**20
_SI_PREFIXES = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
_ASCII_MINUS = "-"


def number(value: float, digits: int = 1) -> str:
    """Fixed decimals with thin grouping left out: `−0.5`, `12.0`; never `−0.0`."""
    text = f"{value:.{digits}f}"
    if float(text) == 0.0:
        text = text.lstrip(_ASCII_MINUS)
    return text.replace(_ASCII_MINUS, MINUS)


def signed(value: float, digits: int = 1) -> str:
    """`+1.2`, `−1.2`, or `0.0` without a sign."""
    text = number(value, digits)
    return f"+{text}" if value > 0 and float(f"{value:.{digits}f}") != 0.0 else text


def signed_percent(fraction: float | None, digits: int = 1) -> str:
    """A relative change: −0.713 → `−71.3 %`."""
    return MISSING if fraction is None else f"{signed(100.0 * fraction, digits)} %"


def percent(fraction: float | None, digits: int = 1) -> str:
    """A share: 0.935 → `93.5 %`."""
    return MISSING if fraction is None else f"{number(100.0 * fraction, digits)} %"


def percent_interval(low: float, high: float, digits: int = 1) -> str:
    """Both ends of a relative change, in percent: `[−72.0, −70.5]`.

    An interval without zero gets the decimals it takes not to end in `0.0`: `[−1.20, −0.03]`.
    """
    if low * high > 0:
        nearest = 100.0 * min(abs(low), abs(high))
        while float(f"{nearest:.{digits}f}") == 0.0 and digits < MOST_DECIMALS:
            digits += 1
    return f"[{signed(100.0 * low, digits)}, {signed(100.0 * high, digits)}]"


def percent_digits(intervals: Iterable[tuple[float, float]]) -> int:
    """Decimals a table of intervals needs: 2 as soon as one is narrower than `NARROW_INTERVAL`, else 1."""
    return 2 if any(high - low < NARROW_INTERVAL for low, high in intervals) else 1


def signed_points(fraction: float | None) -> str:
    """A difference of two shares, in percentage points: 0.002 → `+0.2 pp`."""
    return MISSING if fraction is None else f"{signed(100.0 * fraction)} pp"


def tick(value: float) -> str:
    """A round number beside an axis: as many digits as it needs."""
    return f"{round(value, 9):g}".replace(_ASCII_MINUS, MINUS)


def nats(loss: float) -> str:
    """A loss in nats per token."""
    return number(loss, 3)


def signed_nats(difference: float | None) -> str:
    """A difference of losses in nats per token: −0.0123 → `−0.012`."""
    return MISSING if difference is None else signed(difference, 3)


def times(factor: float) -> str:
    """A speed-up: 3.9 → `3.9×`, 1.042 → `1.04×`, 31.2 → `31×`."""
    digits = 2 if factor < 2 else 1 if factor < 20 else 0
    return f"{factor:.{digits}f}×"


def mebibytes(num_bytes: float | None) -> str:
    """`412 MiB`, `3.4 MiB`, `1.21 GiB`."""
    if num_bytes is None:
        return MISSING
    return _binary(abs(num_bytes), "" if num_bytes >= 0 else MINUS)


def signed_mebibytes(num_bytes: float | None) -> str:
    """A difference of memory: `−41 MiB`, `+3.4 MiB`, `0 MiB`."""
    if num_bytes is None:
        return MISSING
    text = _binary(abs(num_bytes), "")
    if float(text.split()[0]) == 0.0:
        return "0 MiB"
    return ("+" if num_bytes > 0 else MINUS) + text


def _binary(size: float, sign: str) -> str:
    if size >= 1024 * _MIB:
        return f"{sign}{size / (1024 * _MIB):.2f} GiB"
    mib = size / _MIB
    return f"{sign}{mib:.{1 if mib < 10 else 0}f} MiB"


def seconds(value: float | None) -> str:
    """A measured time with three significant digits: `110 ms`, `1.24 s`, `18.2 µs`; above a minute a duration."""
    if value is None:
        return MISSING
    size = abs(value)
    sign = MINUS if value < 0 else ""
    if size >= 60.0:
        return sign + duration(size)
    for scale, unit in ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs")):
        if size >= scale:
            return f"{sign}{_three_digits(size / scale)} {unit}"
    return "0 s" if size == 0.0 else f"{sign}{_three_digits(size / 1e-9)} ns"


def milliseconds(value: float) -> str:
    """A step time with its unit fixed, so that a column compares: `110.2 ms`."""
    return f"{number(1e3 * value, 1 if abs(value) < 10 else 0)} ms"


def signed_milliseconds(value: float) -> str:
    """A difference of step times: `+412.7 ms`."""
    return f"{signed(1e3 * value, 1)} ms"


def duration(value: float) -> str:
    """A span a person waits for: `42 s`, `3 min 40 s`, `1 h 05 min`."""
    whole = round(value)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        minutes, rest = divmod(whole, 60)
        return f"{minutes} min" + (f" {rest:02d} s" if rest else "")
    hours, rest = divmod(round(value / 60), 60)
    return f"{hours} h {rest:02d} min"


def clock(value: float) -> str:
    """A countdown: `0:42`, `12:05`, `1:02:03`."""
    minutes, rest = divmod(max(0, math.ceil(value)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def si(value: float | None, unit: str) -> str:
    """Three significant digits with an SI prefix: 24.8e9, `FLOP` → `24.8 GFLOP`; 1.9e6, `` → `1.90 M`."""
    if value is None:
        return MISSING
    for scale, prefix in _SI_PREFIXES:
        if abs(value) >= 0.9995 * scale:
            return f"{_three_digits(value / scale)} {prefix}{unit}".replace(_ASCII_MINUS, MINUS)
    text = f"{value:.0f}" if float(value).is_integer() else _three_digits(value)
    return f"{text} {unit}".rstrip().replace(_ASCII_MINUS, MINUS)


def tokens_per_second(value: float | None) -> str:
    """`9.31 k tokens/s`."""
    return MISSING if value is None else f"{si(value, '')} tokens/s"


def scientific(value: float | None) -> str:
    """A tiny difference: `1.2e−7`, and `0` for exactly zero."""
    if value is None:
        return MISSING
    if value == 0.0:
        return "0"
    return f"{value:.1e}".replace("e-0", "e-").replace("e+0", "e+").replace(_ASCII_MINUS, MINUS)


_BASES = {"add-one": "bare lane", "leave-one-out": "full stack"}


def base_name(design: str) -> str:
    """The lane that a design adds to or takes out of: `bare lane`, `full stack`."""
    return _BASES[design]


def on_base(feature: str, design: str | None) -> str:
    """A feature of a campaign, with its base where the campaign has two: `fused_moe`, `fused_moe (full stack)`."""
    return feature if design is None else f"{feature} ({base_name(design)})"


def plural(count: int, noun: str, ending: str = "s") -> str:
    """`1 block`, `3 blocks`, `6 processes` (ending `es`)."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}{ending}"


def short_digest(digest: str) -> str:
    """`sha256:9c2f81aa…`: enough to recognise, the full one is printed elsewhere."""
    head, _, tail = digest.partition(":")
    return f"{head}:{tail[:8]}…" if tail else digest


def _three_digits(value: float) -> str:
    size = abs(value)
    digits = 2 if size < 9.995 else 1 if size < 99.95 else 0
    return f"{value:.{digits}f}"


def with_family(text: str, family: str | None) -> str:
    """A reason with the kind of failure behind it, the word that `receipt list --failure` takes."""
    return text if family is None else f"{text} [{family}]"
