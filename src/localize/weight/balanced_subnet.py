"""BalancedSubnet (the study, section 4.3.2): a subnet that forgets the unlearn set and keeps the retain set.

Every MLP weight gets a score; the weights with the lowest scores are masked out; SGD on the scores raises the loss of
the unlearn set and lowers that of the retain set at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice

import torch

from tinymem.localize.edit import Masks
from tinymem.localize.learning import endless_batches, gradients, mean_weights
from tinymem.localize.plan import Plan, Sizes
from tinymem.localize.task import UnlearningTask
from tinymem.localize.weight.edge_popup import ScoreOptimizer, learn_subnet, resolve, subnet_plan
from tinymem.models.memory import Shape
from tinymem.models.precision import MEANING, PRECISIONS, autocast
from tinymem.options import check_options, option


@dataclass(frozen=True)
class HyperParameters:
    """BalancedSubnet"""

    ratio: tuple[float, ...] = option((0.3,), "share of each MLP matrix to drop", above=0.0, below=1.0)
    epochs: int = option(3, "passes over the larger of unlearn and retain set", low=1)
    batch_size: int = option(64, "sequences a step", low=2)
    lr: float = option(0.1, "learning rate of the scores", above=0.0)
    momentum: float | None = option(
        None, "momentum of the scores; not given: 0.9, or 0 from 1e9 parameters on, to save memory", low=0.0, below=1.0
    )
    weight_decay: float = option(5e-4, "weight decay of the scores", low=0.0)
    loss_weighting: float = option(0.7, "w: minimises -(1 - w) * unlearn loss + w * retain loss", low=0.0, high=1.0)
    unlearn_share: float = option(0.25, "share of each batch taken from the unlearn set", above=0.0, below=1.0)
    unlearn_loss_cap: float | None = option(
        None, "unlearn loss in nats above which it stops pushing; just above ln(vocabulary) is enough", above=0.0
    )
    dtype: str = option("auto", f"{MEANING}; scores are float32", choices=PRECISIONS)

    __post_init__ = check_options


def learn(model, task: UnlearningTask, hp: HyperParameters, ratio: float) -> Masks:
    """The mask that BalancedSubnet learns for one ratio. Leaves the model as it was."""
    hp, generator = resolve(hp, model.num_parameters()), task.generator()

    def step(sides: tuple[torch.Tensor, torch.Tensor], parameters: list[torch.nn.Parameter]) -> list[torch.Tensor]:
        return gradients(model, task, *_weighted(model, task, hp, *sides), parameters, hp.dtype)

    batches = mixed_batches(task, hp.batch_size, hp.unlearn_share, hp.epochs, generator)
    optimizer = ScoreOptimizer(hp.lr, hp.momentum, hp.weight_decay)
    return learn_subnet(model, batches, step, ratio, optimizer, generator)


def _weighted(
    model, task: UnlearningTask, hp: HyperParameters, unlearn: torch.Tensor, retain: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Both sides as one batch, and the weights of their token losses that make it -(1 - w) * L_u + w * L_r."""
    weights = hp.loss_weighting * mean_weights(task, retain)
    if hp.unlearn_loss_cap is not None:
        with autocast(model, hp.dtype):
            capped = task.mean_loss(model, unlearn) > hp.unlearn_loss_cap
        if capped:
            return retain, weights
    weights = torch.cat([(hp.loss_weighting - 1) * mean_weights(task, unlearn), weights])
    return torch.cat([unlearn, retain]), weights


def mixed_batches(
    task: UnlearningTask, batch_size: int, unlearn_share: float, epochs: int, generator: torch.Generator
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Batches of unlearn and retain sequences; never an empty side, the smaller set is cycled."""
    sides, shares = (task.unlearn.planted, task.retain), _shares(batch_size, unlearn_share)
    steps = max(-(-len(tokens) // size) for tokens, size in zip(sides, shares))
    batches = (endless_batches(tokens, size, generator) for tokens, size in zip(sides, shares))
    return islice(zip(*batches), epochs * steps)


def _shares(batch_size: int, unlearn_share: float) -> tuple[int, int]:
    """Unlearn and retain sequences of a batch."""
    unlearn = min(max(1, round(unlearn_share * batch_size)), batch_size - 1)
    return unlearn, batch_size - unlearn


def cost(shape: Shape, sizes: Sizes, hp: HyperParameters) -> Plan:
    """A forward and backward pass over the larger set, and as often as need be the other, for each epoch and ratio."""
    shares, totals = _shares(hp.batch_size, hp.unlearn_share), (sizes.unlearn, sizes.retain)
    batch = sum(map(min, shares, totals))
    rows = max(2, sizes.gathered(batch))
    once = replace(hp, epochs=1, batch_size=rows)

    def step(model) -> None:
        learn(model, sizes.task(*_shares(rows, hp.unlearn_share)), once, max(hp.ratio))

    steps = hp.epochs * max(-(-total // share) for total, share in zip(totals, shares))
    return subnet_plan(shape, sizes, hp, step, batch, steps)
