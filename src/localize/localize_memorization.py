"""Unlearn what a TinyMem model has memorized: locate the neurons or weights responsible and set them to zero.

    python src/localize/localize_memorization.py --model_path runs/NAME/epoch_50 \\
        --localization_method balanced_subnet --ratio 0.1 0.3

The data settings are those of the checkpoint; a data flag that contradicts them is an error.
"""

from tinymem import cli

# isort: split
import sys
from functools import partial
from pathlib import Path

from tinymem import allocator, files, plots
from tinymem.data.build import load_dataset
from tinymem.data.chunks import load_tokenizer
from tinymem.data.settings import DataSettings
from tinymem.data.tokenizer import check_vocabulary
from tinymem.errors import UserError
from tinymem.localize.flags import add_method_options, chosen_methods
from tinymem.localize.scores import task_fingerprint
from tinymem.localize.task import TaskSettings, unlearning_task
from tinymem.localize.unlearn import Subject, unedited, unlearn
from tinymem.metrics.evaluate import evaluate
from tinymem.models.fingerprint import weights_fingerprint
from tinymem.models.tinymem import ModelSettings, load_model
from tinymem.records.table import flat_row
from tinymem.training.checkpoint import load_details, place_beside
from tinymem.training.settings import RunSettings, check_same_run

COLUMNS = ("method", "ratio", "percent_memorized_train", "percent_memorized_test", "percent_memorized_held_out")
COLUMNS += ("percent_clean_recovery", "mean_test_accuracy", "perplexity", "perplexity_batch_mean")
COLUMNS += ("percent_zeroed", "seconds", "peak_memory_gb")


def parse():
    parser = cli.Parser(__doc__)
    parser.add_argument("--model_path", required=True, help="a checkpoint folder of a training run")
    add_method_options(parser)
    cli.add_options(parser, TaskSettings)
    cli.add_data_options(parser)
    cli.add_options(parser, ModelSettings)
    cli.add_common_options(
        parser, "MODEL_PATH/../unlearned/epoch_N; for a model outside its training run, runs/NAME/unlearned/NAME"
    )
    return parser.parse_args()


def load_subject(arguments) -> Subject:
    """Model, data and task. UserError when a flag contradicts the checkpoint."""
    path = Path(arguments.model_path)
    details = load_details(path)
    if "epoch" not in details:
        raise UserError(f"{path}: this model was edited already; give a checkpoint of a training run")
    asked = cli.given(DataSettings, arguments) | cli.given(ModelSettings, arguments)
    check_same_run(str(path), details["settings"], asked, "leave the flag out or give another --model_path")
    settings = RunSettings.from_flat(details["settings"])
    task_settings = cli.collect(TaskSettings, arguments)
    model = load_model(path, cli.resolve_device(arguments.device))
    dataset = load_dataset(settings.data, arguments.data_dir)
    check_vocabulary(model, dataset.vocabulary_size, path)
    task = unlearning_task(model, dataset, task_settings)
    chosen = {name: value for name, value in vars(task_settings).items() if name != "microbatch"}
    folder = files.writable_folder(arguments.output_dir or place_beside(path) / "unlearned" / path.name)
    return Subject(
        model=model,
        task=task,
        measure=partial(evaluate, dataset=dataset, batch_size=task.microbatch),
        identity={
            "run": "unlearn",
            **settings.flat(training_prefix="training_"),
            "epoch": details["epoch"],
            **chosen,
            "weights": weights_fingerprint(model),
            "task": task_fingerprint(task),
        },
        folder=folder,
        score_folder=score_folder(path, folder),
        tokenizer=load_tokenizer(settings.data, arguments.data_dir),
    )


def score_folder(model_path: Path, output: Path) -> Path:
    """Beside the model, for all who study it; with the results where that place is not writable."""
    try:
        return files.writable_folder(place_beside(model_path) / "scores" / model_path.name)
    except UserError:
        return files.writable_folder(output / "scores")


def main() -> None:
    arguments = parse()
    methods = chosen_methods(arguments)
    allocator.keep_freed_memory()
    subject = load_subject(arguments)
    records = [unedited(subject, arguments.force)]
    if not len(subject.task.unlearn):
        print_table(records)
        print(f"\nnothing to unlearn: the model has not memorized anything of --unlearn_set_name "
              f"{subject.identity['unlearn_set_name']}")  # fmt: skip
        return
    save_models = not arguments.no_save_model
    total = sum(len(hp.ratio) for _, hp in methods)
    with cli.progress_bar(total=total, unit="run") as bar:
        for method, hp in methods:
            bar.set_postfix_str(method.name)
            for record in unlearn(subject, method, hp, save_models, arguments.force):
                records.append(record)
                bar.update()
                if record["results"]["percent_zeroed"] == 0:
                    ratio = record["settings"]["ratio"]
                    print(f"{method.name}: --ratio {ratio} drops nothing in a model of this size", file=sys.stderr)
    if arguments.plot:
        print(
            *plots.plot_unlearning(list(map(flat_row, records)), subject.folder / "unlearning"),
            sep="\n",
            file=sys.stderr,
        )
    print_table(records)
    print(f"\nrecords: {subject.folder}/records" + (f", edited models: {subject.folder}/models" if save_models else ""))


def print_table(records: list[dict]) -> None:
    """One line a run; the accuracies of the single test sets stand at the end."""
    accuracies = [name for name in records[0]["results"] if name.startswith("accuracy_")]
    print(
        cli.table(
            (cli.brief(flat_row(record)) for record in records), cli.brief(dict.fromkeys((*COLUMNS, *accuracies)))
        )
    )


if __name__ == "__main__":
    cli.run(main)
