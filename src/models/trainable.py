"""The parameters of a model that collect gradients, and a context that restores the model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch


def all_but_embeddings(model) -> list[torch.nn.Parameter]:
    """Return every parameter but those of the embeddings and the output layer.

    The output layer, often tied to the embeddings, gets a gradient in every row at every step, and Adam scales all rows
    alike: tokens absent from the sequences would soon be ruled out, at the cost of all other text.
    """
    tables = [module.weight for module in model.modules() if isinstance(module, torch.nn.Embedding)]
    tables.extend(model.get_output_embeddings().parameters())
    left_alone = set(map(id, tables))
    return [p for p in model.parameters() if id(p) not in left_alone]


def gradient_of(tensor: torch.Tensor) -> torch.Tensor:
    """Return the gradient that a backward pass has left on a tensor. Raise ValueError if it has left none."""
    if tensor.grad is None:
        raise ValueError(f"no backward pass has reached this tensor of shape {tuple(tensor.shape)}")
    return tensor.grad


def train_only(model, parameters: Iterable[torch.nn.Parameter]) -> None:
    """Let only these parameters collect gradients."""
    model.requires_grad_(False)
    for parameter in parameters:
        parameter.requires_grad_(True)


@contextmanager
def frozen(model, trainable: Iterable[torch.nn.Parameter] = ()) -> Iterator[None]:
    """Keep the model in evaluation mode within the block, with gradients only for the `trainable` parameters.

    Modes, `requires_grad` and gradients, with their type, are restored on leaving, even after an error.
    """
    trainable = list(trainable)
    modes = [(module, module.training) for module in model.modules()]
    before = [(p, p.requires_grad, p.grad, p.grad_dtype) for p in model.parameters()]
    train_only(model.eval(), trainable)
    for parameter in trainable:
        parameter.grad = None
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
        for parameter, required, gradient, kind in before:
            if parameter.grad_dtype != kind:
                parameter.grad, parameter.grad_dtype = None, kind
            parameter.requires_grad_(required).grad = gradient
