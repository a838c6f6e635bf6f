"""Relearning on the whole forget set: the speed counts, compared with that of the never-planted twin.

The attacker's own sequences are measured, because no others are left. Only a model that learns them faster than the
twin has kept something of them.
"""

from __future__ import annotations

from collections.abc import Iterator

from tinymem.attacks.relearning import Relearning, relearned
from tinymem.localize.task import UnlearningTask
from tinymem.models.edit import Weights
from tinymem.options import option, settings

CUMULATIVE = True


@settings
class HyperParameters(Relearning):
    """Relearning on the whole forget set"""

    batch_size: int = option(32, "sequences per step; at most those to forget", low=2)
    steps: tuple[int, ...] = option(
        (5, 10, 20, 40), "training steps after which the model is measured", low=1, strength=True, small=(10,)
    )


def run(model, task: UnlearningTask, hp: HyperParameters) -> Iterator[tuple[int, Weights]]:
    """Yield the weights after each number of steps of training on all sequences to forget."""
    return relearned(model, task, task.forget.planted, hp.steps, hp, hp.lr, "--relearn_all.lr")
