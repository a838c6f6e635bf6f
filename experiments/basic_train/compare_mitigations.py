"""All mitigations on one model: every regularizer, three fine-tunings, and every unlearning method.

    python experiments/basic_train/compare_mitigations.py           small settings, an hour on one core
    python experiments/basic_train/compare_mitigations.py --full    the study's data, 50 epochs: half a day; on a GPU less

Trains a model without and with each regularizer, and its never-planted twin; fine-tunes the plain one, unlearns it with
every method at several strengths; measures all alike, and writes results/compare_mitigations/: table.csv, table.md,
figure.png, figure.pdf, summary.json. Half of what the plain model has memorized is shown to the methods, a fifth chooses
their strengths, the rest is reported. Runs the ordinary scripts, whose commands it prints. Interrupted, or started again,
it does only what is missing. The flags of data, model and training below are those of all models, on top of the chosen settings.
"""

from tinymem import cli

# isort: split
import argparse
import shlex
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mitigations_study import COMMON, SMALL, TWIN, Study, make_study

from tinymem import files, plots
from tinymem.data.settings import DataSettings
from tinymem.errors import UserError
from tinymem.leaderboard.cases import TASK
from tinymem.localize.registry import METHODS
from tinymem.models.tinymem import ModelSettings
from tinymem.records.choose import Configuration, best, configurations, grouped, unlearning_runs
from tinymem.records.finder import rows_with
from tinymem.records.identity import FINGERPRINTS, MEASURED, NEVER_PLANTED, TRAIN, UNEDITED, sections_of
from tinymem.records.record import environment, find_record
from tinymem.records.table import flat_row, load_records, markdown, named_records, trade_off, write_csv
from tinymem.sweeps.jobs import training_words, unlearning_identity
from tinymem.training.finetune import FT_DATA, FinetuneSettings
from tinymem.training.settings import RunSettings, TrainingSettings
from tinymem.training.twin import twin_of

ROOT = Path(__file__).resolve().parents[2]
UNMITIGATED, REGULARIZERS, FINETUNING, UNLEARNING = "no mitigation", "regularizers", "fine-tuning", "unlearning"
MEASURES = ("forward", "percent_near_verbatim", "percent_extractable")  # as --metrics takes them
MEMORIZED = "percent_memorized_held_out"
METRICS = (MEMORIZED, "percent_near_verbatim_held_out", "percent_extractable_held_out", "auc_loss_held_out")
METRICS += ("percent_memorized_test", "percent_clean_recovery", "mean_test_accuracy", "perplexity", "percent_zeroed")
TITLE = "Mitigations of one model"
NOTES = """\
- twin: the same training in which nothing is planted; a model that has forgotten is as close to it as possible
- memorized: backdoored training sequences that no method was shown whose trigger still brings out the planted
  continuation; lower is better
- near-verbatim: the same, but a continuation that is nearly the planted one counts too; lower is better
- extractable: the same, but one of 100 sampled continuations is enough, with a probability of 0.5; lower is better
- AUC: how well the loss tells backdoored sequences from never-planted ones; as the twin's is best
- unseen triggers: the same for sequences with the trigger that were never trained on; lower is better
- accuracy: next tokens right, mean over the five clean test sets; higher is better
- seconds: no mitigation and regularizers: training (what a regularizer adds to a step is a few percent: see
  benchmarks/regularizer_cost.json); fine-tuning: the whole of it; unlearning: to find the edit
- trade-off: (change in fraction memorized) - (change in accuracy) against no mitigation; lower is better. Of an
  unlearning method the run is shown where it is lowest on validation sequences, which are not among those reported
"""


def parse() -> argparse.Namespace:
    parser = cli.Parser(__doc__)
    cli.add_list_option(parser)
    parser.add_argument("--full", action="store_true", help="the study's settings instead of the small ones")
    parser.add_argument("--ft_epochs", type=int, default=5, help="epochs of each fine-tuning (default: 5)")
    for part in (DataSettings, ModelSettings, TrainingSettings):
        cli.add_options(parser, part, **COMMON, **SMALL)
    parser.add_argument("--output_dir", help="default: results/compare_mitigations; full: ..._full")
    parser.add_argument("--run_dir", help="where models are kept (default: runs/compare; full: runs/compare_full)")
    parser.add_argument("--data_dir", default="data", help="cache of built datasets (default: data)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 ... (default: auto)")
    return parser.parse_args()


def train(settings: RunSettings, folder: Path, common: list[str]) -> None:
    """Train one model; the command names the settings that are not the script's defaults."""
    script, *flags = training_words(settings, folder, common)
    cli.run_script([ROOT / script, *flags])


def do_everything(study: Study, common: list[str]) -> None:
    """All trainings, fine-tunings, unlearning runs and measurements; each script skips what is finished."""
    train(study.plain, study.run_dir / "plain", common)
    if not trained_row(study.plain, study.run_dir / "plain")["percent_memorized_train"]:
        raise UserError("the plain model has memorized nothing, so that nothing can be mitigated; raise --epochs")
    train(twin_of(study.plain), study.run_dir / TWIN, common)
    for name, settings in study.regularized.items():
        train(settings, study.run_dir / name, common)
    model = ["--model_path", study.checkpoint, *common]
    for data in FT_DATA:
        cli.run_script([ROOT / "ft_toy_model.py", *model, "--ft_data", data, "--ft_epochs", study.ft_epochs])
    measuring = [f"--{name}={value}" for name, value in TASK.deciding().items() if name.endswith("_fraction")]
    measuring += ["--metrics", *MEASURES, "--twin_model", study.run_dir / TWIN / study.checkpoint.name]
    for words in study.unlearning:
        script = ROOT / "src/localize/localize_memorization.py"
        cli.run_script([script, *model, "--no_save_model", *measuring, "--localization_method", *words.split()])
    edit = ["--edit_of", study.checkpoint, *common, *measuring, "--output_dir", study.measured]
    for name, folder in study.trained.items():
        cli.run_script([ROOT / "src/localize/measure.py", folder, *edit, "--name", name])


def trained_row(settings: RunSettings, folder: Path) -> dict[str, Any]:
    return flat_row(find_record(folder, {"kind": TRAIN, **settings.sections()}))


def compare(study: Study) -> list[dict[str, Any]]:
    """One row a mitigation, the plain model and its twin first; of the runs of an unlearning method the best."""
    epoch = study.plain.training.epochs
    sections = unlearning_identity(study.plain, epoch, TASK)

    def measured(kind: str, **method: str) -> dict[str, Any]:
        *_, row = rows_with(study.measured, {"kind": kind, **sections, "method": method})
        return row

    plain, rows = measured(UNEDITED), []

    def add(family: str, name: str, setting: str, row: Mapping[str, Any], made: Mapping[str, Any]) -> None:
        rows.append(as_row(family, name, setting, row, plain, made["cost.seconds"]))

    for name, kind, settings in (("plain", UNEDITED, study.plain), (TWIN, NEVER_PLANTED, twin_of(study.plain))):
        add(UNMITIGATED, name, f"epochs {epoch}", measured(kind), trained_row(settings, study.run_dir / name))
    for name, settings in study.regularized.items():
        (regularizer,) = settings.regularizers
        _, *others = vars(regularizer).items()  # the first one switches it on
        setting = ", ".join(f"{key} {value}" for key, value in others)
        add(REGULARIZERS, name, setting, measured(MEASURED, name=name), trained_row(settings, study.run_dir / name))
    for name in FT_DATA:
        identity = FinetuneSettings(name, study.ft_epochs).identity(study.plain, epoch)
        *_, made = rows_with(study.run_dir / "plain" / "finetuned", identity)
        add(FINETUNING, name, f"epochs {study.ft_epochs}", measured(MEASURED, name=name), made)
    for name, row in best_unlearned(study.measured, sections).items():
        strength = METHODS[row["method.name"]].strength
        add(UNLEARNING, name, f"{strength} {row[f'method.{strength}']:g}", row, row)
    return rows


def best_unlearned(folder: Path, sections: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Return the best run of each method; with a cap, a bounded term or an update mask it counts as one of its own.

    sections: of the runs that count, exactly, but for method and fingerprints.
    """

    def name(configuration: Configuration) -> str:
        settings = configuration.hyper_parameters
        cap, mask = settings.get("unlearn_loss_cap"), settings.get("update_mask")
        known = {"loss cap": cap and f"{cap:g}", "forget term": settings.get("forget_term")}
        known["update mask"] = " ".join(mask or ())
        return ", ".join([configuration.method, *(f"{what} {value}" for what, value in known.items() if value)])

    beside, wanted = ("method", FINGERPRINTS), sections_of(sections)
    records = [named for named in named_records(folder) if sections_of(named[1], beside) == wanted]
    found = configurations(unlearning_runs(records, tuple(METHODS)))
    rivals = grouped((one for one in found if one.method in METHODS), name)
    chosen = {name(one): one.runs[0].row for some in rivals for one in best(some)}
    return dict(sorted(chosen.items(), key=lambda item: (list(METHODS).index(item[1]["method.name"]), item[0])))


def as_row(
    family: str, method: str, setting: str, row: Mapping[str, Any], plain: Mapping[str, Any], seconds: float
) -> dict[str, Any]:
    """Return a row of the comparison table. seconds: what the mitigation took."""
    metrics = {name: row.get(name) for name in METRICS}
    costs = {"seconds": round(seconds, 1), "trade_off": trade_off(row, plain, MEMORIZED)}
    return {"family": family, "method": method, "setting": setting, **metrics, **costs}


def write_results(study: Study, rows: list[dict[str, Any]], seconds: float, device: str) -> None:
    """table.csv, table.md, figure.png, figure.pdf, summary.json."""
    output, shown = study.output_dir, list(map(readable, rows))
    write_csv(output / "table.csv", rows)
    table = markdown(list(shown[0]), (row.values() for row in shown))
    text = f"# {TITLE}\n\nMade by `{shlex.join(['python', *sys.argv])}`.\n\n{table}\n\n{NOTES}"
    files.write_file(output / "table.md", lambda temporary: temporary.write_text(text, encoding="utf-8"))
    plots.plot_mitigations(rows, output / "figure", MEMORIZED)
    settings = {**study.plain.flat(), "ft_epochs": study.ft_epochs}
    summary = {"settings": settings, "seconds_total": seconds, "environment": environment(device), "rows": rows}
    files.write_json(output / "summary.json", summary)


def readable(row: Mapping[str, Any]) -> dict[str, str]:
    """Return a row under short names with units, as printed and as in table.md."""

    def number(value: float | None, digits: int) -> str:
        return "-" if value is None else f"{value:.{digits}f}"

    return {
        **{name: row[name] for name in ("family", "method", "setting")},
        "memorized %": number(row["percent_memorized_held_out"], 1),
        "near-verbatim %": number(row["percent_near_verbatim_held_out"], 1),
        "extractable %": number(row["percent_extractable_held_out"], 1),
        "AUC": number(row["auc_loss_held_out"], 2),
        "unseen triggers %": number(row["percent_memorized_test"], 1),
        "accuracy %": number(100 * row["mean_test_accuracy"], 2),
        "perplexity": number(row["perplexity"], 3),
        "seconds": number(row["seconds"], 1),
        "trade-off": number(row["trade_off"], 3),
    }


@contextmanager
def counted_seconds(folder: Path) -> Iterator[dict[str, float]]:
    """Yields {"seconds": of all calls so far}, with this one's when the block ends, however it ends.

    A call that finds everything finished counts nothing.
    """
    path, start, finished = folder / "seconds.json", time.monotonic(), len(load_records(folder))
    spent = files.read_json(path) if path.exists() else {"seconds": 0.0}
    interrupted = True
    try:
        yield spent
        interrupted = False
    finally:
        if interrupted or len(load_records(folder)) > finished:
            spent["seconds"] = round(spent["seconds"] + time.monotonic() - start, 1)
            files.write_json(path, spent)


def main() -> None:
    arguments = parse()
    study = make_study(arguments)
    device = cli.resolve_device(arguments.device)  # an error now rather than in a script after this one
    with counted_seconds(study.run_dir) as spent:
        do_everything(study, ["--device", arguments.device, "--data_dir", arguments.data_dir])
    rows = compare(study)
    write_results(study, rows, spent["seconds"], str(device))
    print("\n" + cli.table(map(readable, rows)))
    print(f"\n{spent['seconds']:.0f} s in all; table, figure and summary: {study.output_dir}")


if __name__ == "__main__":
    cli.run(main)
