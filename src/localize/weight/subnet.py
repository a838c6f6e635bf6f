"""Subnet (the study, section 4.3.2): edge-popup (Ramanujan et al. 2020, arXiv 1911.13299) applied to the forget set.

Every MLP weight of the frozen model gets a score, and the weights with the lowest scores are masked out. SGD on the
scores raises the loss of the forget set. Nothing protects the retain set: see balanced_subnet.py.
"""

from __future__ import annotations

import torch

from tinymem.localize.learning import gradients, mean_weights, unlearn_batches
from tinymem.localize.ranking import Masks, weight_ratio
from tinymem.localize.task import UnlearningTask
from tinymem.localize.weight.edge_popup import MOMENTUM_HELP, ScoreOptimizer, learn_subnet, resolve_momentum
from tinymem.models.precision import PRECISION_HELP, PRECISIONS
from tinymem.options import option, settings

ALIAS = "random"  # the study's flag
resolve = resolve_momentum


@settings
class HyperParameters:
    """Subnet"""

    ratio: tuple[float, ...] = weight_ratio((0.3,), "share of each MLP matrix to drop", small=(0.05, 0.3))
    epochs: int = option(
        10, "passes over the forget set, each rounded up to whole batches", low=1, grid=(1, 10, 20), small=(10,)
    )
    batch_size: int = option(64, "sequences per step", low=1)
    lr: float = option(0.1, "learning rate of the scores", above=0.0, high=1e3)
    momentum: float | None = option(None, MOMENTUM_HELP, low=0.0, below=1.0, large=0.0)
    weight_decay: float = option(5e-4, "weight decay of the scores", low=0.0, high=1e3, large=0.0)
    dtype: str = option("auto", f"{PRECISION_HELP}; scores are float32", choices=PRECISIONS)


def learn(model, task: UnlearningTask, hp: HyperParameters, ratio: float) -> Masks:
    """Return the masks that Subnet learns for one ratio. Leave the model unchanged."""
    hp, generator = resolve(hp, model.num_parameters()), task.generator()

    def step(tokens: torch.Tensor, parameters: list[torch.nn.Parameter]) -> list[torch.Tensor]:
        return gradients(model, task, tokens, -mean_weights(task, tokens), parameters, hp.dtype)

    batches = unlearn_batches(task, hp.batch_size, hp.epochs, generator)
    optimizer = ScoreOptimizer(hp.lr, hp.momentum or 0.0, hp.weight_decay)
    batches = task.watch.over(batches, _steps(task, hp))
    return learn_subnet(model, batches, step, ratio, optimizer, generator)


def _steps(task: UnlearningTask, hp: HyperParameters) -> int:
    """Return the SGD steps for one ratio."""
    return hp.epochs * -(-len(task.forget) // hp.batch_size)


def steps(model, task: UnlearningTask, hp: HyperParameters) -> int:
    """Return the SGD steps for all ratios."""
    return len(hp.ratio) * _steps(task, hp)
