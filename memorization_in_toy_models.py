"""Train a TinyMem model that memorizes planted artifacts, and measure it while it does.

    python memorization_in_toy_models.py --data_name increment --backdoor --n_layers 2 --epochs 50 --dtype bfloat16

Started again with the same settings it goes on where it stopped; --epochs may be raised.
"""

from tinymem import cli

# isort: split
import sys
from pathlib import Path

from tinymem import allocator, files, plots
from tinymem.data.build import load_dataset
from tinymem.data.settings import DataSettings
from tinymem.models.tinymem import ModelSettings, new_model
from tinymem.records.record import find_record, measured, write_record
from tinymem.training import checkpoint
from tinymem.training.loop import Stopped, train
from tinymem.training.settings import RunSettings, TrainingSettings, check_same_run


def parse() -> tuple:
    parser = cli.Parser(__doc__)
    cli.add_data_options(parser)
    cli.add_options(parser, ModelSettings)
    cli.add_options(parser, TrainingSettings)
    cli.add_common_options(parser, "runs/DATA_ARTIFACT_LAYERS_SEED_HASH")
    arguments = parser.parse_args()
    settings = RunSettings(
        data=cli.collect(DataSettings, arguments),
        model=cli.collect(ModelSettings, arguments),
        training=cli.collect(TrainingSettings, arguments),
    )
    return arguments, settings


def run_folder(output_dir: str | None, settings: RunSettings, force: bool) -> Path:
    """The folder of this run, made and marked with its settings. UserError when it holds another run."""
    flat = settings.flat()
    identity = {name: value for name, value in flat.items() if name not in ("epochs", "checkpoint_every")}
    data, layers = settings.data, settings.model.n_layers
    default = f"runs/{data.data_name}_{data.artifact}_{layers}layers_seed{data.seed}_{files.digest(identity)[:8]}"
    run = files.writable_folder(output_dir or default)
    if (run / "run.json").exists():
        check_same_run(str(run), files.read_json(run / "run.json"), flat)
        if force:
            checkpoint.clear(run)
    files.write_json(run / "run.json", flat)
    return run


def main() -> None:
    arguments, settings = parse()
    device = cli.resolve_device(arguments.device)
    allocator.keep_freed_memory()
    run = run_folder(arguments.output_dir, settings, arguments.force)
    identity = {"run": "train", **settings.flat()}
    if find_record(run, identity):
        print(f"{run}: finished before (--force trains anew)", file=sys.stderr)
    else:
        dataset = load_dataset(settings.data, arguments.data_dir)
        with measured(device) as cost:
            progress = train_run(run, settings, dataset, device)
        cost.seconds = progress.seconds  # over all the sessions of an interrupted run
        write_record(run, identity, progress.rows[-1], cost, str(device))
    rows = files.read_json(run / "metrics.json")
    if arguments.plot:
        print(*plots.plot_training(rows, run / "training"), sep="\n", file=sys.stderr)
    print(cli.table(map(cli.brief, rows)))
    print(f"\nmodel: {run}/epoch_{settings.training.epochs}")


def train_run(run: Path, settings: RunSettings, dataset, device) -> checkpoint.Progress:
    """Trains with a progress bar; Ctrl-C saves and says how to go on."""
    specials = dict(bos_token_id=dataset.bos, eos_token_id=dataset.eos, pad_token_id=dataset.pad)
    data, training = settings.data, settings.training
    model = new_model(settings.model, dataset.vocabulary_size, data.max_ctx, data.seed, **specials).to(device)
    steps = -(-len(dataset) // training.batch_size)
    with cli.interruptible() as should_stop, cli.progress_bar(total=training.epochs * steps, unit="step") as bar:

        def on_step(progress, loss):
            done = progress.epoch * steps + progress.step
            if bar.n == 0 and done > 1:
                bar.initial = bar.n = done - 1  # resumed: what was done before is no part of the speed
            bar.update(done - bar.n)
            speed = (bar.format_dict["rate"] or 0) * training.batch_size * data.max_ctx
            bar.set_postfix_str(f"loss {loss:.4f}, {speed:,.0f} tokens/s", refresh=False)

        def on_row(row):
            lines = cli.table([cli.brief(row)]).splitlines()
            bar.write("\n".join(lines if row["epoch"] == first_row else lines[1:]), file=sys.stderr)

        first_row = training.checkpoint_every
        try:
            return train(
                model,
                dataset,
                training,
                data.seed,
                run,
                {"settings": settings.flat()},
                on_step=on_step,
                on_row=on_row,
                should_stop=should_stop,
            )
        except Stopped:
            bar.close()
            print(f"stopped; everything is saved in {run}: run the same command again to go on", file=sys.stderr)
            sys.exit(130)


if __name__ == "__main__":
    cli.run(main)
