"""Unlearn one model with every method over the study's grid of hyper-parameters.

    python src/localize/localize_hp_sweep.py --model_path runs/NAME/epoch_50 --small       22 runs, minutes
    python src/localize/localize_hp_sweep.py --model_path runs/NAME/epoch_50 --methods balanced_subnet --dry_run
    python src/localize/localize_hp_sweep.py --model_name EleutherAI/pythia-2.8b-deduped-v0 --step 143000 \\
        --memorized FILE --random FILE --dtype bfloat16 --site my_cluster.toml

One process handles all ratios of a setting: it loads the model and ranks once. The same command again runs only what
is missing. At the end it prints the answer of `python -m tinymem.records best`: all runs in the output folder, ranked.
The grid is in src/sweeps/hp_grid.py; docs/sweeps.md shows how to describe a cluster.
"""

from tinymem import cli

# isort: split
from functools import partial
from pathlib import Path

from tinymem import scripts
from tinymem.cli.records import print_answer
from tinymem.cli.sweeping import add_sweep_options, sweep
from tinymem.data.production import ProductionSettings
from tinymem.errors import UserError
from tinymem.localize.task import PRODUCTION_HELD_OUT, TaskSettings
from tinymem.models.production import LoadSettings
from tinymem.sweeps.hp_grid import add_grid_options, asked_grid
from tinymem.sweeps.jobs import Common, Production, find_checkpoint, localize_jobs, production_jobs
from tinymem.sweeps.sites import find_site, open_pool
from tinymem.training.checkpoint import unlearned_folder, with_real_name


def parse():
    parser = cli.Parser(__doc__)
    model = parser.add_argument_group("Model: one of these")
    model.add_argument("--model_path", help="a checkpoint folder of a TinyMem training run")
    model.add_argument("--model_name", help="a production model: a name on the hub, or a folder")
    add_grid_options(parser)
    held_out = f"Unlearning task (--holdout_fraction is {PRODUCTION_HELD_OUT} by default with --model_name)"
    cli.add_options(parser, TaskSettings, held_out)
    cli.add_options(parser, LoadSettings, "With --model_name: model")
    cli.add_options(parser, ProductionSettings, "With --model_name: data")
    parser.add_argument("--whole_node", action="store_true", help="with --model_name: one cluster node per run")
    add_sweep_options(parser, "that of localize_memorization.py, or runs/production/MODEL_NAME_STEP")
    arguments = parser.parse_args()
    if bool(arguments.model_path) == bool(arguments.model_name):
        raise UserError("--model_path, --model_name: give exactly one of them")
    others = [*cli.given(LoadSettings, arguments), *cli.given(ProductionSettings, arguments)]
    others += ["whole_node"] * arguments.whole_node
    if arguments.model_path and others:
        raise UserError(f"--{others[0]}: only with --model_name; a checkpoint has its own settings")
    if arguments.model_name and not hasattr(arguments, "memorized"):
        raise UserError("--memorized: give a file of sequences that this model has memorized, as prod_grad.py takes it")
    for name in ("memorized", "random"):
        path = getattr(arguments, name, None)
        if path and not Path(path).exists() and not arguments.dry_run:
            raise UserError(f"--{name} {path}: no such file")
    return arguments


def main() -> None:
    arguments = parse()
    site = find_site(arguments.site)
    grid = asked_grid(arguments, large_model=bool(arguments.model_name))
    folder, common = arguments.output_dir and Path(arguments.output_dir).absolute(), Common.of(arguments)
    if arguments.model_path:
        checkpoint = find_checkpoint(with_real_name(Path(arguments.model_path)).absolute())
        folder = folder or unlearned_folder(checkpoint.path).absolute()
        jobs = localize_jobs(checkpoint, grid, cli.collect(TaskSettings, arguments), common, folder)
    else:
        loading, data = cli.collect(LoadSettings, arguments), cli.collect(ProductionSettings, arguments)
        model = Production(arguments.model_name, loading, data, arguments.whole_node)
        task = cli.collect(TaskSettings, arguments, holdout_fraction=PRODUCTION_HELD_OUT)
        folder = folder or Path("runs/production").absolute() / model.label
        jobs = production_jobs(model, grid, task, common, folder)
    pool = partial(open_pool, site, max_workers=arguments.max_workers)
    sweep(arguments, jobs, Path(jobs[0].folder), scripts.home(), pool, partial(print_answer, jobs[0].folder))


if __name__ == "__main__":
    cli.run(main)
