"""Small diagrams as SVG text for the page: axes in data units, every text escaped.

Colours are presentation attributes, so a figure stands alone once it is saved; the page's style
sheet, which wins over attributes, turns the same colours over for a dark screen.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any
from xml.etree import ElementTree

import numpy as np
from markupsafe import Markup

from calibrant.report.figures import GREY, VERMILION, Floats, Interval
from calibrant.report.tables import one_line

INK, PAPER, BAR, RULE, WRONG = "#1d1d1f", "#ffffff", "#8c8c8c", "#d9d9d9", "#f2c9ae"
RUST = "#b84e00"  # vermilion dark enough for words
_SEEN = 0.1  # of a unit of a drawing, a third of a millimetre: nothing smaller shows
DASHED, DOTTED, DASH_DOT = "5 4", "2 2", "7 3 2 3"
_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif"
# Marks as paths around 0, 0, about 9 units wide; named as in `calibrant.report.figures.SERIES`.
_MARKS = {
    "o": "M-4.2,0a4.2,4.2 0 1,0 8.4,0a4.2,4.2 0 1,0 -8.4,0z",
    "s": "M-3.8,-3.8h7.6v7.6h-7.6z",
    "D": "M0,-5L5,0L0,5L-5,0z",
    "^": "M0,-4.8L4.8,4L-4.8,4z",
    "v": "M0,4.8L4.8,-4L-4.8,-4z",
    "P": "M-1.7,-4.6h3.4v2.9h2.9v3.4h-2.9v2.9h-3.4v-2.9h-2.9v-3.4h2.9z",
    "X": "M-4.4,-2.2L-2.2,-4.4L0,-2.2L2.2,-4.4L4.4,-2.2L2.2,0L4.4,2.2L2.2,4.4L0,2.2L-2.2,4.4"
    "L-4.4,2.2L-2.2,0z",
    "*": "M0,-5.4L1.4,-1.7L5.2,-1.7L2.2,.7L3.3,4.4L0,2.2L-3.3,4.4L-2.2,.7L-5.2,-1.7L-1.4,-1.7z",
}


def element(tag: str, *inside: str | Markup, **attributes: Any) -> Markup:
    """Write one element; text inside and attribute values are escaped, None is left out.

    Examples
    --------
    >>> print(element("text", "a < b", x=1.50, text_anchor="end", fill=None))
    <text x="1.5" text-anchor="end">a &lt; b</text>
    """
    written = [
        Markup(' {}="{}"').format(name.rstrip("_").replace("_", "-"), _plain(value))
        for name, value in attributes.items()
        if value is not None
    ]
    start = Markup("<" + tag) + Markup("").join(written)
    if not inside:
        return start + Markup("/>")
    return start + Markup(">") + Markup("").join(inside) + Markup(f"</{tag}>")


def _plain(value: Any, digits: int = 2) -> str:
    if isinstance(value, float | np.floating):
        text = f"{value:.{digits}f}".rstrip("0").rstrip(".")
        return "0" if text == "-0" else text
    return str(value)


def _at(x: float, y: float, between: str = ",") -> str:
    """A place in a drawing; more digits than one show nowhere."""
    return f"{_plain(float(x), 1)}{between}{_plain(float(y), 1)}"


def _thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Points of a line without those that change it by less than can be seen.

    References
    ----------
    Douglas and Peucker, "Algorithms for the Reduction of the Number of Points Required to Represent
    a Digitized Line or its Caricature", 1973.

    Examples
    --------
    >>> _thinned([(0, 0), (1, 0.01), (2, 0), (3, 2)])
    [(0, 0), (2, 0), (3, 2)]
    """
    line = np.array(points, dtype=np.float64)
    kept, parts = {0, len(points) - 1}, [(0, len(points) - 1)]
    while parts:
        first, last = parts.pop()
        if last - first < 2:
            continue
        along, inner = line[last] - line[first], line[first + 1 : last] - line[first]
        share = np.clip(inner @ along / max(float(along @ along), 1e-12), 0, 1)
        away = np.hypot(*(inner - share[:, None] * along).T)
        if away.max() > _SEEN:
            middle = first + 1 + int(away.argmax())
            kept.add(middle)
            parts += [(first, middle), (middle, last)]
    return [points[i] for i in sorted(kept)]


@dataclass
class Axes:
    """A rectangle of a drawing in data units; what is drawn is collected in ``parts``.

    Attributes
    ----------
    left, top, width, height : of the rectangle, in the drawing's units.
    x, y : limits of the data; values beyond are drawn at the limit.
    """

    left: float
    top: float
    width: float
    height: float
    x: Interval = (0.0, 1.0)
    y: Interval = (0.0, 1.0)
    parts: list[Markup] = field(default_factory=list)

    def px(self, x: float) -> float:
        """Place of a value across."""
        share = (x - self.x[0]) / (self.x[1] - self.x[0])
        return self.left + min(max(share, 0.0), 1.0) * self.width

    def py(self, y: float) -> float:
        """Place of a value down."""
        share = (y - self.y[0]) / (self.y[1] - self.y[0])
        return self.top + (1 - min(max(share, 0.0), 1.0)) * self.height

    def add(self, tag: str, *inside: str | Markup, **attributes: Any) -> None:
        """Add an element in the drawing's own units."""
        self.parts.append(element(tag, *inside, **attributes))

    def bars(
        self,
        edges: Sequence[float] | Floats,
        heights: Iterable[float],
        *,
        fill: str,
        stroke: str | None = None,
        base: float = 0.0,
        titles: Sequence[str] | None = None,
    ) -> None:
        """Draw one bar between each two edges; a title is what a pointer at rest shows."""
        for i, height in enumerate(heights):
            if not height or math.isnan(height):
                continue
            left, right = self.px(float(edges[i])), self.px(float(edges[i + 1]))
            high, low = sorted((self.py(base), self.py(base + float(height))))
            gap = min(0.5, 0.2 * (right - left))
            self.add(
                "rect",
                *([element("title", titles[i])] if titles else []),
                x=round(left + gap, 1),
                y=round(high, 1),
                width=round(right - left - 2 * gap, 1),
                height=round(max(low - high, 0.6), 1),
                fill=fill,
                stroke=stroke,
            )

    def line(
        self,
        x: Iterable[float],
        y: Iterable[float],
        *,
        stroke: str,
        width: float = 1.4,
        dash: str | None = None,
        step: bool = False,
    ) -> None:
        """Draw a line through the points; it is broken where one is NaN."""
        pieces: list[list[tuple[float, float]]] = [[]]
        for a, b in zip(x, y, strict=True):
            if not math.isfinite(a) or not math.isfinite(b):
                pieces.append([])
                continue
            place = (self.px(a), self.py(b))
            if step and pieces[-1]:
                pieces[-1].append((place[0], pieces[-1][-1][1]))
            pieces[-1].append(place)
        path = ["M" + "L".join(_at(*p) for p in _thinned(piece)) for piece in pieces if piece]
        if path:
            self.add(
                "path", d="".join(path), fill="none", stroke=stroke, stroke_width=width,
                stroke_dasharray=dash,
                stroke_linejoin="round" if max(map(len, pieces)) > 2 else None,
            )  # fmt: skip

    def rule(
        self, *, x: float | None = None, y: float | None = None, stroke: str, width: float = 1.4,
        dash: str | None = None,
    ) -> None:  # fmt: skip
        """Draw a line across the whole rectangle at a value."""
        if x is not None:
            self.line((x, x), self.y, stroke=stroke, width=width, dash=dash)
        if y is not None:
            self.line(self.x, (y, y), stroke=stroke, width=width, dash=dash)

    def area(
        self, x: Sequence[float], low: Sequence[float], high: Sequence[float], *, fill: str
    ) -> None:
        """Fill between two lines."""
        there = [(a, b) for a, b in zip(x, high, strict=True)]
        back = [(a, b) for a, b in zip(x, low, strict=True)][::-1]
        edge = [(self.px(a), self.py(b)) for a, b in there + back]
        self.add("path", d=f"M{'L'.join(_at(*p) for p in _thinned(edge))}z", fill=fill)

    def mark(
        self, x: float, y: float, *, colour: str, marker: str = "o", fill: str | None = None,
        title: str = "", size: float = 1.0,
    ) -> None:  # fmt: skip
        """Draw one mark; ``fill`` is for an open one."""
        scale = "" if size == 1 else f" scale({size:g})"
        place = f"translate({_at(self.px(x), self.py(y), ' ')}){scale}"
        self.add(
            "path",
            *([element("title", title)] if title else []),
            d=_MARKS[marker],
            transform=place,
            fill=fill or colour,
            stroke=colour,
            stroke_width=1.3,
        )

    def reach(self, x: Interval, y: Interval, *, stroke: str, width: float = 1.3) -> None:
        """Draw an interval: a line from one point to the other, with ends if it is upright."""
        ends = [(self.px(a), self.py(b)) for a, b in zip(x, y, strict=True)]
        path = f"M{_at(*ends[0])}L{_at(*ends[1])}"
        if x[0] == x[1]:
            path += "".join(f"M{_at(across - 3, down)}h6" for across, down in ends)
        self.add("path", d=path, stroke=stroke, stroke_width=width)

    def dots(self, x: Iterable[float], y: Iterable[float], *, colour: str) -> None:
        """Draw many small dots as one path."""
        path = "".join(f"M{self.px(a):.1f},{self.py(b):.1f}h0" for a, b in zip(x, y, strict=True))
        self.add("path", d=path, fill="none", stroke=colour, stroke_width=2.4,
                 stroke_linecap="round", stroke_opacity=0.35)  # fmt: skip

    def text(
        self, x: float, y: float, text: str, *, anchor: str = "start", fill: str = INK,
        size: float | None = None, weight: str | None = None,
    ) -> None:  # fmt: skip
        """Write text at a place in the drawing's own units."""
        self.add(
            "text", one_line(text), x=x, y=y, text_anchor=None if anchor == "start" else anchor,
            fill=fill, font_size=size, font_weight=weight,
        )  # fmt: skip

    def x_axis(self, ticks: Sequence[float], labels: Sequence[str] | None, title: str = "") -> None:
        """Draw the axis under the rectangle; no labels where another one stands below."""
        bottom = self.top + self.height
        path = f"M{_at(self.left, bottom)}h{_plain(self.width)}"
        path += "".join(f"M{_at(self.px(tick), bottom)}v3" for tick in ticks)
        self.add("path", d=path, stroke=GREY, stroke_width=0.8)
        written = [
            element("text", one_line(label), x=round(self.px(tick), 1), y=round(bottom + 14, 1))
            for tick, label in zip(ticks, labels or (), strict=labels is not None)
        ]
        if written:
            self.add("g", *written, text_anchor="middle", fill=GREY)
        if title:
            self.text(self.left + self.width / 2, bottom + 29, title, anchor="middle")

    def y_axis(self, ticks: Sequence[float], labels: Sequence[str], title: str = "") -> None:
        """Draw the axis left of the rectangle, its title upright."""
        path = f"M{_at(self.left, self.top)}v{_plain(self.height)}"
        path += "".join(f"M{_at(self.left, self.py(tick))}h-3" for tick in ticks)
        self.add("path", d=path, stroke=GREY, stroke_width=0.8)
        written = [
            element("text", one_line(label), x=round(self.left - 6, 1),
                    y=round(self.py(tick) + 3.8, 1))
            for tick, label in zip(ticks, labels, strict=True)
        ]  # fmt: skip
        self.add("g", *written, text_anchor="end", fill=GREY)
        if title:
            middle = _plain(self.top + self.height / 2)
            self.add("text", title, x=12, y=middle, transform=f"rotate(-90 12 {middle})",
                     text_anchor="middle", fill=INK)  # fmt: skip


def legend(axes: Axes, entries: Sequence[tuple[Markup, str]], *, top: float, columns: int) -> None:
    """Write a legend under the axes, from the drawing's left edge on."""
    width = (axes.left + axes.width - 14) / columns
    for i, (sample, label) in enumerate(entries):
        x, y = 14 + (i % columns) * width, top + 17 * (i // columns)
        axes.parts.append(element("g", sample, transform=f"translate({_plain(x)} {_plain(y)})"))
        axes.text(x + 27, y + 4, label)


def line_sample(stroke: str, dash: str | None = None, marker: str | None = None,
                fill: str | None = None) -> Markup:  # fmt: skip
    """Sample of a line, of a mark, or of both, 20 units wide around height 0."""
    parts = []
    if dash is not None or marker is None:
        parts.append(element("path", d="M0,0h20", fill="none", stroke=stroke, stroke_width=1.6,
                             stroke_dasharray=dash or None))  # fmt: skip
    if marker is not None:
        parts.append(element("path", d=_MARKS[marker], transform="translate(10 0)",
                             fill=fill or stroke, stroke=stroke, stroke_width=1.3))  # fmt: skip
    return Markup("").join(parts)


def box_sample(fill: str, stroke: str | None = None) -> Markup:
    """Sample of a filled area."""
    return element("rect", x=2, y=-5, width=16, height=10, fill=fill, stroke=stroke)


def hatch(key: str) -> tuple[Markup, str]:
    """Give the pattern of wrong answers and the fill that uses it; ``key`` is the drawing's."""
    name = f"{key}-hatch"
    lines = element("path", d="M-1,1l2,-2M0,5l5,-5M4,6l2,-2", stroke=VERMILION, stroke_width=1)
    paper = element("rect", width=5, height=5, fill=WRONG)
    pattern = element("pattern", paper, lines, id=name, width=5, height=5,
                      patternUnits="userSpaceOnUse")  # fmt: skip
    return element("defs", pattern), f"url(#{name})"


_NOTHING = Markup("")


def drawing(
    key: str,
    axes: Sequence[Axes],
    *,
    width: float,
    height: float,
    title: str,
    description: str,
    defs: Markup = _NOTHING,
) -> Markup:
    """Put axes together into one SVG element with a title and a description for readers.

    Parameters
    ----------
    key : begins every id inside; unique in the page.
    """
    return element(
        "svg",
        element("title", one_line(title), id=f"{key}-title"),
        element("desc", one_line(description), id=f"{key}-desc"),
        defs,
        *(part for one in axes for part in one.parts),
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 0 {_plain(float(width))} {_plain(float(height))}",
        role="img",
        aria_labelledby=f"{key}-title",
        aria_describedby=f"{key}-desc",
        font_family=_FONT,
        font_size=11,
    )


def even_ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round numbers between two limits, at most so many of them.

    Examples
    --------
    >>> even_ticks(0.0, 0.27)
    [0.0, 0.1, 0.2]
    """
    raw = (high - low) / max(most - 1, 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(k * step, 10) for k in range(first, last + 1)]


_SVG, _LINK = "{http://www.w3.org/2000/svg}", "{http://www.w3.org/1999/xlink}href"


def of_figure(key: str, text: str, *, title: str, description: str) -> Markup:
    """Turn a figure as matplotlib wrote it, SVG, into an element like those of `drawing`.

    Its styles become presentation attributes, which the page's policy allows and its style sheet
    can turn over; ids begin with ``key``, so that several figures fit one page.
    """
    root = ElementTree.fromstring(text)
    for parent in [*root.iter()]:
        for child in [*parent]:
            if child.tag in (f"{_SVG}metadata", f"{_SVG}style"):
                parent.remove(child)
    for one in root.iter():
        for name, value in re.findall(r"([\w-]+): ([^;]+)", one.attrib.pop("style", "")):
            one.set(name, value)
        for name, value in one.attrib.items():
            if name == "id":
                one.set(name, f"{key}-{value}")
            elif name == _LINK or value.startswith("url(#"):
                one.set(name, value.replace("#", f"#{key}-", 1))
    for name in ("width", "height", "version"):
        root.attrib.pop(name, None)
    # What names no colour, letters above all, is in ink.
    about = {"role": "img", "aria-labelledby": f"{key}-title", "aria-describedby": f"{key}-desc"}
    root.attrib |= {**about, "fill": INK, "stroke-linejoin": "round"}
    for place, (tag, text) in enumerate((("title", title), ("desc", description))):
        named = ElementTree.Element(f"{_SVG}{tag}", {"id": f"{key}-{tag}"})
        named.text = one_line(text)
        root.insert(place, named)
    ElementTree.register_namespace("", _SVG[1:-1])
    ElementTree.register_namespace("xlink", _LINK[1 : _LINK.index("}")])
    return Markup(ElementTree.tostring(root, encoding="unicode"))
