"""Tables from the records under a folder: all records, the best run of each method, the Pareto front.

    python -m tinymem.records gather runs --output runs.csv       every setting and metric of every record
    python -m tinymem.records best runs                           unlearning methods ranked by their best run
    python -m tinymem.records pareto runs --output front.parquet  runs that no other run beats
    python -m tinymem.records report runs                         all of this as one page, runs/report.html
    python -m tinymem.records upgrade runs                        convert records of format 1 to format 2
    python -m tinymem.records rerun FILE                          run a record again and compare the results

results/README.md explains every column. Records of different versions of tinymem, torch or transformers are
never averaged or compared with each other.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tinymem import cli
from tinymem.cli.rerun import add_rerun_options, rerun
from tinymem.errors import UserError
from tinymem.localize.registry import METHODS
from tinymem.metrics import registry
from tinymem.records.choose import ComparedRun, Configuration, configurations, experiments, pareto, unlearning_runs
from tinymem.records.gather import gather
from tinymem.records.grouping import differing, grouped
from tinymem.records.ranking import Ranking, answer, ranked
from tinymem.records.ranking_rows import PERPLEXITY_RISE, bounds, described, outcomes, scale, setting, summary
from tinymem.records.table import check_replaced, check_table_path, mixed_versions, named_records, versions, write_table
from tinymem.records.titles import titles
from tinymem.records.upgrade import upgrade

PROGRAM = "python -m tinymem.records"
COMMANDS = {
    "gather": "every setting and metric of every record: one tidy table, one row per record",
    "best": "the unlearning methods of each experiment ranked by their best run, with mean and 95 %% interval over "
    "seeds",
    "pareto": "the runs of each checkpoint that no other run beats in both memorization and quality",
    "report": "one HTML page: ranking, trade-offs, attacks, what models write, settings, environment",
    "upgrade": "convert records of an earlier version (format 1) to format 2, in place",
    "rerun": "run a record again, from the record alone, and report whether the results are the same to the digit",
}
NAMES = "|".join(COMMANDS)
WINNER = "<- best"
SHOWN = 40  # rows that `gather` prints
MOST = 6  # settings that `gather` prints before the results
KEYS: tuple[str, ...] = ("kind", "model.name", "model.step", "data.data_name", "data.artifact", "model.n_layers")
KEYS += ("data.seed", "training.epoch", "method.name", "attack.name")
MORE = "--output FILE.csv has them"
FIRST: tuple[str, ...] = ("percent_memorized_train", "percent_memorized_validation", "percent_memorized_held_out")
FIRST += ("trade_off", "perplexity_rise_percent")  # ranked by and reported: kept in a narrow table
Table = tuple[list[str] | None, list[dict[str, Any]]]  # columns in order (None: as in the rows), rows


def parse() -> argparse.Namespace:
    program = cli.program(PROGRAM)
    parser = cli.Parser(__doc__, prog=program, usage=f"%(prog)s {NAMES} DIR [options]")
    commands = parser.add_subparsers(dest="command", required=True, metavar=NAMES)
    for name, text in COMMANDS.items():
        place = "FILE" if name == "rerun" else "DIR"
        usage = f"{program} {name} {place} [options]"
        command = commands.add_parser(
            name, help=text, description=text.replace("%%", "%"), usage=usage, prog=f"{program} {name}"
        )
        what = (
            "a record, such as runs/NAME/records/DIGEST.json"
            if name == "rerun"
            else "a folder with records at any depth"
        )
        command.add_argument("folder", metavar=place, help=what)
        if name == "rerun":
            add_rerun_options(command)
        elif name == "report":
            command.add_argument("--output", metavar="FILE", help="the page, .html (default: DIR/report.html)")
        elif name != "upgrade":
            command.add_argument("--output", metavar="FILE", help="also write the table, as .csv or .parquet")
        if name in ("best", "report"):
            command.add_argument(
                "--max_perplexity_rise", type=float, default=PERPLEXITY_RISE, metavar="PERCENT",
                help="text and production models: runs whose perplexity rose by more percent come last, marked "
                "(default: 10)",
            )  # fmt: skip
    return parser.parse_args()


def main() -> None:
    arguments = parse()
    if arguments.command == "upgrade":
        return upgrade_all(arguments.folder)
    if arguments.command == "rerun":
        return rerun(arguments)
    if arguments.command == "report":
        return write_page(arguments)
    if arguments.output:
        check_replaced(check_table_path(arguments.output))
    show = {"gather": show_all, "best": show_best, "pareto": show_pareto}[arguments.command]
    columns, rows = show(arguments)
    if arguments.output:
        print(f"{len(rows)} rows: {write_table(arguments.output, rows, columns)}")


def upgrade_all(folder: str) -> None:
    """Upgrade, print a summary, and exit with 2 if files need the user's attention."""
    done, before, left = upgrade(folder, lambda line: print(line, file=sys.stderr))
    print(f"{done} records brought over to format 2, {before} were of that format" + (f", {left} stay" if left else ""))
    if left:
        sys.exit(2)


def show_all(arguments: argparse.Namespace) -> Table:
    columns, rows = gather(arguments.folder)
    say_versions(row["versions"] for row in rows)
    print(cli.fitted_table(rows[:SHOWN], shown_columns(columns, rows), {}, more=MORE))
    hidden = f"; {len(rows) - SHOWN} are not shown" if len(rows) > SHOWN else ""
    count = f"{len(rows)} record{'s' * (len(rows) != 1)}"
    print(f"\n{count}, {len(columns)} columns{hidden}; --output FILE.csv or FILE.parquet writes all of it")
    return columns, rows


def shown_columns(columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the columns of all records by importance: what tells the rows apart, then results, then all other keys.

    At most MOST of the settings that vary within a method come before the results.
    """
    varied = dict.fromkeys(name for some in grouped(rows, _method_key) for name in differing(some))
    apart = [name for name in KEYS if name in differing(rows)]
    settings = [name for name in varied if name.startswith(("method.", "attack.")) and name not in KEYS]
    settings = list(dict.fromkeys([*sorted(strengths(rows)), *settings]))
    results = [*registry.columns(columns, headline=True), "cost.seconds"]
    return list(dict.fromkeys([*apart, *settings[:MOST], *results, *settings, *KEYS]))


def _method_key(row: Mapping[str, Any]) -> tuple:
    return row["kind"], row.get("method.name"), row.get("attack.name")


def show_best(arguments: argparse.Namespace) -> Table:
    limit = perplexity_rise(arguments)
    return None, print_best(arguments.folder, load_runs(arguments.folder), limit)


def perplexity_rise(arguments: argparse.Namespace) -> float:
    """Return --max_perplexity_rise. Raise UserError if it is not a number >= 0."""
    if not arguments.max_perplexity_rise >= 0:
        raise UserError(
            f"--max_perplexity_rise {arguments.max_perplexity_rise:g}: must be a number of percent >= 0, such as 10"
        )
    return arguments.max_perplexity_rise


def write_page(arguments: argparse.Namespace) -> None:
    """Write the report of a folder and print its name."""
    limit, folder = perplexity_rise(arguments), arguments.folder
    from tinymem.pages import report  # a late import: sweeps import this module, and their --help must be fast

    output = report.check_output(arguments.output or Path(folder) / report.FILE)
    print(report.write_report(folder, output, limit, lambda line: print(line, file=sys.stderr)))


def print_answer(folder: str) -> None:
    """Print the ranking of all runs in a folder, as `best` does; nothing if no runs can be compared."""
    _, runs = _runs(folder)
    if runs:
        print()
        print_best(folder, runs)


def print_best(folder: str | Path, runs: Sequence[ComparedRun], limit: float = PERPLEXITY_RISE) -> list[dict[str, Any]]:
    """Print the ranking of every experiment and its answer as text. Return one row per method and experiment."""
    groups = experiments(configurations(runs))
    summaries = []
    for title, group in zip(titles([group[0].experiment for group in groups]), groups):
        ranking = ranked(group, limit)
        chosen = [*([ranking.original] if ranking.original else []), *ranking.places]
        rows = [summary(ranking, one, folder) for one in chosen]
        shown = [
            {"rank": _place(ranking, one), "method": one.method, "setting": setting(one, ranking.varied[one.method])}
            | {name: row[name] for name in ("verdict", "limit") if any(other[name] for other in rows)}
            | _with_intervals(row, sorted(outcomes(row), key=lambda name: name not in FIRST))
            for one, row in zip(chosen, rows)
        ]
        present = dict.fromkeys(name for row in shown for name in row)
        print(f"{title}\n{cli.fitted_table(shown, list(present), {}, more=f'records best {MORE}')}")
        over = sorted({one.method for one in ranking.places if ranking.over(one)})
        if over:
            print(
                f"perplexity rose by more than {limit:g} % on average in every setting of {', '.join(over)} with an "
                "effect"
            )
        print(*answer(ranking), "", sep="\n")
        summaries += rows
    print(
        "mean ± 95 % interval over n seeds (Student's t; of one seed over its sequences, where kept), cut off at the "
        "ends of the scale"
    )
    return summaries


def _place(ranking: Ranking, one: Configuration) -> str | None:
    """Return a run's rank for printing, the winner marked."""
    if one not in ranking.places:
        return None
    return f"{ranking.places.index(one) + 1}" + f" {WINNER}" * (one is ranking.winner)


def strengths(rows: Iterable[Mapping[str, Any]]) -> set[str]:
    """Return the strength columns (method.NAME) of these rows."""
    return {f"method.{m.strength}" for m in METHODS.values() if any(f"method.{m.strength}" in row for row in rows)}


def _with_intervals(row: Mapping[str, Any], columns: Iterable[str]) -> dict[str, Any]:
    """Return a summary row for printing, with the intervals of these columns."""

    return {"n": row["n"]} | {name: _interval(row[name], row[f"{name}_ci95"], scale(name)) for name in columns}


def _interval(mean: float | None, half: float | None, ends: tuple[float, float]) -> Any:
    """Return a mean with its interval as text: "40 ± 6", or "2 (0 to 8)" where the scale's end cuts it off."""
    found = bounds(mean, half, ends)
    if found is None or mean is None or half is None:
        return mean
    if found != (mean - half, mean + half):
        return f"{mean:.4g} ({found[0]:.3g} to {found[1]:.3g})"
    return f"{mean:.4g} ± " + (f"{half:.0f}" if half >= 10 else f"{half:.2g}")


def show_pareto(arguments: argparse.Namespace) -> Table:
    fronts = pareto(load_runs(arguments.folder))
    for title, front in zip(titles([front[0].checkpoint for front in fronts], seeds=True), fronts):
        rows = [{**run.row, "method.name": run.method} for run in front]
        columns = [
            "method.name",
            *sorted(strengths(rows)),
            *dict.fromkeys(name for row in rows for name in outcomes(row)),
        ]
        better = {name: found.better if (found := described(name)) else "" for name in columns}
        print(f"{title}\n{cli.fitted_table(rows, columns, better, more=MORE)}\n")
    return None, [dict(run.row) for front in fronts for run in front]


def load_runs(folder: str) -> list[ComparedRun]:
    count, runs = _runs(folder)
    if not runs:
        raise UserError(f"{folder}: none of its records ({count}) is an unlearning run that can be compared")
    return runs


def _runs(folder: str) -> tuple[int, list[ComparedRun]]:
    """Return the number of records in a folder and its runs; say on stderr what is left out or kept apart."""
    records = list(named_records(folder))
    say_versions(versions(record) for _, record in records)
    runs = unlearning_runs(records, tuple(METHODS), warn=lambda message: print(message, file=sys.stderr))
    return len(records), runs


def say_versions(found: Iterable[str]) -> None:
    message = mixed_versions(found)
    if message:
        print(message, file=sys.stderr)
