"""Primal-dual unlearning (Entesari et al. 2025, arXiv 2506.05314): flatten the logits of forget rows, constrained.

The retain loss may rise by at most `slack`. Its weight grows with every step that violates this, and falls otherwise.
"""

from __future__ import annotations

import torch

from tinymem.localize.objective.terms import learning_rate
from tinymem.options import option, settings
from tinymem.training.objective import ObjectiveSettings


@settings
class HyperParameters(ObjectiveSettings):
    """Primal-dual unlearning"""

    lr: float = learning_rate()
    retain_weight: float = option(50.0, "weight of the retain loss at the start", above=0.0)
    slack: float = option(0.05, "nats by which the retain loss may rise", low=0.0, grid=(0.02, 0.05))
    dual_step: float = option(1.0, "step size of the retain loss's weight", low=0.0)
    dual_warm_up: int = option(10, "steps before the retain loss's weight starts to change", low=0)


def loss(hp: HyperParameters, model, reference, forget, retain):
    """Return (max - mean logit)^2 of every forget token, and by how much every retain token violates the constraint."""
    reference.state.setdefault("dual", torch.tensor(hp.retain_weight))
    logits = forget.logits(model)
    values = (logits.amax(-1) - logits.mean(-1)) ** 2
    return values, retain.losses(model) - reference.losses(retain) - hp.slack


def weights(hp: HyperParameters, reference) -> tuple[float, float]:
    """Return the weights of both losses at the next step."""
    return hp.forget_weight, reference.state["dual"].item()


def after_step(hp: HyperParameters, reference, steps: int, losses) -> None:
    """Let the retain loss's weight follow the violation."""
    if steps > hp.dual_warm_up:
        reference.state["dual"].add_(hp.dual_step * losses[1]).clamp_(min=0)
