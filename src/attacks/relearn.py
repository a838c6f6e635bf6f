"""Relearning on a share of the forget set (Hu et al. 2024, arXiv 2406.13356): do the other memories come back with it?

Only sequences that are not in the attacker's share, and reveal nothing of it, are measured.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from tinymem.attacks.relearning import Relearning, relearned, share_of
from tinymem.localize.task import UnlearningTask
from tinymem.models.edit import Weights
from tinymem.options import option, settings

CUMULATIVE = True


@settings
class HyperParameters(Relearning):
    """Relearning on a share of the forget set"""

    share: float = option(0.1, "share of the sequences to forget that the attacker has", above=0.0, high=1.0)
    steps: tuple[int, ...] = option(
        (5, 10, 30, 80), "training steps after which the model is measured", low=1, strength=True, small=(30,)
    )


def seen(task: UnlearningTask, hp: HyperParameters) -> torch.Tensor:
    """Return the attacker's share, bool (F,)."""
    return share_of(task, hp.share)


def run(model, task: UnlearningTask, hp: HyperParameters) -> Iterator[tuple[int, Weights]]:
    """Yield the weights after each number of steps of training on the share."""
    return relearned(model, task, task.forget.planted[seen(task, hp)], hp.steps, hp, hp.lr, "--relearn.lr")
