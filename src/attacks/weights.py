"""Shared part of attacks on weights that change every linear layer alike."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from tinymem.models.adapter import Weight, linear_weights
from tinymem.models.edit import Lazy, Weights


def changed(model, change: Callable[[str, torch.Tensor], torch.Tensor]) -> Weights:
    """Return the edit that changes all linear layers except the output layer, one at a time.

    change(name, matrix) returns the new matrix; matrices are (out, in) however they are stored.
    """
    output = model.get_output_embeddings()

    def stored(name: str, weight: Weight) -> torch.Tensor:
        return weight.view(change(name, weight.view()))

    weights = {name: weight for name, weight in linear_weights(model).items() if weight.parameter is not output.weight}
    return Weights(Lazy({name: partial(stored, name, weight) for name, weight in weights.items()}))
