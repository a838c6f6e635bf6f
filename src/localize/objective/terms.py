"""What several objectives share: settings, what is kept on retain rows, and bounded forms of a row's loss."""

from __future__ import annotations

from typing import Any

import torch

from tinymem.options import option, settings
from tinymem.training.objective import ObjectiveSettings
from tinymem.training.reference import Reference
from tinymem.training.step import Side

BETA_LENGTH = 50  # tokens: the row length at which scaling leaves beta as it is


def learning_rate(default: float = 1e-4, grid: tuple = (3e-5, 1e-4, 3e-4, 1e-3)) -> Any:
    """Return the option for the learning rate of an objective."""
    return option(default, "learning rate of AdamW", above=0.0, high=1e3, grid=grid)


def no_retain_weight() -> Any:
    """Return the option for the weight of the retain loss of an objective that needs no retain rows."""
    return option(0.0, "weight of the retain loss; 0: no retain rows", low=0.0)


@settings
class RetainSettings(ObjectiveSettings):
    """Unlearning by objective, with a choice of the retain loss"""

    retain_loss: str = option(
        "nll", "loss on the retain set: its token loss, or KL(before || after)", choices=("nll", "kl")
    )


@settings
class PreferenceSettings(RetainSettings):
    """Unlearning by objective, with a row's summed loss in a sigmoid"""

    beta: float = option(0.1, "b: how soon a row stops pushing; lower is later", above=0.0, grid=(0.03, 0.1, 0.3))
    beta_scaling: str = option(
        "length", f"length: b * {BETA_LENGTH} / T for a row of T tokens; none: b", choices=("length", "none")
    )


def with_retain(hp: RetainSettings, model, reference: Reference, retain: Side | None, values: torch.Tensor):
    """Return the values of forget rows and, with a retain set, those of its rows: losses or divergences per token."""
    if retain is None:
        return values
    return values, retain.losses(model) if hp.retain_loss == "nll" else divergence(model, reference, retain)


def divergence(model, reference: Reference, side: Side) -> torch.Tensor:
    """Return KL(before || after) of every predicted token's distribution in nats, (R, T - 1). Differentiable."""
    before, after = reference.logits(side).log_softmax(-1), side.logits(model).log_softmax(-1)
    return (before.exp() * (before - after)).sum(-1)


def cross_entropy(targets: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """Return the cross-entropy of distributions `targets` and of `logits`, both (..., vocabulary), in nats."""
    return -(targets * logits.log_softmax(-1)).sum(-1)


def one_hot(side: Side, vocabulary: int) -> torch.Tensor:
    """Return True at each row's predicted tokens, bool (R, T - 1, vocabulary)."""
    return torch.nn.functional.one_hot(side.targets, vocabulary).bool()


def rises(model, reference: Reference, side: Side) -> torch.Tensor:
    """Return by how much each row's summed loss has risen, (R,), in nats. Differentiable."""
    return side.row_sums(side.losses(model)) - reference.row_sums(side)


def preference(hp: PreferenceSettings, forget: Side, margins: torch.Tensor) -> torch.Tensor:
    """Return -(2 / b) log sigmoid(b * margin) of each row, (R,): it stops pushing where b * margin is large."""
    beta = hp.beta * BETA_LENGTH / forget.lengths if hp.beta_scaling == "length" else hp.beta
    return -2 / beta * torch.nn.functional.logsigmoid(beta * margins)
