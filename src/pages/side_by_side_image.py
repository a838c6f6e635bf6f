"""A run's page as an image, in a monospaced font, so that the texts of all models line up."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from tinymem.pages.side_by_side import Page, Written

FONT, POINTS, ASPECT = "DejaVu Sans Mono", 8, 0.602  # a letter's width is ASPECT of its size
INDENT, WIDTH = 11, 92  # in letters: the column of names ("prompt 12" and a gap), and the texts
LEADING = 1.45  # height of a line, times the letter size
PROMPT = 2 * WIDTH  # letters shown of a prompt: its end
MARKS = {"differs": "#ffdca8", "first": "#ffb347"}  # the HTML's colours; they also differ in grey and in weight


class Piece(NamedTuple):
    """A text in a line, starting at this letter. style: "", "bold", "soft", "differs" or "first"."""

    column: int
    text: str
    style: str = ""


Line = Sequence[Piece]


def draw_page(page: Page):
    """Draw a page's title, numbers and texts. Return the figure."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    lines, letters = list(_lines(page)), INDENT + WIDTH + 2
    inches = letters * ASPECT * POINTS / 72, (len(lines) + 1) * LEADING * POINTS / 72
    figure = Figure(figsize=inches)
    axis = figure.add_axes((0, 0, 1, 1), xlim=(-1, letters - 1), ylim=(len(lines) + 0.5, -0.5))
    axis.set_axis_off()
    shown = _drawable()
    for number, line in enumerate(lines):
        for column, text, style in line:
            if style in MARKS:
                axis.add_patch(Rectangle((column, number), len(text), 1, facecolor=MARKS[style], linewidth=0))
            weight = "bold" if style in ("bold", "first") else "normal"
            colour = "0.4" if style == "soft" else "black"
            own: dict[str, Any] = dict(family=FONT, fontsize=POINTS, weight=weight, color=colour, va="center")
            axis.text(column, number + 0.5, shown(text), **own)
    return figure


def _drawable():
    """Return a function that replaces every letter that the font lacks with one that it has."""
    from matplotlib.font_manager import findfont, get_font

    font = get_font(findfont(FONT))
    return lambda text: "".join(letter if font.get_char_index(ord(letter)) else "\N{WHITE SQUARE}" for letter in text)


def _lines(page: Page) -> Iterator[Line]:
    yield [Piece(0, page.title, "bold")]
    for about in (page.note, *(f"{name}: {settings}" for name, settings in page.settings.items())):
        yield from ([Piece(0, line, "soft")] for line in textwrap.wrap(about, INDENT + WIDTH))
    yield []
    yield from _table(page)
    yield []
    yield from ([Piece(0, line, "soft")] for line in textwrap.wrap(page.legend, INDENT + WIDTH))
    for number, text in enumerate(page.texts, 1):
        yield []
        prompt = text.prompt if len(text.prompt) <= PROMPT else f"…{text.prompt[1 - PROMPT :]}"
        yield from _named(f"prompt {number}"[:INDENT], [(prompt, "soft")])
        yield from _named("planted", [(text.planted, "")])
        for name, written in text.written.items():
            yield from _named(name, _styled(written))
            yield [Piece(INDENT, written.verdict, "soft")]


def _table(page: Page) -> Iterator[Line]:
    first = max(len(line.name) for line in page.table) + 2 if page.table else 0
    places = [first + 10 * number for number in range(len(page.columns))]
    yield [Piece(place, f"{name:>9}", "bold") for place, name in zip(places, page.columns)]
    for line in page.table:
        cells = (Piece(place, f"{cell:>9}") for place, cell in zip(places, line.cells))
        yield [Piece(0, line.name), *cells]


def _styled(written: Written) -> list[tuple[str, str]]:
    """Return (text, style) of each span. The first span that differs is marked more strongly."""
    first = written.first_span
    return [
        (span.text, "" if not span.differs else "first" if number == first else "differs")
        for number, span in enumerate(written.spans)
    ]


def _named(name: str, spans: Sequence[tuple[str, str]]) -> Iterator[Line]:
    """Yield the lines of a text after its name, broken at exactly WIDTH letters, so that equal tokens line up."""
    line, used = [Piece(0, name, "soft")], 0
    for text, style in spans:
        while text:
            if used == WIDTH:
                yield line
                line, used = [], 0
            part, text = text[: WIDTH - used], text[WIDTH - used :]
            line.append(Piece(INDENT + used, part, style))
            used += len(part)
    yield line
