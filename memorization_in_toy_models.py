"""Train a TinyMem model that memorizes planted artifacts, and measure it during training.

    python memorization_in_toy_models.py --data_name increment --backdoor --n_layers 2 --epochs 50 --dtype auto
    python memorization_in_toy_models.py --n_layers 2 --epochs 100 --spectral_reg --lam 0.01

With --twin it trains the run's never-planted twin, which forgetting is measured against. The same command resumes an
interrupted run; --epochs may be raised. Regularizers can be combined.
"""

from tinymem import cli

# isort: split
import sys
from pathlib import Path

from tinymem import allocator, plots
from tinymem.cli.training import checked_folder, data_settings, prepared_run, train_visibly, training_table
from tinymem.data.build import load_dataset
from tinymem.data.chunks import load_tokenizer
from tinymem.models.tinymem import ModelSettings, new_model
from tinymem.records.cost import measured
from tinymem.records.identity import TRAIN
from tinymem.records.record import find_record, write_record
from tinymem.regularizers.registry import REGULARIZERS, build_regularizers, check_switches, switched_on
from tinymem.training.checkpoint import Progress, load_metrics
from tinymem.training.settings import RunSettings, TrainingSettings
from tinymem.training.twin import twin_digest


def parse() -> tuple:
    parser = cli.Parser(__doc__)
    cli.add_list_option(parser)
    cli.add_data_options(parser)
    cli.add_options(parser, ModelSettings)
    cli.add_options(parser, TrainingSettings)
    for entry in REGULARIZERS:
        cli.add_options(parser, entry.settings)
    cli.add_common_options(parser, "runs/DATA_ARTIFACT_LAYERS_SEED_HASH")
    cli.add_log_options(parser)
    arguments = parser.parse_args()
    check_switches(vars(arguments))
    settings = RunSettings(
        data=data_settings(arguments),
        model=cli.collect(ModelSettings, arguments),
        training=cli.collect(TrainingSettings, arguments),
        regularizers=switched_on(vars(arguments)),
    )
    return arguments, settings


def main() -> None:
    arguments, settings = parse()
    device, log = cli.resolve_device(arguments.device), cli.open_log(arguments)
    allocator.keep_freed_memory()
    folder = arguments.output_dir or f"runs/{settings.name}"
    with checked_folder(folder, settings.flat(), arguments.force):
        dataset = load_dataset(settings.data, arguments.data_dir)
        tokenizer = load_tokenizer(settings.data, arguments.data_dir)
    identity = {"kind": TRAIN, **settings.sections()}
    with prepared_run(folder, settings.flat(), arguments.force) as run:
        if find_record(run, identity):
            print(f"{run}: finished before (--force trains again)", file=sys.stderr)
        else:
            with measured(device) as cost:
                progress = train_run(run, settings, dataset, tokenizer, device, log)
            cost.seconds = progress.seconds  # over all the sessions of an interrupted run
            write_record(run, identity, {**progress.rows[-1], "twin": twin_digest(settings)}, cost, str(device))
    rows = [row for row in load_metrics(run) if row["epoch"] <= settings.training.epochs]
    if arguments.plot:
        print(*plots.plot_training(rows, run / "training"), sep="\n", file=sys.stderr)
    print(training_table(rows))
    print(f"\nmodel: {run}/epoch_{settings.training.epochs}")


def train_run(run: Path, settings: RunSettings, dataset, tokenizer, device, log) -> Progress:
    """Train a new model, or resume from the folder's state."""
    specials = dict(bos_token_id=dataset.bos, eos_token_id=dataset.eos, pad_token_id=dataset.pad)
    seed = settings.data.seed
    model = new_model(settings.model, dataset.vocabulary_size, settings.data.max_ctx, seed, **specials).to(device)
    regularizers = build_regularizers(model, settings.regularizers, seed)
    more = dict(tokenizer=tokenizer, regularizers=regularizers, log=log)
    return train_visibly(model, dataset, settings.training, seed, run, {"settings": settings.flat()}, **more)


if __name__ == "__main__":
    cli.run(main)
