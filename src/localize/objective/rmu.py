"""RMU (Li et al. 2024, arXiv 2403.03218): push activations of forget rows to a random direction; keep other rows'."""

from __future__ import annotations

import torch

from tinymem.errors import UserError
from tinymem.localize.objective.terms import learning_rate
from tinymem.models.adapter import find_blocks
from tinymem.options import option, settings
from tinymem.training.objective import ObjectiveSettings
from tinymem.training.step import Side


@settings
class HyperParameters(ObjectiveSettings):
    """RMU"""

    lr: float = learning_rate(3e-4)
    layer: int | None = option(None, "block whose outputs are steered, from 0; default: the middle one", low=0)
    scale: float = option(
        3.0, "length of the target, in median lengths of activations", above=0.0, grid=(1.0, 3.0, 10.0)
    )


def loss(hp: HyperParameters, model, reference, forget, retain):
    """Return the mean squared distance of every token's activation to its target: fixed, or that before the edit."""
    layer = middle(hp, model)
    target = reference.once("target", lambda: direction(hp, reference, forget, layer))
    values = ((forget.activations(model, layer) - target) ** 2).mean(-1)
    if retain is None:
        return values
    return values, ((retain.activations(model, layer) - reference.activations(retain, layer)) ** 2).mean(-1)


def check(model, task, hp: HyperParameters) -> None:
    """Raise UserError for a block that the model does not have."""
    middle(hp, model)


def middle(hp: HyperParameters, model) -> int:
    """Return the block to steer. Raise UserError for one that the model does not have."""
    blocks = len(find_blocks(model)[1])
    if hp.layer is not None and hp.layer >= blocks:
        raise UserError(f"--layer {hp.layer}: must be below {blocks}, the number of blocks of this model")
    return (blocks - 1) // 2 if hp.layer is None else hp.layer


def direction(hp: HyperParameters, reference, forget: Side, layer: int) -> torch.Tensor:
    """Return a random vector of non-negative entries, (width,), `scale` times as long as the first rows' activations.

    Its direction depends on the seed of the run alone.
    """
    whole = forget.whole or forget
    first = whole.select(whole.mask.any(1).nonzero().flatten()[:64].to(forget.tokens.device))
    usual = reference.activations(first, layer)[first.mask]
    vector = torch.rand(usual.shape[-1], generator=torch.Generator().manual_seed(reference.seed))
    return hp.scale * usual.norm(dim=-1).median() * (vector / vector.norm()).to(usual)
