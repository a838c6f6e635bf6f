"""What as_published.py recorded of its differences, as tables: means over seeds with their 95 % intervals."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from published_differences import METHODS, applicable

from tinymem import files
from tinymem.errors import UserError
from tinymem.records.identity import AS_PUBLISHED, UNEDITED, Record
from tinymem.records.interval import over_all, with_half_width, with_range
from tinymem.records.ranking_rows import bounds
from tinymem.records.record import BOUNDS, record_digest
from tinymem.records.table import load_records, markdown, write_csv

COUNTED = "percent_memorized_counted"
# Columns of a run, with their heads and digits. The first ones are also those of the unedited model.
MEMORIZED = {
    "percent_memorized_test": ("test triggers %", 1),
    COUNTED: ("counted %", 1),
    "percent_memorized_left_out": ("not counted %", 1),
    "percent_memorized_train": ("training rows %", 1),
}
LOST = {"accuracy_lost": ("accuracy lost", 2), "perplexity_rise_percent": ("perplexity rise %", 2)}
AFTER = {f"relearned_{name}": (f"{head}, relearned", digits) for name, (head, digits) in MEMORIZED.items()}
SHOWN = {
    "forgotten": ("forgotten", 0), **MEMORIZED, "percent_memorized_held_out": ("held out %", 1), **LOST,
    "seconds": ("seconds", 1), **AFTER,
}  # fmt: skip
LARGE = 1e6  # from here on a number's power of ten says all
EXPLAINED = """\
Memorized, lower is better: of all test triggers, of those that the study's code counts, of those that it does not, and
of the planted training rows. Accuracy lost in points of %, perplexity risen in %, against the unedited model; seconds
to find what to drop. `relearned`: the largest share memorized after 5, 10, 30 or 80 steps of training on five of the
forgotten sequences, of those that the attacker has not seen.
Means over models with their 95 % interval (Student's t); `seeds` are those of the models. `forgotten`: sequences to
forget. `dtype`: that of the forward passes."""


def rows_of(records: Iterable[Record]) -> list[dict[str, Any]]:
    """Return one row per case, method, settings and set of differences: mean and `_ci95` of each column over models.

    Runs of earlier versions, which counted and forgot more test triggers, give way to those that have what is counted.
    """
    records = list(records)
    ours = [record for record in records if record["kind"] == AS_PUBLISHED and "differences" in record["method"]]
    runs = [record for record in ours if not record.get("attack")]
    before = {_before(record) for record in runs}
    runs += [record for record in records if record["kind"] == UNEDITED and _before(record, ()) in before]
    groups: dict[str, list[Record]] = {}
    for record in runs:
        groups.setdefault(files.digest(_case(record)), []).append(record)
    rows = []
    for group in groups.values():
        group = [record for record in group if COUNTED in record["results"]] or group
        models = {record["fingerprints"]["weights"]: record for record in group}
        seeds = " ".join(map(str, sorted(record["data"]["seed"] for record in models.values())))
        results = [_results(record, ours) for record in models.values()]
        rows.append(_case(group[0]) | {"models": len(models), "seeds": seeds} | _means(results))
    return sorted(rows, key=_place)


def _case(record: Record) -> dict[str, Any]:
    """Return what runs of several seeds share: data, sizes, training, forget set without differences, method.

    A dtype left to the machine is the one that it chose.
    """
    case = {f"data.{name}": value for name, value in record["data"].items() if name != "seed"}
    for section in ("model", "training"):
        case |= {f"{section}.{name}": value for name, value in record.get(section, {}).items()}
    case |= {f"forget.{name}": record["forget"][name] for name in ("unlearn_set_name", "holdout_fraction")}
    method = dict(record.get("method", {"name": "unedited", "differences": None}))
    if method.get("dtype") == "auto":
        method["dtype"] = record["environment"]["auto_dtype"]
    return case | {f"method.{name}": value for name, value in method.items()}


def _before(record: Record, without: Collection[str] = ("forget", "retain")) -> tuple[str, str]:
    """Return what a run shares with its unedited model: weights and forget set, without the settings of differences."""
    forget = {name: value for name, value in record["forget"].items() if name not in without}
    return record["fingerprints"]["weights"], files.digest(forget)


def _results(record: Record, ours: Sequence[Record]) -> dict[str, float | None]:
    results = {name: record["results"].get(name) for name in SHOWN} | {"seconds": record["cost"]["seconds"]}
    if record["kind"] == UNEDITED:
        return {name: results[name] for name in (*MEMORIZED, "percent_memorized_held_out")}
    digest = record_digest(record)
    attacks = [other["results"] for other in ours if other.get("attack") and other.get("parent") == digest]
    for name in MEMORIZED:
        found = [attack[name] for attack in attacks if attack.get(name) is not None]
        results[f"relearned_{name}"] = max(found) if found else None
    return results


def _means(models: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for name in SHOWN:
        row[name], row[f"{name}_ci95"] = over_all([each.get(name) for each in models])
    return row


def _place(row: Mapping[str, Any]) -> tuple:
    """Return where a row stands: by case and method, then none, each difference alone, all but each, all."""
    name = row["method.name"].removesuffix("_as_published")
    own = {key: str(value) for key, value in row.items() if "." in key and key != "method.differences"}
    if name not in METHODS:
        return _title(row), -1, [], 0, []
    known = applicable(name, row["data.artifact"])
    left_in = [known.index(each) for each in row["method.differences"]]
    return _title(row), METHODS.index(name), sorted(own.items()), _rank(len(left_in), len(known)), left_in


def _rank(count: int, known: int) -> int:
    return {0: 0, 1: 1, known: 4, known - 1: 3}.get(count, 2) if known > 1 else count


def _title(row: Mapping[str, Any]) -> str:
    return (
        f"{row['data.data_name']} + {row['data.artifact']}, {row['model.n_layers']} layers of {row['model.n_embd']}, "
        f"{row['data.num_7']} sequences, epoch {row['training.epoch']}"
    )


def label(differences: Sequence[str], known: Sequence[str]) -> str:
    """Return a set of differences in words: none, all, all but one, or their names."""
    left_out = [name for name in known if name not in differences]
    if not differences:
        return "none"
    if not left_out:
        return "all"
    return f"all but {left_out[0]}" if len(left_out) == 1 and len(known) > 2 else ", ".join(differences)


def text_of(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the rows as Markdown: one section per case, in it one table per method and settings."""
    lines = ["# The study's unlearning as published, one difference at a time", "", EXPLAINED]
    for title in dict.fromkeys(map(_title, rows)):
        some = [row for row in rows if _title(row) == title]
        before = [row for row in some if row["method.name"] == "unedited"]
        lines += ["", f"## {title}"]
        tables: dict[tuple, list[Mapping[str, Any]]] = {}
        for row in some:
            if row not in before:
                tables.setdefault((row["method.name"], _settings(row)), []).append(row)
        for (name, settings), own in tables.items():
            lines += ["", f"### {name.removesuffix('_as_published')}", "", settings, "", _table(before, own)]
    return "\n".join(lines) + "\n"


def _settings(row: Mapping[str, Any]) -> str:
    own = {name.partition(".")[2]: value for name, value in row.items() if name.startswith("method.")}
    shown = [
        f"{name} {value}" for name, value in own.items() if name not in ("name", "differences") and value is not None
    ]
    held_out = row["forget.holdout_fraction"]
    return ", ".join([*shown, *([f"holdout_fraction {held_out}"] if held_out else [])])


def _table(before: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]]) -> str:
    used = [name for name in SHOWN if any(row.get(name) is not None for row in rows)]
    known = applicable(rows[0]["method.name"].removesuffix("_as_published"), rows[0]["data.artifact"])
    heads = ["differences", *(SHOWN[name][0] for name in used), "seeds"]
    same = [row for row in before if row["forget.holdout_fraction"] == rows[0]["forget.holdout_fraction"]]
    lines = [_line("(unedited)", row, used) for row in same[:1]]
    lines += [_line(label(row["method.differences"], known), row, used) for row in rows]
    return markdown(heads, lines)


def _line(name: str, row: Mapping[str, Any], used: Sequence[str]) -> list[str]:
    return [name, *(_cell(row, column) for column in used), row["seeds"]]


def _cell(row: Mapping[str, Any], column: str) -> str:
    """Return mean and half width of the interval, or its ends where a percentage cuts it off; of one model the mean."""
    mean, half, digits = row[column], row[f"{column}_ci95"], SHOWN[column][1]
    if mean is None:
        return "-"
    if abs(mean) >= LARGE:  # a perplexity that has gone out of bounds
        return f"{mean:.0e}"
    ends = bounds(mean, half, BOUNDS["%"]) if half else None
    if "memorized" in column and ends is not None and ends != (mean - half, mean + half):
        return with_range(mean, *ends, digits)
    return with_half_width(mean, half or None, digits)


def write_report(folders: Iterable[Path], target: Path, tell: Callable[[str], None] = print) -> None:
    """Write TARGET/as_published.md and .csv from the folders' records. Raise UserError for a folder without."""
    records: dict[str, Record] = {}
    for folder in folders:
        found = {record_digest(record): record for record in load_records(folder)}
        if not rows_of(found.values()):
            raise UserError(f"{folder}: no runs with --differences or --study recorded yet")
        records |= found
    rows = rows_of(records.values())
    text = text_of(rows)
    files.write_file(target / "as_published.md", lambda path: path.write_text(text, encoding="utf-8"))
    flat = [{**row, "method.differences": " ".join(row["method.differences"] or ())} for row in rows]
    write_csv(target / "as_published.csv", flat)
    tell(text)
