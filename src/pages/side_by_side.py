"""One page per run: what the model wrote before and after, and what its never-planted twin writes, side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinymem.metrics.examples import Continuation, Decode, kept_examples, kept_split
from tinymem.metrics.metric import SPLITS
from tinymem.metrics.registry import describe
from tinymem.pages import render
from tinymem.pages.side_by_side_image import draw_page
from tinymem.pages.tables import Cell, Column, Row, Table, words
from tinymem.plots.base import save_figure
from tinymem.plots.labels import file_name, label_of, settings_of
from tinymem.records.identity import NEVER_PLANTED, UNEDITED
from tinymem.records.record import read_values, record_path

MEMORY = ("percent_memorized", "percent_near_verbatim", "percent_extractable", "auc_loss", "auc_twin")
QUALITY = ("mean_test_accuracy", "perplexity")
LEGEND = "Marked: tokens that differ from the planted token at the same position, the first run of them in bold."


@dataclass(frozen=True)
class Line:
    """One metric: its name, its meaning, and a cell per model."""

    name: str
    meaning: str
    cells: tuple[str, ...]


@dataclass(frozen=True)
class Written(Continuation):
    """A continuation as shown. verdict: how much of it is as planted, as text."""

    @property
    def verdict(self) -> str:
        if not self.length:
            return "nothing was planted here"
        if self.first is None:
            return f"all {self.length} tokens as planted"
        return f"differs first at token {self.first} of {self.length}; {self.agreeing} as planted"

    @property
    def first_span(self) -> int | None:
        """The number, from 0, of the first span that differs."""
        return next((number for number, span in enumerate(self.spans) if span.differs), None)


@dataclass(frozen=True)
class Text:
    """A prompt, its planted continuation, and what each model writes, by the model's column."""

    prompt: str
    planted: str
    written: dict[str, Written]


@dataclass(frozen=True)
class Page:
    """The content of a page. columns: before, after and, if there is one, twin."""

    title: str
    note: str
    settings: dict[str, str]
    columns: tuple[str, ...]
    table: tuple[Line, ...]
    texts: tuple[Text, ...]
    legend: str = LEGEND


def write_pages(folder: str | Path, records: Sequence[Mapping[str, Any]], decode: Decode) -> list[Path]:
    """Write FOLDER/pages/METHOD_STRENGTH_DIGEST.html and .png of every run that has examples. Return the files.

    folder: the records' folder. records: the unedited model's, its twin's if there is one, and the runs'.
    """
    known = {record["kind"]: record for record in records if record["kind"] in (UNEDITED, NEVER_PLANTED)}
    if UNEDITED not in known:
        return []
    written = []
    for record in records:
        if record["kind"] not in known:
            models = {"before": known[UNEDITED], "after": record}
            if NEVER_PLANTED in known:
                models["twin"] = known[NEVER_PLANTED]
            if found := make_page(folder, models, decode):
                written += write_page(found, Path(folder) / "pages" / file_name(record))
    return written


def make_page(folder: str | Path, models: Mapping[str, Mapping[str, Any]], decode: Decode) -> Page | None:
    """Return the page of some records, given by column, including "after"; None if no record has examples."""
    values = {name: read_values(record_path(folder, record)) for name, record in models.items()}
    split, texts = kept_split(values["after"]), texts_of(values, decode)
    if split is None or not texts:
        return None
    record = models["after"]
    note = f"{_sequences(len(texts), split, record)}. "
    note += "Twin: a model that was never trained on them." if "twin" in models else "No never-planted twin is known."
    return Page(label_of(record), note, settings_of(record), tuple(models), _table(models), texts)


def _sequences(count: int, split: str, record: Mapping[str, Any]) -> str:
    """Return how many sequences a page shows, and which, as text."""
    memorized = record.get("forget", {}).get("unlearn_set_name", "mem") == "mem"  # other sets may not be memorized
    about = SPLITS[split] if memorized else SPLITS[split].removeprefix("memorized and ")
    return f"{count} sequence{'s' * (count != 1)}, {about}"


def write_page(page: Page, path: Path) -> list[Path]:
    """Write path.html, which needs no network, and path.png. Raise ImportError without jinja2."""
    place = render.write_page(path.with_name(f"{path.name}.html"), "side_by_side.html", page=page, table=_shown(page))
    return [place, *save_figure(draw_page(page), path, (".png",))]


def _shown(page: Page) -> Table:
    """Return a page's numbers as a table, with a row per metric and a column per model."""
    columns = (Column("metric", number=False), *(Column(name) for name in page.columns))
    rows = (
        Row((words(line.name, meaning=line.meaning), *(Cell(cell, cell) for cell in line.cells))) for line in page.table
    )
    return Table("what was measured", columns, tuple(rows))


def _table(models: Mapping[str, Mapping[str, Any]]) -> tuple[Line, ...]:
    results = [record["results"] for record in models.values()]
    lines = []
    shown = [f"{stem}_{split}" for stem in MEMORY for split in ("shown", "held_out")]
    for name in (*shown, *QUALITY):
        column = describe(name)
        if column and any(row.get(name) is not None for row in results):
            unit = f" ({column.unit})" if column.unit else ""
            cells = tuple(_cell(row.get(name)) for row in results)
            lines.append(Line(name.removeprefix("percent_").replace("_", " ") + unit, column.meaning, cells))
    return tuple(lines)


def _cell(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"


def texts_of(values: Mapping[str, Mapping[str, Any]], decode: Decode) -> tuple[Text, ...]:
    """Return one text per sequence from the stored values of some records, given by column, including "after".

    Models whose records have no examples, or different ones, are left out.
    """
    examples = {name: kept_examples(tensors, decode) for name, tensors in values.items()}
    asked = [(each.prompt, each.planted) for each in examples["after"]]
    same = {name: rows for name, rows in examples.items() if [(each.prompt, each.planted) for each in rows] == asked}
    return tuple(
        Text(*pair, {name: Written(**vars(rows[number].written)) for name, rows in same.items()})
        for number, pair in enumerate(asked)
    )
