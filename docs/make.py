"""Write the generated parts of the documentation: tables of settings and measurements, and the API reference.

    python docs/make.py            rewrite the tables in docs/*.md and results/README.md, and docs/api/ (see api.py)
    python docs/make.py --check    change nothing; exit with 1 when something is out of date

A table stands between two comments. NAME is that of a mitigation or an attack:

    <!-- settings: NAME -->     every setting of it: default, allowed values, meaning
    <!-- measured: NAME -->     what it does to the models whose results are committed
    <!-- columns: metrics -->   the columns of every metric
    <!-- columns: splits -->    what SPLIT and TEXT in their names stand for
    <!-- end -->
"""

import argparse
import csv
import io
import json
import re
import runpy
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from tinymem.attacks.registry import ATTACKS
from tinymem.errors import UserError
from tinymem.leaderboard.board import ABSENT, UNEDITED
from tinymem.leaderboard.entrants import FINETUNING as TUNED
from tinymem.leaderboard.entrants import VARIANTS
from tinymem.leaderboard.score import figure_in
from tinymem.localize.registry import METHODS
from tinymem.localize.task import TaskSettings
from tinymem.metrics.metric import COMPARED, MEMBERS, SPLITS, TEXTS
from tinymem.metrics.registry import Line, summarized
from tinymem.options import allowed_text, field_types
from tinymem.plots import two_digits
from tinymem.regularizers.registry import REGULARIZERS
from tinymem.training.finetune import FinetuneSettings

ROOT = Path(__file__).resolve().parent.parent
GENERATED = re.compile(r"(<!-- (\w+): (\w+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)
FINETUNING = "fine_tuning"
Read = Callable[[str], str]  # path below the root -> the file's text


def settings_of(name: str) -> type:
    """Return the settings dataclass of a mitigation, or of the `forget_set` that all unlearning methods share."""
    known = {entry.name: entry.settings for entry in REGULARIZERS}
    known |= {FINETUNING: FinetuneSettings, "forget_set": TaskSettings}
    known |= {method.name: method.hyper_parameters for method in (*METHODS.values(), *ATTACKS.values())}
    if name not in known:
        raise UserError(f"docs: there is no mitigation {name}; known are {', '.join(known)}")
    return known[name]


def mitigations() -> list[str]:
    """Return the names of everything that must have a card in docs/methods.md."""
    return [*(entry.name for entry in REGULARIZERS), FINETUNING, *METHODS]


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table with a blank line around it; nothing where there are no rows."""
    lines = [head, ["---"] * len(head), *rows]
    escaped = ("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
    return "\n" + "\n".join(escaped) + "\n\n" if rows else "\n"


def settings(name: str, read: Read) -> str:
    """Return the table of a mitigation's settings."""
    rows = []
    for field in fields(settings_of(name)):
        numbers = field_types(settings_of(name))[field.name] not in (bool, str, tuple[str, ...])
        allowed = allowed_text(field.metadata) if numbers else ""
        if field.metadata.get("choices"):
            allowed = ", ".join(f"`{choice}`" for choice in field.metadata["choices"])
        flag = f"{name}.{field.name}" if name in ATTACKS else field.name
        small = field.metadata["small"] if name in ATTACKS else None
        default = _default(field.default) + (f"; small: {_default(small)}" if small else "")
        rows.append([f"`--{flag}`", default, allowed, field.metadata["help"]])
    return table(["setting", "default", "allowed", "meaning"], rows)


def _default(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return "on" if value else "off" if value is False else "not given"
    return " ".join(f"{part:g}" if isinstance(part, float) else str(part) for part in _several(value))


def _several(value: Any) -> Sequence[Any]:
    return value if isinstance(value, tuple) else (value,)


def measured(name: str, read: Read) -> str:
    """Return the table of what a mitigation does, from the results that are committed."""
    rows = [*_compared(name, read), *_reproduced(name, read), *_language_model(name, read)]
    return table(["model", "setting", "memorized", "never shown", "quality", "seconds"], rows)


def _compared(name: str, read: Read) -> Iterator[list[str]]:
    """Yield the rows of the leaderboard's models, a line for every choice of settings within its limits."""
    rows = list(csv.DictReader(io.StringIO(read("results/leaderboard/leaderboard.csv"))))
    unedited = {row["case"]: row for row in rows if row["method"] == UNEDITED}
    chosen: dict[tuple[str, ...], list[str]] = {}
    for row in rows:
        method = FINETUNING if row["group"] == TUNED else VARIANTS.get(row["method"], (row["method"],))[0]
        if method == name and row["note"] not in ABSENT:
            line = (row["case"], *_chosen(row, unedited[row["case"]], named=row["method"] != name))
            chosen.setdefault(line, []).append(f"{float(row['limit']):g}")
    for (case, *cells), limits in chosen.items():
        yield [f"{case}, limit {' and '.join(limits)}", *cells]


def _chosen(row: dict[str, str], unedited: dict[str, str], named: bool) -> list[str]:
    """Return the cells of a row of the leaderboard. named: also which variant it is."""
    setting = ": ".join(filter(None, [f"`{row['method']}`" if named else "", row["note"] or row["setting"]]))
    if row["note"]:
        return [setting, "", "", "", ""]
    shown = f"{float(row['percent_memorized_shown']):.1f} %"
    held_out = f"{figure_in(row, 'percent_memorized_held_out').words(1)} %"
    if row.get("mean_test_accuracy"):
        before, after = (figure_in(one, "mean_test_accuracy", 100) for one in (unedited, row))
        quality = f"accuracy {before.value:.1f} → {after.words(1)} %"
    else:
        quality = f"perplexity {float(unedited['perplexity']):.1f} → {figure_in(row, 'perplexity').words(1)}"
    return [setting, shown, held_out, quality, two_digits(float(row["seconds"])) if row["seconds"] else ""]


def _reproduced(name: str, read: Read) -> Iterator[list[str]]:
    """Yield the row of the reproduction report: the study's model at the study's settings, means over seeds."""
    report = read("results/REPRODUCTION.md").partition("### At the published settings")[2].partition("###")[0]
    for line in report.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if cells[0] == name:
            _, setting, published, published_lost, memorized, lost, *_, seconds = [_mean(cell) for cell in cells]
            cost = f"{lost} points of accuracy lost (published: {published_lost})"
            yield ["numbers, full size", setting, "", f"{memorized} % (published: {published} %)", cost, seconds]


def _mean(cell: str) -> str:
    return cell.partition(" (")[0]


def _language_model(name: str, read: Read) -> Iterator[list[str]]:
    """Yield the rows of `make demo-lm`: SmolLM2-135M with planted passages."""
    rows = json.loads(read("results/demo_lm/summary.json"))["rows"]
    (before,) = (row["perplexity"] for row in rows if row["method"] == "unedited")
    for row in rows:
        if row["method"] == name:
            shown, held_out = (f"{row[f'percent_memorized_{where}']:.1f} %" for where in ("shown", "held_out"))
            perplexity = f"perplexity {before:.1f} → {row['perplexity']:,.1f}"
            yield ["SmolLM2-135M", row["setting"], shown, held_out, perplexity, f"{row['seconds']:.0f}"]


def columns(name: str, read: Read) -> str:
    """Return the table of the metrics' columns, or of the splits and texts in their names."""
    if name == "splits":
        return table(["SPLIT or TEXT", "what it is"], [[name, meaning] for name, meaning in (SPLITS | TEXTS).items()])
    rows = [[f"`{line.name}`", line.meaning, _measured_on(line), line.unit, line.better] for line in summarized()]
    return table(["column", "meaning", "splits", "unit", "better"], rows)


def _measured_on(line: Line) -> str:
    """Return the splits of a metric in few words."""
    known = {tuple(SPLITS): "all", COMPARED: "all but `dup_R`, `test`", MEMBERS: "those of planted rows"}
    return known.get(line.splits, ", ".join(f"`{split}`" for split in line.splits))


TABLES = {"settings": settings, "measured": measured, "columns": columns}
PAGES = [*sorted((ROOT / "docs").glob("*.md")), ROOT / "results" / "README.md"]


def working_tree(path: str | Path) -> str:
    """Return the text of a file below the root."""
    return (ROOT / path).read_text(encoding="utf-8")


def render(text: str, read: Read = working_tree) -> str:
    """Return a document with its generated tables made again."""

    def made(match: re.Match) -> str:
        start, kind, name, _, end = match.groups()
        return start + TABLES[kind](name, read) + end if kind in TABLES else match.group()

    return GENERATED.sub(made, text)


def api_pages() -> dict[Path, str | None]:
    """Return the text of every page of the API reference by its path; None for a page that is no longer made."""
    api = runpy.run_path(str(ROOT / "docs" / "api.py"))
    return {path: None for path in api["FOLDER"].glob("*.md")} | api["pages"]()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--check", action="store_true", help="change nothing; exit with 1 when something is out of date"
    )
    check = parser.parse_args().check
    pages = {path: render(working_tree(path)) for path in PAGES} | api_pages()
    old = [path for path, text in pages.items() if text != (working_tree(path) if path.exists() else None)]
    for path in old:
        print(f"{path.relative_to(ROOT)}: " + ("out of date: run python docs/make.py" if check else "written"))
        if check:
            continue
        if (text := pages[path]) is None:
            path.unlink()
        else:
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8")
    return int(check and bool(old))


if __name__ == "__main__":
    sys.exit(main())
