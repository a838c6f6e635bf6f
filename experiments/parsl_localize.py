"""Unlearn the study's TinyMem models with every method and its grid, from each checkpoint that the study uses.

    python experiments/parsl_localize.py --small          4 models, 11 methods, minutes on two cores
    python experiments/parsl_localize.py --dry_run        the study's commands and their number
    python experiments/parsl_localize.py --site my_cluster.toml --only n_layers=2 --methods balanced_subnet

Models that train_sweep.py has not trained yet are trained first. One process handles all ratios of a setting: it loads
the model and ranks only once. When started again, it does only what is missing.
"""

from tinymem import cli

# isort: split
from functools import partial

from tinymem.cli.study import chosen, main
from tinymem.localize.task import TaskSettings
from tinymem.sweeps.hp_grid import add_grid_options, asked_grid
from tinymem.sweeps.jobs import checkpoints, localize_jobs, train_job
from tinymem.sweeps.study import models


def jobs(arguments, folder, common):
    """Return the trainings, then one command per checkpoint, method and setting."""
    every, grid = chosen(arguments, models), asked_grid(arguments)
    return [train_job(settings, folder, common) for settings, _ in every] + [
        job
        for settings, epochs in every
        for checkpoint in checkpoints(settings, folder, epochs)
        for job in localize_jobs(checkpoint, grid, TaskSettings(), common)
    ]


if __name__ == "__main__":
    cli.run(partial(main, __doc__, jobs, add_grid_options))
