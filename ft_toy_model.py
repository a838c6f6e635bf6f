"""Fine-tune a trained TinyMem model so that it forgets its artifacts, and measure it before and after every epoch.

    python ft_toy_model.py --model_path runs/NAME/epoch_50 --ft_data clean

Data and model settings come from the checkpoint; a flag that contradicts them is an error. The optimizer starts from
scratch with the settings of the model's training, without regularizers. A model trained with example-tied dropout is
fine-tuned as it is evaluated: with its memory channels off.
The same command resumes an interrupted run; --ft_epochs may be raised.
"""

from tinymem import cli

# isort: split
import argparse
import sys
from dataclasses import asdict, fields, replace
from pathlib import Path

from tinymem import allocator, plots
from tinymem.cli.sources import given_sources
from tinymem.cli.training import checked_folder, prepared_run, train_visibly, trained_settings, training_table
from tinymem.data.build import load_dataset
from tinymem.data.chunks import load_tokenizer
from tinymem.data.tokenizer import check_vocabulary
from tinymem.errors import UserError
from tinymem.models.channel_gate import is_gated
from tinymem.models.fingerprint import weights_fingerprint
from tinymem.models.tinymem import ModelSettings, load_model
from tinymem.records.cost import measured
from tinymem.records.finder import find_run
from tinymem.records.identity import TRAIN, record_digest
from tinymem.records.record import find_record, write_record
from tinymem.regularizers import sinks
from tinymem.training.checkpoint import load_metrics, place_beside
from tinymem.training.finetune import FT_DATA, FinetuneSettings, finetuning_dataset
from tinymem.training.settings import RunSettings


def parse() -> argparse.Namespace:
    parser = cli.Parser(__doc__)
    cli.add_list_option(parser)
    parser.add_argument("--model_path", required=True, help="a checkpoint folder of a training run")
    cli.add_options(parser, FinetuneSettings, ft_data="none, must be given")
    for name in FT_DATA:
        parser.add_argument(
            f"--{name}_ft", nargs="?", const=True, default=False, type=cli.parse_bool, metavar="0|1",
            help=f"the study's flag for --ft_data {name}",
        )  # fmt: skip
    cli.add_data_options(parser)
    cli.add_options(parser, ModelSettings)
    for field in fields(sinks.Settings):
        parser.add_argument(f"--{field.name}", nargs="?", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
    cli.add_common_options(
        parser, "MODEL_PATH/../finetuned/epoch_N_FT_DATA; for a model outside its training run, under runs/NAME"
    )
    cli.add_log_options(parser)
    return parser.parse_args()


def check_no_sinks(arguments: argparse.Namespace) -> None:
    """Raise UserError if memorization sinks are requested: fine-tuned models memorize in the shared neurons."""
    for field in fields(sinks.Settings):
        if hasattr(arguments, field.name):
            raise UserError(
                f"--{field.name}: memorization sinks work only in a training from scratch, since a trained model "
                "already memorizes in neurons that are kept; use memorization_in_toy_models.py"
            )


def finetune_settings(arguments: argparse.Namespace) -> FinetuneSettings:
    """Return the settings. Raise UserError unless exactly one set was requested, by either flag."""
    asked = {name for name in FT_DATA if getattr(arguments, f"{name}_ft")}
    asked |= {arguments.ft_data} if hasattr(arguments, "ft_data") else set()
    if len(asked) != 1:
        given = ", ".join(sorted(asked)) or "none"
        raise UserError(f"--ft_data: exactly one of {', '.join(FT_DATA)} is needed, {given} was given")
    arguments.ft_data = asked.pop()
    return cli.collect(FinetuneSettings, arguments)


def main() -> None:
    arguments = parse()
    check_no_sinks(arguments)
    finetuning = finetune_settings(arguments)
    path = Path(arguments.model_path)
    settings, epoch = trained_settings(path, arguments)
    log = cli.open_log(arguments)
    allocator.keep_freed_memory()
    model = load_model(path, cli.resolve_device(arguments.device))
    prints = {"weights": weights_fingerprint(model)}
    marker = finetuning.marker(settings, epoch) | prints
    identity = finetuning.identity(settings, epoch) | {"fingerprints": prints, "parent": training_run(path, settings)}
    folder = arguments.output_dir or place_beside(path) / "finetuned" / f"epoch_{epoch}_{finetuning.ft_data}"
    with checked_folder(folder, marker, arguments.force):
        done = not arguments.force and find_run(folder, identity)
        data = None if done else load_data(path, model, settings, finetuning, arguments.data_dir)
    with prepared_run(folder, marker, arguments.force) as run:
        if found := find_run(run, identity):  # includes a run from before the training finished, which has no parent
            identity = found
            print(f"{run}: finished before (--force repeats it)", file=sys.stderr)
        else:
            if is_gated(model):
                print(f"{path}: trained with example-tied dropout; its memory channels stay off", file=sys.stderr)
            dataset, tokenizer = data or load_data(path, model, settings, finetuning, arguments.data_dir)
            details = {"settings": settings.flat(), "finetuning": {**asdict(finetuning), "from_epoch": epoch}}
            more = dict(tokenizer=tokenizer, log=log, sources=given_sources(arguments))
            finetune(model, dataset, settings, finetuning.ft_epochs, run, details, identity, **more)
    show(run, find_record(run, identity)["results"]["epoch_seconds"], arguments.plot)


def training_run(checkpoint: Path, settings: RunSettings) -> str | None:
    """Return the digest of the record of a checkpoint's training; None while the training is not finished."""
    identity = {"kind": TRAIN, **settings.sections()}
    return record_digest(identity) if find_record(checkpoint.parent, identity) else None


def load_data(path: Path, model, settings: RunSettings, finetuning: FinetuneSettings, cache: str) -> tuple:
    """Return the fine-tuning set and the tokenizer. Raise UserError for data that is missing or of another model."""
    dataset = finetuning_dataset(load_dataset(settings.data, cache), finetuning.ft_data)
    check_vocabulary(model, dataset.vocabulary_size, path)
    return dataset, load_tokenizer(settings.data, cache)


def finetune(
    model,
    dataset,
    settings: RunSettings,
    epochs: int,
    run: Path,
    details: dict,
    identity: dict,
    tokenizer,
    log,
    sources,
) -> None:
    """Train on the fine-tuning set, or resume from the folder's state, and write the record."""
    training = replace(settings.training, epochs=epochs, checkpoint_every=1, lr_decay=0.0)
    with measured(model.device) as cost:
        more = dict(tokenizer=tokenizer, measure_first=True, log=log)
        progress = train_visibly(model, dataset, training, settings.data.seed, run, details, **more)
    cost.seconds = progress.seconds  # over all the sessions of an interrupted run
    results = {name: value for name, value in progress.rows[-1].items() if name != "epoch"}
    results |= {"epoch_seconds": progress.epoch_seconds}
    write_record(run, identity, results, cost, str(model.device), sources=sources)


def show(run: Path, epoch_seconds: list[float], plot: bool) -> None:
    """Print the table of all epochs, each with its training seconds."""
    rows = load_metrics(run)
    if plot:
        print(*plots.plot_training(rows, run / "finetuning"), sep="\n", file=sys.stderr)
    seconds = [None, *epoch_seconds]
    print(training_table([{**row, "seconds": taken} for row, taken in zip(rows, seconds)]))
    print(f"\nmodel: {run}/epoch_{len(epoch_seconds)}")


if __name__ == "__main__":
    cli.run(main)
