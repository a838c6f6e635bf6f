"""BalancedSubnet (the study, section 4.3.2): a subnet that forgets the forget set and remembers the retain set.

Every MLP weight gets a score, and the weights with the lowest scores are masked out. SGD on the scores raises the loss
of the forget set and, at the same time, lowers that of the retain set.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import torch

from tinymem.errors import UserError
from tinymem.localize.learning import gradients, mean_weights, mixed_batches, natural_batches
from tinymem.localize.ranking import Masks, weight_ratio
from tinymem.localize.task import UnlearningTask
from tinymem.localize.weight.bounded import LOSS, TERMS, bounded_step, row_batches
from tinymem.localize.weight.edge_popup import MOMENTUM_HELP, ScoreOptimizer, learn_subnet, resolve_momentum
from tinymem.models.precision import PRECISION_HELP, PRECISIONS, autocast
from tinymem.options import option, settings
from tinymem.training.step import rows_per_side

ALIAS = "random_greedy"  # the study's flag
# The study states the ends of this range, and 0.7 for its best published runs.
LOSS_WEIGHTINGS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
resolve = resolve_momentum


@settings
class HyperParameters:
    """BalancedSubnet"""

    ratio: tuple[float, ...] = weight_ratio((0.3,), "share of each MLP matrix to drop", small=(0.05, 0.3))
    epochs: int = option(
        3, "passes over the larger of forget and retain set, each rounded up to whole batches; with --unlearn_share 0, "
        "over both sets as they are", low=1, grid=(1, 10, 20), small=(3,),
    )  # fmt: skip
    batch_size: int = option(64, "sequences per step", low=2)
    lr: float = option(0.1, "learning rate of the scores", above=0.0, high=1e3)
    momentum: float | None = option(None, MOMENTUM_HELP, low=0.0, below=1.0, large=0.0)
    weight_decay: float = option(5e-4, "weight decay of the scores", low=0.0, high=1e3, large=0.0)
    loss_weighting: float = option(
        0.7, "w: minimizes -(1 - w) * forget loss + w * retain loss", low=0.0, high=1.0, grid=LOSS_WEIGHTINGS
    )
    unlearn_share: float = option(
        0.25, "share of each batch taken from the forget set; 0: mix both sets, as in the study's code, which leaves "
        "many batches without a sequence to forget", low=0.0, below=1.0,
    )  # fmt: skip
    unlearn_loss_cap: float | None = option(
        None, "nats above which the forget loss stops pushing; just above ln(vocabulary) is enough", above=0.0
    )
    forget_term: str = option(
        LOSS, "what raises the forget loss: the loss itself, or a bounded term", choices=(LOSS, *TERMS),
        unrecorded=True,
    )  # fmt: skip
    dtype: str = option("auto", f"{PRECISION_HELP}; scores are float32", choices=PRECISIONS)

    def __post_init__(self) -> None:
        if not self.unlearn_share and self.forget_term != LOSS:
            raise UserError(f"--unlearn_share 0: only with --forget_term {LOSS}, not a bounded one")
        if self.unlearn_loss_cap is not None and self.forget_term != LOSS:
            raise UserError(
                f"--unlearn_loss_cap {self.unlearn_loss_cap}: only with --forget_term {LOSS}, not a bounded one"
            )


def learn(model, task: UnlearningTask, hp: HyperParameters, ratio: float) -> Masks:
    """Return the masks that BalancedSubnet learns for one ratio. Leave the model unchanged."""
    hp, generator = resolve(hp, model.num_parameters()), task.generator()
    optimizer = ScoreOptimizer(hp.lr, hp.momentum or 0.0, hp.weight_decay)
    count = _steps(hp, len(task.forget), len(task.retain))
    if hp.forget_term != LOSS:
        rows = task.watch.over(islice(row_batches(task, hp, generator), count), count)
        return learn_subnet(model, rows, bounded_step(model, task, hp), ratio, optimizer, generator)

    def step(sides: tuple[torch.Tensor, torch.Tensor], parameters: list[torch.nn.Parameter]) -> list[torch.Tensor]:
        tokens, weights = _weighted(model, task, hp, *sides)
        if not len(tokens):  # only sequences to forget, above the cap
            return [torch.zeros_like(parameter, requires_grad=False) for parameter in parameters]
        return gradients(model, task, tokens, weights, parameters, hp.dtype)

    mixed = task.watch.over(batches(task, hp, generator), count)
    return learn_subnet(model, mixed, step, ratio, optimizer, generator)


def batches(
    task: UnlearningTask, hp: HyperParameters, generator: torch.Generator
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Return batches (forget, retain) for `epochs` passes over the set that needs more steps; the other is cycled.

    With a share of 0, mix both sets for `epochs` passes; a side may then be empty.
    """
    if not hp.unlearn_share:
        return natural_batches(task, hp.batch_size, hp.epochs, generator)
    endless = mixed_batches(task, hp.batch_size, hp.unlearn_share, generator)
    return islice(endless, _steps(hp, len(task.forget), len(task.retain)))


def _steps(hp: HyperParameters, forget: int, retain: int) -> int:
    """Return the SGD steps of the whole run, for sets of these sizes."""
    if not hp.unlearn_share:
        return hp.epochs * -(-(forget + retain) // hp.batch_size)
    shares = rows_per_side(hp.batch_size, hp.unlearn_share)
    return hp.epochs * max(-(-total // share) for total, share in zip((forget, retain), shares))


def _weighted(
    model, task: UnlearningTask, hp: HyperParameters, forget: torch.Tensor, retain: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return both sides as one batch, with token-loss weights that make its loss -(1 - w) * L_u + w * L_r.

    Above the cap, the batch is the retain side alone, which may be empty.
    """
    weights = hp.loss_weighting * mean_weights(task, retain)
    if hp.unlearn_loss_cap is not None and len(forget):
        with autocast(model, hp.dtype):
            capped = task.mean_loss(model, forget) > hp.unlearn_loss_cap
        if capped:
            return retain, weights
    weights = torch.cat([(hp.loss_weighting - 1) * mean_weights(task, forget), weights])
    return torch.cat([forget, retain]), weights


def steps(model, task: UnlearningTask, hp: HyperParameters) -> int:
    """Return the SGD steps for all ratios."""
    return len(hp.ratio) * _steps(hp, len(task.forget), len(task.retain))
