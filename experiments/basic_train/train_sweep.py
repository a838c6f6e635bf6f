"""Train every model of the study: data x artifact x layers x seeds x duplication x extra data.

    python experiments/basic_train/train_sweep.py --small         4 models, under a minute on two cores
    python experiments/basic_train/train_sweep.py --dry_run       the study's commands and their number
    python experiments/basic_train/train_sweep.py --site my_cluster.toml --only n_layers=2 data_name=increment

The same command again runs only what is missing; an interrupted training resumes from its last saved state.
"""

from tinymem import cli

# isort: split
from functools import partial

from tinymem.cli.study import chosen, main
from tinymem.sweeps.jobs import train_job
from tinymem.sweeps.study import models


def jobs(arguments, folder, common):
    """Return one training job per model."""
    return [train_job(settings, folder, common) for settings, _ in chosen(arguments, models)]


if __name__ == "__main__":
    cli.run(partial(main, __doc__, jobs))
