"""Tables from the records under a folder: everything, the best run of each method, the Pareto front.

    python -m tinymem.records gather runs --output runs.csv       every setting and metric of every record
    python -m tinymem.records best runs                           best run of each unlearning method, over seeds
    python -m tinymem.records pareto runs --output front.parquet  runs that no other run beats

results/README.md says what every column means. Records of different versions of tinymem, torch or transformers are
never averaged or compared with each other.
"""

from tinymem import cli

# isort: split
import argparse
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tinymem.errors import UserError
from tinymem.localize.registry import METHODS
from tinymem.records.choose import (
    Configuration,
    Run,
    best,
    configurations,
    experiments,
    pareto,
    titles,
    unlearning_runs,
)
from tinymem.records.gather import gather
from tinymem.records.table import check_table_path, mixed_versions, named_records, versions, write_table

PROGRAM = "python -m tinymem.records"
COMMANDS = {
    "gather": "every setting and metric of every record: one tidy table, one row a record",
    "best": "the best run of each unlearning method on each experiment, with mean and 95 %% interval over seeds",
    "pareto": "the runs of each checkpoint that no other beats in memorization and quality at once",
}
SHOWN = 40  # rows that `gather` prints
KEYS = ("run", "model_name", "step", "data_name", "artifact", "n_layers", "seed", "epoch", "method", "ft_data", "ratio")
KEYS += ("percent_memorized_train", "percent_memorized_held_out", "mean_test_accuracy", "perplexity", "seconds")
OUTCOMES = ("percent_memorized_train", "percent_memorized_held_out", "percent_memorized_test", "mean_test_accuracy")
OUTCOMES += ("perplexity", "perplexity_rise_percent", "trade_off", "percent_zeroed", "seconds")
Table = tuple[list[str] | None, list[dict[str, Any]]]  # columns in their order (None: as they come), rows


def parse() -> argparse.Namespace:
    parser = cli.Parser(__doc__, prog=PROGRAM, usage="%(prog)s gather|best|pareto DIR [options]")
    commands = parser.add_subparsers(dest="command", required=True, metavar="gather|best|pareto")
    for name, text in COMMANDS.items():
        usage = f"{PROGRAM} {name} DIR [options]"
        command = commands.add_parser(name, help=text, description=text.replace("%%", "%"), usage=usage)
        command.add_argument("folder", metavar="DIR", help="a folder with records in it, at any depth")
        command.add_argument("--output", metavar="FILE", help="also write the table, as .csv or .parquet")
    commands.choices["best"].add_argument(
        "--max_perplexity_rise", type=float, default=10.0, metavar="PERCENT",
        help="text and production models: a run whose perplexity rose more is no candidate (default: 10)",
    )  # fmt: skip
    return parser.parse_args()


def main() -> None:
    arguments = parse()
    if arguments.output:
        check_table_path(arguments.output)
    show = {"gather": show_all, "best": show_best, "pareto": show_pareto}[arguments.command]
    columns, rows = show(arguments)
    if arguments.output:
        print(f"{len(rows)} rows: {write_table(arguments.output, rows, columns)}")


def show_all(arguments: argparse.Namespace) -> Table:
    columns, rows = gather(arguments.folder)
    say_versions(row["versions"] for row in rows)
    keys = [name for name in KEYS if name in columns]
    print(cli.table(map(cli.brief, rows[:SHOWN]), cli.brief(dict.fromkeys(keys))))
    hidden = f"; {len(rows) - SHOWN} are not shown" if len(rows) > SHOWN else ""
    print(f"\n{len(rows)} records, {len(columns)} columns{hidden}; --output FILE.csv or FILE.parquet writes all of it")
    return columns, rows


def show_best(arguments: argparse.Namespace) -> Table:
    limit = arguments.max_perplexity_rise
    if math.isnan(limit):
        raise UserError("--max_perplexity_rise nan: must be a number of percent, such as 10")
    groups = experiments(configurations(load_runs(arguments.folder)))
    summaries = []
    for title, group in zip(titles([group[0].experiment for group in groups]), groups):
        chosen = best(group, limit)
        rows = [configuration.summary() for configuration in chosen]
        columns = [name for name in OUTCOMES if any(row[name] is not None for row in rows)]
        varied = _varied(group)
        shown = [
            {"method": c.method, "ratio": row.get("ratio")}
            | {"also": ", ".join(f"{name} {row[name]}" for name in sorted(varied[c.method] - {"ratio"})) or None}
            | cli.brief(_with_intervals(row, columns))
            for c, row in zip(chosen, rows)
        ]
        print(f"{title}\n{cli.table(shown)}")
        missing = {configuration.method for configuration in group} - {row["method"] for row in rows}
        if missing:
            print(
                f"perplexity rose by more than {limit:g} % on average in every setting of {', '.join(sorted(missing))}"
            )
        print()
        summaries += rows
    print("mean ± 95 % interval over n seeds (Student's t; none for a single seed)")
    return None, summaries


def _with_intervals(row: Mapping[str, Any], columns: Iterable[str]) -> dict[str, Any]:
    """A summary as it is printed."""

    def cell(mean: float | None, half: float | None) -> Any:
        return mean if half is None else f"{mean:.4g} ± " + (f"{half:.0f}" if half >= 10 else f"{half:.2g}")

    return {"n": row["n"]} | {name: cell(row[name], row[f"{name}_ci95"]) for name in columns}


def _varied(group: Sequence[Configuration]) -> dict[str, set[str]]:
    """Of each method the hyper-parameters that its configurations differ in."""
    values: dict[str, dict[str, set]] = {}
    for configuration in group:
        of_method = values.setdefault(configuration.method, {})
        for name, value in configuration.hyper_parameters.items():
            of_method.setdefault(name, set()).add(str(value))
    return {method: {name for name, some in found.items() if len(some) > 1} for method, found in values.items()}


def show_pareto(arguments: argparse.Namespace) -> Table:
    fronts = pareto(load_runs(arguments.folder))
    columns = [
        name
        for name in ("method", "ratio", *OUTCOMES)
        if any(run.row.get(name) is not None for f in fronts for run in f)
    ]
    for title, front in zip(titles([front[0].checkpoint for front in fronts], seeds=True), fronts):
        print(f"{title}\n{cli.table((cli.brief(run.row) for run in front), cli.brief(dict.fromkeys(columns)))}\n")
    return None, [dict(run.row) for front in fronts for run in front]


def load_runs(folder: str) -> list[Run]:
    records = list(named_records(folder))
    say_versions(versions(record) for _, record in records)
    runs = unlearning_runs(records, tuple(METHODS), warn=lambda message: print(message, file=sys.stderr))
    if not runs:
        raise UserError(f"{folder}: none of its {len(records)} records is an unlearning run that can be compared")
    return runs


def say_versions(found: Iterable[str]) -> None:
    message = mixed_versions(found)
    if message:
        print(message, file=sys.stderr)


if __name__ == "__main__":
    cli.run(main, PROGRAM)
