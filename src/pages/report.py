"""The report of a folder of records: what forgot best, at what cost, what attacks recover, what models write."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinymem.data import numbers
from tinymem.data.decode import text_decoder
from tinymem.data.tokenizer import has_tokenizer, open_tokenizer
from tinymem.errors import UserError
from tinymem.metrics.examples import Decode
from tinymem.pages import render, report_charts, report_tables
from tinymem.pages.charts import Chart
from tinymem.pages.names import display_name
from tinymem.pages.side_by_side import LEGEND, Text, texts_of
from tinymem.pages.study import Experiment, Named, Study, read_study
from tinymem.pages.tables import Table
from tinymem.records.choose import ComparedRun, on_numbers
from tinymem.records.identity import NEVER_PLANTED, UNEDITED, record_digest
from tinymem.records.ranking import answer, called
from tinymem.records.ranking_rows import PERPLEXITY_RISE
from tinymem.records.record import read_values
from tinymem.records.table import flat_row

FILE, TITLE_END = "report.html", ": report"  # title: as in the template
Warn = Callable[[str], None]


@dataclass(frozen=True)
class Recovery:
    """What attacks recover: a table, and charts of each method's best run."""

    split: str
    table: Table
    models: Mapping[str, Sequence[Chart]]


@dataclass(frozen=True)
class Section:
    """An experiment as shown on the page. texts: what models write, by the run's name."""

    place: str
    title: str
    answer: Sequence[str]
    over: Sequence[str]
    limit: float
    ranking: Table
    trade_off: Chart
    repeats: tuple[Table, Chart] | None
    texts: Mapping[str, Sequence[Text]]
    recovery: Recovery | None
    runs: Table
    settings: Mapping[str, str]
    environment: Mapping[str, str]

    @property
    def charts(self) -> Iterator[Chart]:
        yield self.trade_off
        if self.repeats:
            yield self.repeats[1]
        for some in self.recovery.models.values() if self.recovery else ():
            yield from some


def check_output(path: str | Path) -> Path:
    """Raise UserError unless a page can be written under this name. Call this before the work starts."""
    path = Path(path)
    if path.is_dir():
        raise UserError(f"--output {path}: is a folder; give a file, such as {path / FILE}")
    if path.suffix != ".html":
        raise UserError(f"--output {path}: the name must end in .html")
    if path.is_file() and path.stat().st_size and not _is_report(path):
        raise UserError(f"--output {path}: exists, and is no report of records; choose another name")
    return path


def _is_report(path: Path) -> bool:
    """Return whether a file begins as every report does."""
    with open(path, encoding="utf-8", errors="replace") as file:
        beginning = file.read(2000)  # characters: up to the end of the title, which names a folder
    return 'name="color-scheme"' in beginning and f"{TITLE_END}</title>" in beginning


def write_report(
    folder: str | Path, output: str | Path, limit: float = PERPLEXITY_RISE, warn: Warn = lambda line: None
) -> Path:
    """Write the report of all records under a folder. The same records give the same bytes.

    limit: the largest rise of perplexity in percent, as in `ranked`. warn: receives one line about what is left out.
    Raise UserError if there is no record, for a damaged one, or if the file cannot be written.
    """
    study = read_study(folder, limit, warn)
    sections = [_section(f"experiment-{place}", study, one, warn) for place, one in enumerate(study.experiments, 1)]
    return render.write_page(
        check_output(output),
        "report.html",
        charts=[chart for section in sections for chart in section.charts],
        name=study.folder.resolve().name,
        kinds=Counter(record["kind"] for _, record in study.records),
        notes=study.notes,
        sections=sections,
        legend=LEGEND,
        others=report_tables.others_table(study.others) if study.others else None,
        environment=report_tables.environment(study.others) if study.others else {},
    )


def _section(place: str, study: Study, experiment: Experiment, warn: Warn) -> Section:
    ranking = experiment.ranking
    repeats = None
    if report_tables.repeats_of(experiment):
        chart = report_charts.repeats_chart(f"{place}-repeats", experiment)
        repeats = report_tables.repeats_table(experiment), chart
    return Section(
        place,
        experiment.title,
        answer(ranking),
        sorted({display_name(one.method) for one in ranking.places if ranking.over(one)}),
        ranking.limit,
        report_tables.ranking_table(experiment),
        report_charts.trade_off_chart(f"{place}-trade-off", experiment),
        repeats,
        _texts(study.folder, experiment, warn),
        _recovery(place, experiment),
        report_tables.runs_table(experiment),
        report_tables.common_settings(experiment),
        report_tables.environment(experiment.records),
    )


def _recovery(place: str, experiment: Experiment) -> Recovery | None:
    split, models = experiment.attacked
    if not models:
        return None
    bounds = report_charts.references(models)
    edited = {record_digest(model.record): model for model in models if model not in bounds}
    best = (digest for one in experiment.ranking.places for digest in experiment.digests(one))
    drawn = [edited[digest] for digest in best if digest in edited]
    names = report_tables.labels(models)
    drawn = drawn or [model for model in bounds if model.record["kind"] == UNEDITED]
    shown = {
        names[record_digest(model.record)]: report_charts.recovery_charts(f"{place}-recovery-{number}", model, bounds)
        for number, model in enumerate(drawn)
    }
    return Recovery(split.replace("_", "-"), report_tables.recovery_table(models), shown)


def _texts(folder: Path, experiment: Experiment, warn: Warn) -> dict[str, tuple[Text, ...]]:
    """Return what the unedited model, the best run of each method, and the twin write, if records have examples."""
    known = {name: some for some in experiment.subjects for name, _ in some}
    found = {}
    for one in experiment.ranking.places:
        for run in one.runs[:1]:
            values = _values(folder, run, known[run.row["record"]], warn)
            decode = _decoder(folder, known[run.row["record"]], warn) if "after" in values else None
            if decode is not None and (texts := texts_of(values, decode)):
                found[display_name(called(experiment.ranking, one))] = texts
    return found


def _values(folder: Path, run: ComparedRun, subject: Sequence[Named], warn: Warn) -> dict[str, Mapping[str, Any]]:
    """Return the stored values with examples of a run, its original and its twin, by column. Skip damaged files."""
    names = {"before": UNEDITED, "after": run.row["record"], "twin": NEVER_PLANTED}
    found: dict[str, Mapping[str, Any]] = {}
    for column, wanted in names.items():
        for name, record in subject:
            if wanted in (name, record["kind"]) and (folder / name).with_suffix(".safetensors").exists():
                try:
                    values = read_values(folder / name)
                except UserError as error:
                    warn(f"left out, what a model writes: {error}")
                    continue
                if any(part.startswith("examples.") for part in values):
                    found[column] = values
    return found


def _decoder(folder: Path, subject: Sequence[Named], warn: Warn) -> Decode | None:
    """Return a decoder of token ids. For text models, it uses the tokenizer saved with an edited model."""
    if on_numbers(flat_row(subject[0][1])):
        return numbers.decode
    for name, record in subject:
        saved = record["results"].get("model_folder")
        place = (folder / name).parent.parent / saved if saved else None
        if place is not None and has_tokenizer(place):
            return text_decoder(open_tokenizer(place))
    warn("left out, what models write: no edited model with its tokenizer is beside the records")
    return None
