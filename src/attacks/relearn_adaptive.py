"""Adaptive relearning: the attacker chooses learning rate and steps on memories of its own, within a KL budget.

The attacker trains on four fifths of its share of the forget set, in whole memories. For every budget, it keeps the
weights that bring back most of the last fifth. The budget bounds the drift on the retain set, so that the attacker may
not ruin the model.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, suppress

import torch

from tinymem.attacks.relearning import WeightTraining, memories_of, part_of, relearned, share_of
from tinymem.data.dataset import Artifacts, evenly_spaced
from tinymem.errors import NotFinite
from tinymem.localize.task import UnlearningTask
from tinymem.metrics.memorization import memorized
from tinymem.metrics.reference import Predictions
from tinymem.models.edit import Weights, applied
from tinymem.options import option, settings

FLAG = "--attack relearn_adaptive"
CUMULATIVE = True  # every budget takes the whole grid
CHOSEN_ON = 0.2  # the part of the attacker's share that it does not train on
ROWS = 64  # of the retain set, to measure the drift on


@settings
class HyperParameters(WeightTraining):
    """Adaptive relearning"""

    kl_budget: tuple[float, ...] = option(
        (0.01, 0.1, 1.0), "drift on the retain set that the attacker accepts, in nats per token", above=0.0,
        strength=True, small=(0.1,),
    )  # fmt: skip
    share: float = option(0.1, "share of the sequences to forget that the attacker has", above=0.0, high=1.0)
    lrs: tuple[float, ...] = option(
        (1e-5, 1e-4, 1e-3), "learning rates that the attacker tries", above=0.0, high=1e3, small=(1e-4, 1e-3)
    )
    steps: tuple[int, ...] = option(
        (5, 10, 30, 80), "numbers of steps that the attacker tries", low=1, small=(5, 10, 30)
    )


def seen(task: UnlearningTask, hp: HyperParameters) -> torch.Tensor:
    """Return the attacker's share, bool (F,)."""
    return share_of(task, hp.share)


def check(model, task: UnlearningTask, hp: HyperParameters) -> None:
    """Raise UserError for a task without clean sequences to retain."""
    task.clean_retain(FLAG)


def run(model, task: UnlearningTask, hp: HyperParameters) -> Iterator[tuple[float, Weights]]:
    """Yield for every budget the weights that bring back most within it; the present ones if none are."""
    clean = task.clean_retain(FLAG)
    mine = seen(task, hp)
    share, chosen_on = task.forget.select(mine), part_of(memories_of(task)[mine], CHOSEN_ON, task.seed)
    judged = share.select(chosen_on)
    tokens = share.planted if chosen_on.all() else share.planted[~chosen_on]  # all: the share is one memory
    before = Predictions(model, clean[evenly_spaced(len(clean), ROWS)], task.microbatch, task.ignored_token)
    best: dict[float, tuple[tuple[float, float], Weights]] = {}
    for lr in hp.lrs:
        training = relearned(model, task, tokens, tuple(sorted(set(hp.steps))), hp, lr, "--relearn_adaptive.lrs")
        with closing(training), suppress(NotFinite):  # training that diverges is within no budget
            for _, weights in training:
                with applied(model, weights):
                    score, drift = _score(model, task, judged), before.mean_kl(model)
                for budget in hp.kl_budget:
                    if drift <= budget and (budget not in best or score > best[budget][0]):
                        best[budget] = score, weights
    for budget in hp.kl_budget:
        yield budget, best[budget][1] if budget in best else Weights({})


def _score(model, task: UnlearningTask, judged: Artifacts) -> tuple[float, float]:
    """Return the share of sequences that come out, and the negative mean loss, which breaks ties."""
    flags = memorized(model, judged, task.continuation, task.microbatch, task.ignored_token)
    return flags.double().mean().item(), -task.mean_loss(model, judged.planted)
