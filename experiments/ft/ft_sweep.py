"""Fine-tune the study's models on clean, extra and both, from each checkpoint that the study uses.

    python experiments/ft/ft_sweep.py --small         12 fine-tunings of 4 models, minutes on two cores
    python experiments/ft/ft_sweep.py --dry_run       the study's commands and their number
    python experiments/ft/ft_sweep.py --site my_cluster.toml --only n_layers=2

Models that train_sweep.py has not trained yet are trained first. When started again, it does only what is missing.
"""

from tinymem import cli

# isort: split
from functools import partial

from tinymem.cli.study import chosen, main
from tinymem.sweeps.jobs import checkpoints, finetune_job, train_job
from tinymem.sweeps.study import models
from tinymem.training.finetune import FT_DATA, FinetuneSettings


def jobs(arguments, folder, common):
    """Return the trainings, then three fine-tunings per checkpoint."""
    every = chosen(arguments, models)
    ft_epochs = 2 if arguments.small else FinetuneSettings().ft_epochs
    return [train_job(settings, folder, common) for settings, _ in every] + [
        finetune_job(checkpoint, FinetuneSettings(ft_data, ft_epochs), common)
        for settings, epochs in every
        for checkpoint in checkpoints(settings, folder, epochs)
        for ft_data in FT_DATA
    ]


if __name__ == "__main__":
    cli.run(partial(main, __doc__, jobs))
