"""Charts of a page, drawn by Bokeh in the browser. They show details under the pointer and follow the page's theme.

Colours of axes and texts are in templates/style.css (`--bk-...`); those of marks are readable on light and dark.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from tinymem.localize.registry import METHODS
from tinymem.pages.names import REFERENCES, display_name
from tinymem.records.identity import NEVER_PLANTED, UNEDITED

COLOURS = ("#4e79a7", "#f28e2b", "#59a14f", "#e15759", "#b07aa1", "#3ba3a0", "#c4a000", "#d37295", "#9c755f", "#8cb84e")
GREY, ACCENT = "#8a9299", "#1f8fb8"
FEW_TICKS = 3  # fewer labels do not show the scale
# Marks of methods in no registry, taken in turn: shapes that no family has, in each of these colours.
FOREIGN = (("#e6007e", "hex"), ("#7a2fe0", "inverted_triangle"), ("#0057d9", "plus"), ("#b3261e", "square_pin"))
DASHES = ("solid", (7, 3), (2, 2), (9, 3, 2, 3), (4, 4))  # of lines, taken in turn: lines may coincide
SHAPES = {"neuron": "circle", "weight": "square", "objective": "triangle", "curvature": "diamond"}  # by family
# the marks as letters, in the list below a chart
LETTERS = {
    "circle": "○",
    "square": "■",
    "triangle": "▲",
    "diamond": "◆",
    "hex": "⬢",
    "inverted_triangle": "▼",
    "plus": "✚",
    "square_pin": "✦",
    "star": "★",
    "x": "✕",
}
HOLLOW = LETTERS | {"square": "□", "triangle": "△", "diamond": "◇", "hex": "⬡", "inverted_triangle": "▽"}
# percent: closer marks overlap, and are then moved apart by this share of a place's width
NEAR, APART = 2.0, 0.05
EDITED = "edited"  # the series without a colour of its own
THEME = {
    "Axis": {"axis_label_text_font_style": "normal", "axis_label_text_font_size": "12px"},
    "BaseAxis": {"major_label_text_font_size": "11px"},
    "Grid": {"grid_line_alpha": 0.7},
    "Plot": {"background_fill_color": None, "border_fill_color": None, "outline_line_color": None},
}


@dataclass(frozen=True)
class Entry:
    """A series in the list below a chart. A click on it hides its marks. letter: its mark."""

    series: str
    name: str
    letter: str
    colour: str


@dataclass(frozen=True)
class Chart:
    """A chart. name: unique in its page. item: what BokehJS embeds. alternative: its alternative text."""

    name: str
    item: Mapping[str, Any]
    alternative: str
    height: int
    title: str = ""
    caption: str = ""
    entries: tuple[Entry, ...] = ()


@dataclass(frozen=True)
class Axis:
    """An axis. low, high: its ends; low is at the left or bottom. high < low inverts it."""

    label: str
    low: float
    high: float
    logarithmic: bool = False


@dataclass(frozen=True)
class Mark:
    """A point of a scatter. series: its entry in the list. about: what the pointer shows, by name.

    leads: whether it has a ring. anchor: whether its series is a reference, not a rival.
    """

    series: str
    x: float
    y: float
    about: Mapping[str, str]
    leads: bool = False
    anchor: bool = False


@dataclass(frozen=True)
class Series:
    """A line over the places of an axis; None is a gap."""

    name: str
    values: Sequence[float | None]


def scatter(
    name: str,
    marks: Sequence[Mark],
    x: Axis,
    y: Axis,
    alternative: str,
    caption: str = "",
    front: Sequence[tuple[float, float]] = (),
    strip: tuple[float, float, str] | None = None,
    bound: float | None = None,
    among: Mapping[str, bool] | None = None,
) -> Chart:
    """Return a scatter. Marks that lead or are on the front have their names beside them.

    front: points that a stepped line joins. strip: a shaded band between two values of y, with its text. bound: a value
    of x with a dashed line. among: all series of the page, and whether they are anchors, so that a series has the same
    marks in all charts; None: this chart's series.
    """
    from bokeh.models import HoverTool
    from bokeh.models.annotations.geometry import BoxAnnotation, Span
    from bokeh.models.annotations.labels import Label

    figure = _figure(430, x, y)
    if y.logarithmic:
        _plain_numbers(figure.yaxis[0], y.high, strip[0] if strip else y.low)
    if strip:
        low, high = sorted(strip[:2])
        figure.add_layout(BoxAnnotation(bottom=low, top=high, fill_color=GREY, fill_alpha=0.14, line_color=None))
        text: dict[str, Any] = dict(text_font_size="11px", text_color=GREY, text_align="right", text_baseline="top")
        figure.add_layout(Label(x=max(x.low, x.high), y=strip[0], text=strip[2], x_offset=-4, y_offset=-3, **text))
    if bound is not None:
        figure.add_layout(Span(location=bound, dimension="height", line_color=GREY, line_dash="dashed"))
    if front:
        figure.step(*map(list, zip(*front)), mode="after", line_color=GREY, line_dash="dotted", line_width=1.5)
    drawn, names = [], {mark.series: mark.anchor for mark in marks}
    styles = mark_styles(among or names)
    for series in names:
        some = [mark for mark in marks if mark.series == series]
        size = 17 if series in REFERENCES else 10
        drawn.append(figure.scatter("x", "y", source=_source(some), name=series, size=size, **styles[series]))
        if first := [mark for mark in some if mark.leads]:
            ring = dict(marker="circle", fill_alpha=0, line_color=ACCENT, line_width=2, name=series)
            figure.scatter([mark.x for mark in first], [mark.y for mark in first], size=19, **ring)
        for mark in some:
            if (mark.leads or (mark.x, mark.y) in front) and series not in REFERENCES and not mark.anchor:
                inner = (mark.x - x.low) / (x.high - x.low) < 0.7  # farther right, the name would be cut off
                look: dict[str, Any] = dict(text_font_size="11px", text_color=GREY, text_baseline="middle", name=series)
                look |= dict(x_offset=12 if inner else -12, text_align="left" if inner else "right")
                figure.text([mark.x], [mark.y], [display_name(series)], **look)
    fullest_first = sorted(marks, key=lambda mark: -len(mark.about))  # it gives the order of all
    shown = dict.fromkeys(key for mark in fullest_first for key in mark.about)
    tips = [("", "@series"), *((key, f"@{{{key}}}") for key in shown)]
    figure.add_tools(HoverTool(tooltips=tips, renderers=drawn))
    return Chart(
        name,
        _numbered(_item(figure), name),
        alternative,
        430,
        "",
        caption,
        tuple(_entry(one, styles[one]) for one in names),
    )


def lines(
    name: str,
    series: Sequence[Series],
    places: Sequence[str],
    x: str,
    y: str,
    alternative: str,
    title: str = "",
    caption: str = "",
    height: int = 320,
) -> Chart:
    """Return a line per series, in percent, over evenly spaced places.

    If lines would coincide, their marks are side by side at each place.
    """
    sources: dict[str, dict[str, list]] = {}
    step = min(APART, 0.8 / len(series)) if coincide(series) else 0.0
    for number, one in enumerate(series):
        known = [(place, value) for place, value in zip(places, one.values) if value is not None]
        aside = round(step * (number - (len(series) - 1) / 2), 4)
        where = [[place, aside] if aside else place for place, _ in known]
        sources[one.name] = {"x": where, "y": [value for _, value in known], "place": [place for place, _ in known]}
        sources[one.name]["series"] = [display_name(one.name)] * len(known)
    item, styles = _filled(_empty_lines(tuple(sources), x, y, height), places, sources), mark_styles(sources)
    entries = tuple(_line_entry(one.name, styles[one.name]) for one in series)
    return Chart(name, _numbered(item, name), alternative, height, title, caption, entries)


def coincide(series: Sequence[Series]) -> bool:
    """Return whether two lines meet at a place, or nearly."""
    places = zip(*(one.values for one in series))
    known = (sorted(value for value in values if value is not None) for values in places)
    return any(b - a < NEAR for values in known for a, b in zip(values, values[1:]))


@cache
def _empty_lines(series: Sequence[str], x: str, y: str, height: int) -> dict[str, Any]:
    """Return a chart of lines without data. A page has hundreds that differ only in data, and making one is slow."""
    from bokeh.models import ColumnDataSource, FactorRange, HoverTool

    figure = _figure(height, Axis(x, 0, 0), Axis(y, -4, 104), x_range=FactorRange(), toolbar=False)
    figure.xgrid.visible = False
    drawn, styles = [], mark_styles(series)
    rivals = [name for name in series if name not in REFERENCES]
    for name in series:
        source = ColumnDataSource({"x": [], "y": [], "place": [], "series": []}, name=name)
        reference = name in REFERENCES
        marks = styles[name] | {"size": 10 if reference else 8, "name": name}
        dash: Any = "dashed" if name == NEVER_PLANTED else "solid"
        if not reference:
            dash = DASHES[rivals.index(name) % len(DASHES)]
        look = dict(line_dash=dash, line_width=3 if reference else 2)
        figure.line("x", "y", source=source, name=name, line_color=marks["line_color"], line_alpha=0.9, **look)
        drawn.append(figure.scatter("x", "y", source=source, **marks))
    figure.add_tools(HoverTool(tooltips=[("", "@series"), (x or "at", "@place"), (y, "@y{0.0}")], renderers=drawn))
    return _item(figure)


def _filled(part: Any, places: Sequence[str], sources: Mapping[str, Mapping[str, list]]) -> Any:
    """Return a copy of a chart of lines with its data: the places on its axis, and the source of each series."""
    if isinstance(part, list):
        return [_filled(each, places, sources) for each in part]
    if not isinstance(part, dict):
        return part
    copy = {key: _filled(value, places, sources) for key, value in part.items()}
    if copy.get("name") == "FactorRange":
        copy["attributes"] = {**copy.get("attributes", {}), "factors": list(places)}
    elif copy.get("name") == "ColumnDataSource":
        data = sources[copy["attributes"]["name"]]
        copy["attributes"]["data"] = {"type": "map", "entries": [list(pair) for pair in data.items()]}
    return copy


def _entry(series: str, style: Mapping[str, Any]) -> Entry:
    letters = HOLLOW if style["fill_color"] is None else LETTERS
    letter = "☆" if series == UNEDITED else letters[style["marker"]]
    return Entry(series, display_name(series), letter, style["line_color"])


def _line_entry(series: str, style: Mapping[str, Any]) -> Entry:
    if series in REFERENCES or series == EDITED:
        return Entry(series, display_name(series), "╍" if series == NEVER_PLANTED else "━", style["line_color"])
    return _entry(series, style)


def mark_styles(methods: Mapping[str, Any] | Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return the colours and shapes of a chart's methods. methods: a mapping says which are anchors, if any.

    They are the same in every chart of these methods, whatever their order.
    """
    anchors = {method for method in methods if isinstance(methods, Mapping) and methods[method] is True}
    own = sorted(method for method in methods if method not in (*METHODS, *REFERENCES, *anchors, EDITED))
    return {
        method: mark_style(method, method in anchors, own.index(method) if method in own else 0) for method in methods
    }


def mark_style(method: str, anchor: bool = False, place: int = 0) -> dict[str, Any]:
    """Return the colour and shape of a method's marks. The family gives the shape; neuron methods are hollow.

    Anchors are grey. place: the position of a method from a user's file among those of a chart.
    """
    if method in REFERENCES:
        full = method != UNEDITED
        return dict(marker="star", line_color=GREY, fill_color=GREY if full else None, line_width=1.5)
    if anchor:
        return dict(marker="x", line_color=GREY, fill_color=GREY, line_width=2)
    if method == EDITED:
        return dict(marker="hex", line_color=ACCENT, fill_color=ACCENT)
    if method not in METHODS:
        colour, shape = FOREIGN[place % len(FOREIGN)][0], FOREIGN[(place + place // len(FOREIGN)) % len(FOREIGN)][1]
        return dict(marker=shape, line_color=colour, fill_color=colour)
    family = METHODS[method].family
    relatives = [name for name in METHODS if METHODS[name].family == family]
    again = relatives.index(method) >= len(COLOURS)  # another method of the family has this colour
    colour = COLOURS[list(METHODS).index(method) % len(COLOURS)]
    fill = None if family == "neuron" or again else colour
    return dict(marker=SHAPES.get(family, "hex"), line_color=colour, fill_color=fill, fill_alpha=0.75, line_width=2)


def _figure(height: int, x: Axis, y: Axis, x_range=None, toolbar: bool = True):
    from bokeh.models import Range1d
    from bokeh.plotting import figure

    made = figure(
        height=height,
        sizing_mode="stretch_width",
        x_range=x_range or Range1d(start=x.low, end=x.high),
        y_range=Range1d(start=y.low, end=y.high),
        y_axis_type="log" if y.logarithmic else "linear",
        x_axis_label=x.label,
        y_axis_label=y.label,
        tools="box_zoom,reset,save" if toolbar else "",
        active_drag=None,  # a finger must be able to scroll the page
        toolbar_location="right" if toolbar else None,
        toolbar_inner=True,
        min_border=6,
    )
    made.toolbar.logo, made.toolbar.autohide = None, True
    return made


def _plain_numbers(axis, *ends: float) -> None:
    """Label a logarithmic axis with 20, 50, 100 instead of powers of ten, between these ends."""
    from bokeh.models import FixedTicker
    from matplotlib.ticker import MaxNLocator

    low, high = sorted(ends)
    ratio = high / low
    steps = (
        (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8)
        if ratio < 5
        else (1, 2, 3, 5) if ratio < 30 else (1, 2, 5) if ratio < 1e3 else (1,)
    )
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [step * 10.0**power for power in powers for step in steps if low <= step * 10.0**power <= high]
    if len(ticks) < FEW_TICKS:  # a short part of a logarithmic axis is nearly linear
        ticks = [tick for tick in map(float, MaxNLocator(5).tick_values(low, high)) if low <= tick <= high]
    axis.ticker = FixedTicker(ticks=ticks)
    axis.major_label_overrides = {tick: f"{tick:g}" for tick in ticks}


def _source(marks: Sequence[Mark]) -> dict[str, list]:
    names = dict.fromkeys(name for mark in marks for name in mark.about)
    about = {name: [mark.about.get(name, "–") for mark in marks] for name in names}
    places = {"x": [mark.x for mark in marks], "y": [mark.y for mark in marks]}
    return {**about, **places, "series": [display_name(mark.series) for mark in marks]}


def _item(figure) -> dict[str, Any]:
    """Return a figure as BokehJS embeds it."""
    from bokeh.embed import json_item
    from bokeh.themes import Theme

    return dict(json_item(figure, theme=Theme(json={"attrs": THEME})))


def _numbered(item: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return a chart with its parts numbered from 1 after its name, since Bokeh numbers all parts in a process."""
    numbers: dict[str, str] = {}

    def renamed(value: Any) -> Any:
        if isinstance(value, dict):
            return {
                key: (
                    numbers.setdefault(part, f"{name}-{len(numbers) + 1}")
                    if key in ("id", "root_id") and isinstance(part, str)
                    else renamed(part)
                )
                for key, part in value.items()
            }
        return [renamed(part) for part in value] if isinstance(value, (list, tuple)) else value

    return renamed(item)
