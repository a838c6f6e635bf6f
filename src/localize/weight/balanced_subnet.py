"""BalancedSubnet (the study, section 4.3.2): a subnet that forgets the unlearn set and keeps the retain set.

Every MLP weight gets a score; the weights with the lowest scores are masked out; SGD on the scores raises the loss of
the unlearn set and lowers that of the retain set at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch

from tinymem.localize.edit import Masks
from tinymem.localize.task import UnlearningTask
from tinymem.localize.weight.edge_popup import ScoreOptimizer, learn_subnet
from tinymem.models.losses import counted, token_losses
from tinymem.options import check_options, option


@dataclass(frozen=True)
class HyperParameters:
    """BalancedSubnet"""

    ratio: tuple[float, ...] = option((0.3,), "share of each MLP matrix to drop", above=0.0, below=1.0)
    epochs: int = option(5, "passes over the larger of unlearn and retain set", low=1)
    batch_size: int = option(64, "sequences a step", low=2)
    lr: float = option(0.1, "learning rate of the scores", above=0.0)
    momentum: float = option(0.9, "momentum of the scores; 0 saves memory", low=0.0, below=1.0)
    weight_decay: float = option(5e-4, "weight decay of the scores", low=0.0)
    loss_weighting: float = option(0.7, "w: minimises -(1 - w) * unlearn loss + w * retain loss", low=0.0, high=1.0)
    unlearn_share: float = option(0.25, "share of each batch taken from the unlearn set", above=0.0, below=1.0)
    unlearn_loss_cap: float | None = option(
        None, "unlearn loss in nats above which it stops pushing; just above ln(vocabulary) is enough", above=0.0
    )

    __post_init__ = check_options


def learn(model, task: UnlearningTask, hp: HyperParameters, ratio: float) -> Masks:
    """The mask that BalancedSubnet learns for one ratio. Leaves the model as it was."""
    steps = (
        partial(_backward, model, task, hp, unlearn, retain)
        for unlearn, retain in mixed_batches(task, hp.batch_size, hp.unlearn_share, hp.epochs)
    )
    optimizer = ScoreOptimizer(hp.lr, hp.momentum, hp.weight_decay)
    return learn_subnet(model, steps, ratio, optimizer, task.generator())


def _backward(model, task: UnlearningTask, hp: HyperParameters, unlearn: torch.Tensor, retain: torch.Tensor) -> None:
    """Gradients of -(1 - w) * L_u + w * L_r, both sides in the same forward passes."""
    tokens = torch.cat([unlearn, retain]).to(model.device)
    mask = counted(tokens, task.ignored_token)
    factors = torch.empty(len(tokens), 1, device=model.device)
    factors[: len(unlearn)] = -(1 - hp.loss_weighting) / mask[: len(unlearn)].sum()
    factors[len(unlearn) :] = hp.loss_weighting / mask[len(unlearn) :].sum()
    if hp.unlearn_loss_cap is not None:
        with torch.no_grad():
            if task.mean_loss(model, unlearn) > hp.unlearn_loss_cap:
                factors[: len(unlearn)] = 0
    for part in torch.arange(len(tokens)).split(task.microbatch):
        (token_losses(model, tokens[part]) * mask[part] * factors[part]).sum().backward()


def mixed_batches(
    task: UnlearningTask, batch_size: int, unlearn_share: float, epochs: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Batches of unlearn and retain sequences; never an empty side, the smaller set is cycled."""
    unlearn_size = min(max(1, round(unlearn_share * batch_size)), batch_size - 1)
    sides = ((task.unlearn.planted, unlearn_size), (task.retain, batch_size - unlearn_size))
    steps = max(-(-len(tokens) // size) for tokens, size in sides)
    generator = task.generator()
    streams = [_cycle(tokens, size, generator) for tokens, size in sides]
    for _ in range(epochs * steps):
        yield tuple(next(stream) for stream in streams)


def _cycle(tokens: torch.Tensor, size: int, generator: torch.Generator) -> Iterator[torch.Tensor]:
    """Batches of `size` rows for ever, each pass over the rows in a new order; a pass may end inside a batch."""
    order = torch.empty(0, dtype=torch.long)
    while True:
        while len(order) < size:
            order = torch.cat([order, torch.randperm(len(tokens), generator=generator)])
        yield tokens[order[:size]]
        order = order[size:]
