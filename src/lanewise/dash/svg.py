"""Inline SVG: a canvas of XML elements (so text is always escaped) and the scales that place numbers on it.

Colours and fonts are classes of `templates/report.css`, so charts follow light, dark and print. Lengths are user
units of the view box, equal to CSS pixels when a chart is shown at its own width.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Protocol
from xml.etree import ElementTree

CHARACTER_WIDTH = 0.56
"""Average advance of a system sans-serif in em, on the wide side, for reserving room."""
MONO_WIDTH = 0.61
FONT_SIZE = 13.0


class Scale(Protocol):
    """Places a value on the canvas."""

    def __call__(self, value: float) -> float:
        """The position of a value."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Linear:
    """Equal differences take equal room."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """The position of a value."""
        span = self.high - self.low
        share = (value - self.low) / span if span else 0.5
        return self.start + share * (self.end - self.start)

    def ticks(self, count: int = 5) -> tuple[float, ...]:
        """Round values inside the range, about `count` of them."""
        return linear_ticks(self.low, self.high, count)


@dataclass(frozen=True, kw_only=True, slots=True)
class Logarithmic:
    """Equal ratios take equal room; values are positive."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """The position of a value."""
        span = math.log(self.high / self.low)
        share = math.log(value / self.low) / span if span else 0.5
        return self.start + share * (self.end - self.start)

    def ticks(self) -> tuple[float, ...]:
        """1, 2 and 5 of every decade inside the range; a linear choice where those are fewer than two."""
        first = math.floor(math.log10(self.low))
        last = math.ceil(math.log10(self.high))
        steps = (digit * 10.0**power for power in range(first, last + 1) for digit in (1, 2, 5))
        inside = tuple(v for v in steps if self.low <= v <= self.high)
        return inside if len(inside) >= 2 else linear_ticks(self.low, self.high, 5)


@dataclass(frozen=True, kw_only=True, slots=True)
class SignedLogarithmic:
    """Logarithmic in the distance from zero, linear within ± `knee`: keeps 0.5 % and 70 % both readable."""

    low: float
    high: float
    knee: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """The position of a value."""
        low, high = self._stretch(self.low), self._stretch(self.high)
        share = (self._stretch(value) - low) / (high - low) if high > low else 0.5
        return self.start + share * (self.end - self.start)

    def _stretch(self, value: float) -> float:
        return math.copysign(math.log1p(abs(value) / self.knee), value)


def linear_ticks(low: float, high: float, count: int = 5) -> tuple[float, ...]:
    """Multiples of 1, 2 or 5 × a power of ten within [low, high], about `count` of them."""
    if not high > low:
        return (low,)
    raw = (high - low) / max(1, count)
    magnitude = 10.0 ** math.floor(math.log10(raw))
    step = magnitude * next((m for m in (1, 2, 5) if raw <= m * magnitude), 10)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return tuple(index * step for index in range(first, last + 1))


def text_width(text: str, *, size: float = FONT_SIZE, mono: bool = False) -> float:
    """Room to reserve for a text, in user units."""
    return len(text) * size * (MONO_WIDTH if mono else CHARACTER_WIDTH)


def wrap_name(name: str, max_characters: int) -> tuple[str, ...]:
    """Break a long name after `_`, `-`, `.`, `/` or a space into lines of at most `max_characters`; none is cut off."""
    lines = [""]
    for piece in re.findall(r"[^_\-./ ]*[_\-./ ]|[^_\-./ ]+", name):
        if lines[-1] and len(lines[-1]) + len(piece.rstrip()) > max_characters:
            lines.append("")
        lines[-1] += piece
    return tuple(
        line[i : i + max_characters].strip()
        for line in lines
        for i in range(0, max(1, len(line.rstrip())), max_characters)
    )


class Canvas:
    """One chart: an accessible `svg` element to which shapes are added in drawing order."""

    def __init__(
        self, *, name: str, title: str, description: str, width: float, height: float
    ) -> None:
        """Open a chart.

        Args:
            name: identifier, unique in the page, e.g. `forest`.
            title: what the chart is.
            description: what a person who cannot see it should know.
            width: width of the view box.
            height: height of the view box.
        """
        self.width = width
        self.height = height
        identifier = re.sub(r"[^A-Za-z0-9_-]", "-", name)
        self._root = ElementTree.Element(
            "svg",
            {
                "class": "chart",
                "viewBox": f"0 0 {_n(width)} {_n(height)}",
                "width": _n(width),
                "height": _n(height),
                "role": "img",
                "aria-labelledby": f"{identifier}-t {identifier}-d",
            },
        )
        self._add("title", {"id": f"{identifier}-t"}, title)
        self._add("desc", {"id": f"{identifier}-d"}, description)
        self._identifier = identifier

    def _add(
        self, tag: str, attributes: dict[str, str], text: str | None = None
    ) -> ElementTree.Element:
        element = ElementTree.SubElement(self._root, tag, attributes)
        element.text = text
        return element

    def line(self, x1: float, y1: float, x2: float, y2: float, kind: str) -> None:
        """A straight line of class `kind`."""
        self._add("line", {"x1": _n(x1), "y1": _n(y1), "x2": _n(x2), "y2": _n(y2), "class": kind})

    def rect(
        self, x: float, y: float, width: float, height: float, kind: str, *, tip: str | None = None
    ) -> None:
        """A rectangle; negative or tiny sizes draw nothing. `tip` is shown on hover and read aloud."""
        if width <= 0 or height <= 0:
            return
        attributes = {
            "x": _n(x),
            "y": _n(y),
            "width": _n(width),
            "height": _n(height),
            "class": kind,
        }
        self._tip(self._add("rect", attributes), tip)

    def circle(
        self, x: float, y: float, radius: float, kind: str, *, tip: str | None = None
    ) -> None:
        """A dot."""
        attributes = {"cx": _n(x), "cy": _n(y), "r": _n(radius), "class": kind}
        self._tip(self._add("circle", attributes), tip)

    def path(self, points: list[tuple[float, float]], kind: str, *, closed: bool = False) -> None:
        """A polyline through points."""
        if not points:
            return
        steps = "L".join(f"{_n(x)},{_n(y)}" for x, y in points)
        self._add("path", {"d": f"M{steps}{'Z' if closed else ''}", "class": kind})

    def text(self, x: float, y: float, text: str, kind: str = "", *, anchor: str = "start") -> None:
        """Text on its baseline; `anchor` is `start`, `middle` or `end`."""
        attributes = {"x": _n(x), "y": _n(y), "text-anchor": anchor}
        if kind:
            attributes["class"] = kind
        self._add("text", attributes, text)

    def name(self, x: float, y: float, name: str, max_characters: int, kind: str = "name") -> None:
        """A name centred on `y`, wrapped where it is longer than `max_characters`."""
        lines = wrap_name(name, max_characters)
        leading, kind = (15.0, kind) if len(lines) <= 2 else (11.5, f"{kind} tiny")
        top = y + 4.5 - (len(lines) - 1) * leading / 2
        for index, line in enumerate(lines):
            self.text(x, top + index * leading, line, kind)

    def hatch(self, name: str, spacing: float, angle: int, kind: str) -> str:
        """Define a hatch pattern and return the value for `fill`."""
        identifier = f"{self._identifier}-{name}"
        definitions = self._add("defs", {})
        pattern = ElementTree.SubElement(
            definitions,
            "pattern",
            {
                "id": identifier,
                "width": _n(spacing),
                "height": _n(spacing),
                "patternUnits": "userSpaceOnUse",
                "patternTransform": f"rotate({angle})",
            },
        )
        size = {"width": _n(spacing), "height": _n(spacing)}
        ElementTree.SubElement(pattern, "rect", {**size, "class": "hatch-ground"})
        half = {"width": _n(spacing / 2), "height": _n(spacing)}
        ElementTree.SubElement(pattern, "rect", {**half, "class": kind})
        return f"url(#{identifier})"

    def filled(
        self, x: float, y: float, width: float, height: float, fill: str, *, tip: str | None = None
    ) -> None:
        """A rectangle filled with a pattern from `hatch`."""
        if width <= 0:
            return
        attributes = {
            "x": _n(x),
            "y": _n(y),
            "width": _n(width),
            "height": _n(height),
            "fill": fill,
        }
        self._tip(self._add("rect", attributes), tip)

    def markup(self) -> str:
        """The chart as well-formed XML, safe to place in HTML."""
        return ElementTree.tostring(self._root, encoding="unicode")

    @staticmethod
    def _tip(element: ElementTree.Element, tip: str | None) -> None:
        if tip:
            ElementTree.SubElement(element, "title").text = tip


def _n(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")
