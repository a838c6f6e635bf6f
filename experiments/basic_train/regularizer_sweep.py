"""Train the study's models with each regularizer at each of its values, and without for comparison.

    python experiments/basic_train/regularizer_sweep.py --small       16 models, minutes on two cores
    python experiments/basic_train/regularizer_sweep.py --dry_run     the study's commands and their number
    python experiments/basic_train/regularizer_sweep.py --site my_cluster.toml --only n_layers=2 num_2=3000

The same command again runs only what is missing; an interrupted training resumes from its last saved state.
"""

from tinymem import cli

# isort: split
from functools import partial

from tinymem.cli.study import chosen, main
from tinymem.sweeps.jobs import train_job
from tinymem.sweeps.study import models, regularized


def jobs(arguments, folder, common):
    """Return one job per model and regularizer, after the plain trainings, which train_sweep.py may have done."""
    every = chosen(arguments, lambda study: models(study) + regularized(study, arguments.small))
    return [train_job(settings, folder, common) for settings, _ in every]


if __name__ == "__main__":
    cli.run(partial(main, __doc__, jobs))
