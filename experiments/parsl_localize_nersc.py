"""Unlearn Pythia 2.8B and 6.9B, at four steps of their training, with every method and its grid.

    python experiments/parsl_localize_nersc.py --small         a tiny Pythia made here, 2 steps, minutes on two cores
    python experiments/parsl_localize_nersc.py --dry_run       the study's commands and their number
    python experiments/parsl_localize_nersc.py --site my_perlmutter.toml --models 2.8b --methods balanced_subnet

Fetch the sequences that these models have memorized as pythia_mem_data/README.md says. A run takes a GPU, and for the
6.9B model a node. When started again, it does only what is missing.
"""

from tinymem import cli

# isort: split
from functools import partial
from pathlib import Path

from tiny_pythia import make_tiny_pythia

from tinymem.cli.sweeping import add_sweep_options, sweep
from tinymem.data.production import ProductionSettings
from tinymem.errors import UserError
from tinymem.localize.task import PRODUCTION_HELD_OUT, TaskSettings
from tinymem.models.production import LoadSettings
from tinymem.sweeps.hp_grid import add_grid_options, asked_grid
from tinymem.sweeps.jobs import Common, Production, production_jobs
from tinymem.sweeps.sites import find_site, open_pool

ROOT = Path(__file__).resolve().parents[1]
STEPS = (36000, 72000, 108000, 143000)
# size -> name on the hub, its memorized sequences in --memorized_dir, whether a run needs a node's memory
PYTHIA = {
    "2.8b": ("EleutherAI/pythia-2.8b-deduped-v0", "pythia-2.8b-deduped-v0.safetensors", False),
    "6.9b": ("EleutherAI/pythia-6.9b-deduped", "pythia-6.9b-deduped.safetensors", True),
}
RANDOM = "pile_random_batch.safetensors"


def parse():
    parser = cli.Parser(__doc__)
    parser.add_argument("--models", nargs="+", choices=PYTHIA, help="default: both")
    parser.add_argument("--steps", nargs="+", type=int, choices=STEPS, metavar="N",
                        help=f"of {' '.join(map(str, STEPS))} (default: all)")  # fmt: skip
    parser.add_argument("--memorized_dir", help="where the sequences are (default: pythia_mem_data)")
    add_grid_options(parser)
    add_sweep_options(parser, "runs/pythia; small: runs/pythia_small")
    arguments = parser.parse_args()
    for name in ("models", "steps", "memorized_dir"):
        if arguments.small and getattr(arguments, name) is not None:
            raise UserError(f"--{name}: not together with --small, which has a model of its own")
    return arguments


def pythia(arguments) -> list[Production]:
    """Return the models of the study. Raise UserError if the sequences are missing, unless nothing will run."""
    folder = Path(arguments.memorized_dir or "pythia_mem_data").absolute()
    files = {size: folder / PYTHIA[size][1] for size in arguments.models or PYTHIA}
    for path in (*files.values(), folder / RANDOM):
        if not path.exists() and not arguments.dry_run:
            raise UserError(f"{path}: not there; fetch it as pythia_mem_data/README.md says, or give --memorized_dir")
    return [
        Production(
            name=PYTHIA[size][0],
            loading=LoadSettings(step=step, dtype="bfloat16", device_map=_device_map(size, arguments.device)),
            data=ProductionSettings(memorized=str(files[size]), random=str(folder / RANDOM)),
            whole_node=PYTHIA[size][2],
        )
        for size in files
        for step in arguments.steps or STEPS
    ]


def _device_map(size: str, device: str) -> str | None:
    """Return "auto" for a model that needs a node, to spread it over the node's GPUs."""
    return "auto" if PYTHIA[size][2] and device != "cpu" else None


def main() -> None:
    arguments = parse()
    site = find_site(arguments.site)
    grid = asked_grid(arguments, large_model=True)
    folder = Path(arguments.output_dir or f"runs/pythia{'_small' * arguments.small}").absolute()
    models = make_tiny_pythia(folder / "model", arguments.dry_run) if arguments.small else pythia(arguments)
    task, common = TaskSettings(holdout_fraction=PRODUCTION_HELD_OUT), Common.of(arguments)
    jobs = [job for model in models for job in production_jobs(model, grid, task, common, folder / model.label)]
    sweep(arguments, jobs, folder, ROOT, partial(open_pool, site, max_workers=arguments.max_workers))


if __name__ == "__main__":
    cli.run(main)
