"""Relearning on clean data: fine-tune on text of the same task that teaches nothing that is to be forgotten."""

from __future__ import annotations

from collections.abc import Iterator

from tinymem.attacks.relearning import Relearning, relearned
from tinymem.localize.task import UnlearningTask
from tinymem.models.edit import Weights
from tinymem.options import option, settings

CUMULATIVE = True
FLAG = "--attack relearn_clean"


@settings
class HyperParameters(Relearning):
    """Relearning on clean data"""

    batch_size: int = option(16, "sequences per step; at most the clean ones of the retain set", low=2)
    steps: tuple[int, ...] = option(
        (30, 100), "training steps after which the model is measured", low=1, strength=True, small=(30,)
    )


def check(model, task: UnlearningTask, hp: HyperParameters) -> None:
    """Raise UserError for a task without clean sequences to retain."""
    task.clean_retain(FLAG)


def run(model, task: UnlearningTask, hp: HyperParameters) -> Iterator[tuple[int, Weights]]:
    """Yield the weights after each number of steps of training on clean sequences of the retain set."""
    return relearned(model, task, task.clean_retain(FLAG), hp.steps, hp, hp.lr, "--relearn_clean.lr")
