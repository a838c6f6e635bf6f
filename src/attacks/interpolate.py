"""Interpolation back to the model before the edit: how much of it is needed for the memory to return?

Unlearning with control (`tinymem.attacks.uwc`) uses the curve of memorization against utility along the way, so records
always hold both. A never-planted twin moves towards the planted model in the same way.
"""

from __future__ import annotations

from functools import partial

import torch

from tinymem.localize.task import UnlearningTask
from tinymem.metrics.memorization import PERCENT_MEMORIZED
from tinymem.metrics.quality import MEAN_TEST_ACCURACY, PERPLEXITY
from tinymem.models.edit import Lazy, Weights
from tinymem.options import option, settings

MEASURES = (PERCENT_MEMORIZED.name, MEAN_TEST_ACCURACY.name, PERPLEXITY.name)


@settings
class HyperParameters:
    """Interpolation"""

    alpha: tuple[float, ...] = option(
        (0.1, 0.25, 0.5, 0.75, 0.9),
        "weight of the model before the edit",
        low=0.0,
        high=1.0,
        strength=True,
        small=(0.5,),
    )


def attack(model, task: UnlearningTask, hp: HyperParameters, alpha: float) -> Weights:
    """Return the edit to (1 - alpha) * present weights + alpha * weights before; empty for an unedited model."""
    if task.original is None:
        return Weights({})
    present = dict(model.named_parameters())
    return Weights(
        Lazy({name: partial(_mixed, present[name].detach(), task.original, name, alpha) for name in present})
    )


def _mixed(present: torch.Tensor, original, name: str, alpha: float) -> torch.Tensor:
    return torch.lerp(present, original(name).to(present), alpha)
