"""Task vector (Ilharco et al. 2023, arXiv 2212.04089): subtract the change that training on the forget set makes.

theta_F is the model after more training on the forget set alone; the edit is theta - alpha (theta_F - theta). A model
that has memorized the set has small gradients on it, so the change is small unless training is long.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

from tinymem.localize.task import UnlearningTask
from tinymem.models.edit import Weights
from tinymem.models.precision import PRECISION_HELP, PRECISIONS
from tinymem.options import option, settings
from tinymem.training.objective import TRAINED, ObjectiveSettings, snapshots, train_objective
from tinymem.training.step import Side

ENOUGH = 6  # forward passes that show a run's peak in a plan: the first loss and two steps


@settings
class HyperParameters:
    """Task vector"""

    alpha: tuple[float, ...] = option(
        (0.1, 0.3, 1.0), "multiple to subtract of the change that training on the forget set makes",
        above=0.0, strength=True, grid=(0.1, 0.2, 0.3, 0.5, 1.0, 2.0), small=(0.3, 1.0),
    )  # fmt: skip
    epochs: int = option(10, "passes over the forget set, each rounded up to whole batches", low=1)
    batch_size: int = option(32, "sequences per step", low=2)
    lr: float = option(3e-4, "learning rate of AdamW", above=0.0, high=1e3)
    warm_up: int = option(10, "steps over which the learning rate rises linearly", low=0, unrecorded=True)
    trained: str = option("all", "parameters to train", choices=TRAINED)
    dtype: str = option("auto", f"{PRECISION_HELP}; weights keep their type", choices=PRECISIONS)


def run(model, task: UnlearningTask, hp: HyperParameters) -> Iterator[tuple[float, Weights]]:
    """Yield the weights at each alpha. Memory: up to four copies of the parameters while they are trained."""
    settings = {name: value for name, value in vars(hp).items() if name != "alpha"}
    vector = task.cached("task_vector", settings, model, partial(trained_change, model, task, hp))
    parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}
    for alpha in hp.alpha:
        yield alpha, Weights(
            {name: parameters[name] - alpha * change.to(parameters[name].device) for name, change in vector.items()}
        )


def passes(model, task: UnlearningTask, hp: HyperParameters) -> tuple[int, int]:
    """Return the passes of the training run and of the loss before it."""
    count = _steps(task, hp) * task.passes(min(hp.batch_size, len(task.forget)))
    return 1 + count, count


def trained_change(model, task: UnlearningTask, hp: HyperParameters) -> dict[str, torch.Tensor]:
    """Return theta_F - theta of every trained parameter, shaped as stored. Leave the model unchanged."""
    own = ("batch_size", "lr", "warm_up", "trained", "dtype")
    training = ObjectiveSettings(steps=(_steps(task, hp),), **{name: getattr(hp, name) for name in own})
    forget = Side.of(task.forget.planted, task.ignored_token)
    training_steps = train_objective(
        model, _loss, forget, None, training, seed=task.seed, microbatch=task.microbatch,
        gradient_checkpointing=task.gradient_checkpointing,
    )  # fmt: skip
    ((_, trained),) = snapshots(model, training_steps)
    return {name: trained.values[name] - parameter.detach() for name, parameter in model.named_parameters()}


def _loss(model, reference, forget: Side, retain: None) -> torch.Tensor:
    return forget.losses(model)


def _steps(task: UnlearningTask, hp: HyperParameters) -> int:
    return hp.epochs * -(-len(task.forget) // hp.batch_size)
