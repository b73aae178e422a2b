"""Lines, bars and points as inline SVG.

Written here rather than with a plotting library: a report needs three kinds of plot, the runtime requirements must not
grow, and elements that take their colours from the page's style follow its light and dark form, which a picture of a
library cannot. The eight colours are those of Okabe and Ito, which colour-blind people can tell apart; lines and points
differ in dashes and marks besides. Sizes are those of a phone's width, so that letters stay readable there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from xml.etree import ElementTree as ET

WIDTH, HEIGHT = 440, 270
LEFT, RIGHT, TOP, BOTTOM = 56, 12, 12, 44
LABEL = 30  # beside the ticks of the y axis, for its label
COLOURS = 8  # see --c0 ... --c7 of page.css
DASHES = ("", "7 3", "2 3", "9 3 2 3")
MARKS = ("circle", "square", "triangle", "diamond")
_LETTER, _DIGIT = 6.2, 7.2  # width of one at the font's size, on average


@dataclass(frozen=True)
class Series:
    """One line: points (x, y), deviations of y, and the points that are marked as best."""

    name: str
    points: Sequence[tuple[float, float]]
    deviations: Sequence[float] = ()
    best: Sequence[tuple[float, float]] = ()


@dataclass(frozen=True)
class Cloud:
    """Points of one kind, observed ones filled and generated ones hollow."""

    name: str
    points: Sequence[tuple[float, float]]
    hollow: bool = False
    colour: int = 0
    mark: int = 0


@dataclass(frozen=True)
class Bar:
    """A value with its deviation under a label; `text` stands beside it, `ours` catches the eye."""

    label: str
    value: float
    deviation: float = 0.0
    text: str = ""
    ours: bool = True


@dataclass(frozen=True)
class Plot:
    """A drawing with its title and, for those who cannot see it, what it shows."""

    title: str
    svg: str
    legend: Sequence[tuple[str, str]] = ()  # name and the SVG of its key
    note: str = ""
    small: bool = False


def lines(
    title: str,
    series: Sequence[Series],
    *,
    x: str,
    y: str,
    ticks: Mapping[float, str] | None = None,
    whole: bool = False,
    zero: bool = False,
    small: bool = False,
    note: str = "",
) -> Plot:
    """A line for each series.

    Args:
        x, y: what the axes show, with the unit.
        ticks: places and labels of the x axis; by default round numbers.
        whole: the default ticks of x are integers.
        zero: y starts at 0.
        small: half the size, for several side by side.
    """
    series = [line for line in series if line.points]
    xs = [point[0] for line in series for point in line.points]
    ys = [value for line in series for value in _reach(line)]
    x_ticks = _ticks(min(xs), max(xs), 5, whole=whole) if ticks is None else dict(ticks)
    y_ticks = _ticks(0 if zero else min(ys), max(ys), 4 if small else 5)
    widest = max(len(text) for text in y_ticks.values())
    canvas = _Canvas(title, left=max(46 if small else LEFT, LABEL + widest * _DIGIT), small=small)
    canvas.axes(x_ticks, y_ticks, (min(xs), max(xs)), x, y)
    markers = all(len(line.points) <= 12 for line in series)
    for number, line in enumerate(series):
        canvas.line(line, number, markers=markers)
    legend = (
        [(line.name, _key(number, markers=markers)) for number, line in enumerate(series)] if len(series) > 1 else []
    )
    return Plot(title, canvas.text(), legend, note, small)


def bars(title: str, rows: Sequence[Bar], *, x: str, note: str = "") -> Plot:
    """A horizontal bar for each row from zero, negative ones to the left, with the deviation as a whisker."""
    ends = [end for row in rows for end in (row.value - row.deviation, row.value + row.deviation)]
    step = 34
    canvas = _Canvas(title, left=26, right=26, top=8, height=step * len(rows) + 8 + BOTTOM)
    low, high = min(0.0, *ends), max(0.0, *ends)
    canvas.axes(_ticks(low, high, 5), {}, None, x, "")
    zero = canvas.x(0)
    canvas.element("line", x1=zero, x2=zero, y1=canvas.top, y2=canvas.bottom, cls="zero")
    for number, row in enumerate(rows):
        top = canvas.top + number * step
        end = canvas.x(row.value)
        canvas.words(f"{row.label}  {row.text}".strip(), canvas.left, top + 12, "name")
        canvas.element(
            "rect", x=min(zero, end), y=top + 17, width=abs(end - zero), height=11, cls="f0" if row.ours else "f1"
        )
        if row.deviation:
            ends_x = [canvas.x(row.value + sign * row.deviation) for sign in (-1, 1)]
            canvas.element("line", x1=ends_x[0], x2=ends_x[1], y1=top + 22.5, y2=top + 22.5, cls="whisker")
    return Plot(title, canvas.text(), note=note)


def scatter(title: str, clouds: Sequence[Cloud], *, note: str = "") -> Plot:
    """Points in a plane whose axes have no meaning of their own."""
    every = [point for cloud in clouds for point in cloud.points]
    canvas = _Canvas(title, left=8, right=8, top=8, height=330, foot=8)
    spans = [(min(values), max(values)) for values in zip(*every, strict=True)]
    canvas.span(*spans)
    frame = {"width": canvas.right - canvas.left, "height": canvas.bottom - canvas.top}
    canvas.element("rect", x=canvas.left, y=canvas.top, **frame, cls="frame")
    for cloud in clouds:
        kind = "o" if cloud.hollow else "m"
        for x, y in cloud.points:
            canvas.mark(canvas.x(x), canvas.y(y), cloud.mark, f"{kind}{cloud.colour % COLOURS}", 2.6)
    return Plot(title, canvas.text(), [(cloud.name, _cloud_key(cloud)) for cloud in clouds], note)


class _Canvas:
    """An SVG element with a linear scale on each axis."""

    def __init__(
        self,
        title: str,
        *,
        left: float = LEFT,
        right: float = RIGHT,
        top: float = TOP,
        height: float = HEIGHT,
        foot: float = BOTTOM,
        small: bool = False,
    ) -> None:
        width: float = WIDTH
        if small:
            width, height, foot = 250, 150, 36
        self.left, self.right, self.top, self.bottom = left, width - right, top, height - foot
        self.width = width
        self.svg = ET.Element("svg", viewBox=f"0 0 {width:g} {height:g}", role="img")
        ET.SubElement(self.svg, "title").text = title
        self.span((0, 1), (0, 1))

    def span(self, x: tuple[float, float], y: tuple[float, float]) -> None:
        """What the axes reach over; a point alone stands in the middle."""
        self._x, self._y = (_widened(low, high) for low, high in (x, y))

    def x(self, value: float) -> float:
        """Where a value stands, from the left."""
        low, high = self._x
        return self.left + (value - low) / (high - low) * (self.right - self.left)

    def y(self, value: float) -> float:
        """Where a value stands, from the top."""
        low, high = self._y
        return self.bottom - (value - low) / (high - low) * (self.bottom - self.top)

    def axes(
        self,
        x_ticks: Mapping[float, str],
        y_ticks: Mapping[float, str],
        x_span: tuple[float, float] | None,
        x_label: str,
        y_label: str,
    ) -> None:
        """Grid, ticks and labels; the scales reach over the ticks."""
        x_all = [*x_ticks, *(x_span or ())]
        self.span((min(x_all), max(x_all)), (min(y_ticks, default=0), max(y_ticks, default=1)))
        for value, text in y_ticks.items():
            self.element("line", x1=self.left, x2=self.right, y1=self.y(value), y2=self.y(value), cls="grid")
            self.words(text, self.left - 6, self.y(value) + 4, "tick", anchor="end")
        for value, text in x_ticks.items():
            if not y_ticks:
                self.element("line", x1=self.x(value), x2=self.x(value), y1=self.top, y2=self.bottom, cls="grid")
            at = min(self.x(value), self.width - len(text) * _LETTER / 2)
            self.words(text, at, self.bottom + 16, "tick", anchor="middle")
        self.element("line", x1=self.left, x2=self.right, y1=self.bottom, y2=self.bottom, cls="axis")
        self.words(x_label, (self.left + self.right) / 2, self.bottom + 33, "label", anchor="middle")
        if y_label:
            middle = (self.top + self.bottom) / 2
            words = self.words(y_label, 13, middle, "label", anchor="middle")
            words.set("transform", f"rotate(-90 13 {middle:.1f})")

    def line(self, series: Series, number: int, *, markers: bool) -> None:
        """One series with its deviations, marks and best points."""
        places = [(self.x(x), self.y(y)) for x, y in series.points]
        colour = f"l{number % COLOURS}"
        for (x, y), deviation in zip(series.points, series.deviations, strict=False):
            if deviation:
                top, end = self.y(y + deviation), self.y(y - deviation)
                self.element("line", x1=self.x(x), x2=self.x(x), y1=top, y2=end, cls=f"{colour} thin")
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        self.element("polyline", points=points, cls=colour, **_dash(number))
        if markers:
            for x, y in places:
                self.mark(x, y, number, f"m{number % COLOURS}", 3.6)
        for x, y in series.best:
            self.element("circle", cx=self.x(x), cy=self.y(y), r=5.5, cls=f"{colour} best")

    def mark(self, x: float, y: float, number: int, cls: str, size: float) -> None:
        """A mark around a place."""
        _mark(self.svg, x, y, number, cls, size)

    def words(self, text: str, x: float, y: float, cls: str, anchor: str = "start") -> ET.Element:
        """Text at a place."""
        element = self.element("text", x=x, y=y, cls=cls, text_anchor=anchor)
        element.text = text
        return element

    def element(self, tag: str, *, cls: str, **attributes: float | str) -> ET.Element:
        """An element; numbers are rounded to what can be seen."""
        return _element(self.svg, tag, cls, attributes)

    def text(self) -> str:
        """The drawing's source."""
        return ET.tostring(self.svg, encoding="unicode")


def _element(parent: ET.Element, tag: str, cls: str, attributes: Mapping[str, float | str]) -> ET.Element:
    shown = {
        name.replace("_", "-"): value if isinstance(value, str) else f"{value:.1f}"
        for name, value in attributes.items()
    }
    return ET.SubElement(parent, tag, {**shown, "class": cls})


def _mark(parent: ET.Element, x: float, y: float, number: int, cls: str, size: float) -> None:
    kind = MARKS[number % len(MARKS)]
    if kind == "circle":
        _element(parent, "circle", cls, {"cx": x, "cy": y, "r": size})
        return
    corners = {
        "square": ((-1, -1), (1, -1), (1, 1), (-1, 1)),
        "triangle": ((0, -1.2), (1.1, 0.9), (-1.1, 0.9)),
        "diamond": ((0, -1.3), (1.3, 0), (0, 1.3), (-1.3, 0)),
    }[kind]
    points = " ".join(f"{x + size * 0.9 * dx:.1f},{y + size * 0.9 * dy:.1f}" for dx, dy in corners)
    _element(parent, "polygon", cls, {"points": points})


def _dash(number: int) -> dict[str, str]:
    dash = DASHES[number % len(DASHES)]
    return {"stroke_dasharray": dash} if dash else {}


def _key(number: int, *, markers: bool) -> str:
    svg = ET.Element("svg", {"viewBox": "0 0 30 12", "class": "key", "aria-hidden": "true"})
    _element(svg, "line", f"l{number % COLOURS}", {"x1": 1, "x2": 29, "y1": 6, "y2": 6, **_dash(number)})
    if markers:
        _mark(svg, 15, 6, number, f"m{number % COLOURS}", 3.6)
    return ET.tostring(svg, encoding="unicode")


def _cloud_key(cloud: Cloud) -> str:
    svg = ET.Element("svg", {"viewBox": "0 0 12 12", "class": "key dot", "aria-hidden": "true"})
    _mark(svg, 6, 6, cloud.mark, f"{'o' if cloud.hollow else 'm'}{cloud.colour % COLOURS}", 3.6)
    return ET.tostring(svg, encoding="unicode")


def _reach(series: Series) -> list[float]:
    values = [y for _, y in series.points]
    ends = [y + sign * deviation for y, deviation in zip(values, series.deviations, strict=False) for sign in (-1, 1)]
    return values + ends


def _widened(low: float, high: float) -> tuple[float, float]:
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _ticks(low: float, high: float, count: int, *, whole: bool = False) -> dict[float, str]:
    """Round numbers that enclose the span, 1, 2 or 5 times a power of ten apart, with their labels."""
    low, high = _widened(low, high) if not whole else (low, max(high, low + 1))
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * 0.999)
    if whole:
        step = max(1.0, round(step))
        places = range(math.ceil(low / step), math.floor(high / step) + 1)
    else:
        places = range(math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9) + 1)
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    return {place * step: f"{place * step:.{digits}f}" for place in places}
