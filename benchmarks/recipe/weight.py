"""Second-Order Unlearning with sequential updates, subnets with full sorts, Greedy."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache

import torch

from recipe.model import mlp_matrices, mlp_parameters


def new_inverses(model, block: int, damp: float) -> dict[str, torch.Tensor]:
    """Return the inverse Fisher matrix before the first gradient: I / damp, (blocks, block, block) per parameter."""
    identity = torch.eye(block, device=model.device) / damp
    return {
        name: identity.repeat(-(-parameter.numel() // block), 1, 1) for name, parameter in mlp_parameters(model).items()
    }


def add_gradients(model, inverses: dict[str, torch.Tensor], sequences: torch.Tensor, number: int) -> None:
    """Update every block with the gradient of each sequence, (rows, T), by rank one. number: gradients in all."""
    for tokens in sequences.split(1):
        model.zero_grad()
        model(tokens, labels=tokens).loss.backward()
        for name, parameter in mlp_parameters(model).items():
            inverse = inverses[name]
            gradient = _blocks(_out_in(name, parameter.grad), inverse.shape[1])
            moved = torch.einsum("bij,bj->bi", inverse, gradient)
            scale = number + torch.einsum("bi,bi->b", gradient, moved)
            inverse -= torch.einsum("bi,bj->bij", moved, moved) / scale[:, None, None]


def obs_scores(model, inverses: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return w^2 / (2 [F^-1]_ii), (out, in) per parameter."""
    scores = {}
    for name, parameter in mlp_parameters(model).items():
        weight = _out_in(name, parameter.detach())
        diagonal = inverses[name].diagonal(dim1=1, dim2=2).flatten()[: weight.numel()]
        scores[name] = weight**2 / (2 * diagonal.view(weight.shape))
    return scores


@cache
def _function() -> type:
    """Return the autograd function. Made on first use: scripts answer --help without loading torch."""

    class Subnet(torch.autograd.Function):
        """The mask of the highest scores; the gradient passes straight through."""

        @staticmethod
        def forward(context, scores, dropped):
            mask = torch.ones_like(scores).flatten()
            _, order = scores.flatten().sort()
            mask[order[:dropped]] = 0
            return mask.view(scores.shape)

        @staticmethod
        def backward(context, gradient):
            return gradient, None

    return Subnet


def new_subnet(model, scores: dict[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], torch.optim.SGD]:
    """Return scores to learn, by the names of the MLP matrices, and the study's optimizer. The model is frozen."""
    model.requires_grad_(False)
    scores = {name: score.clone().requires_grad_() for name, score in scores.items()}
    return scores, torch.optim.SGD(scores.values(), lr=0.1, momentum=0.9, weight_decay=5e-4)


def subnet_step(
    model, scores: dict[str, torch.Tensor], optimizer: torch.optim.SGD, ratio: float, sides: Iterable[tuple]
) -> None:
    """Take a step. sides: (factor, tokens) for each part of the loss; the parts add up."""
    optimizer.zero_grad()
    loss = 0.0
    for factor, tokens in sides:
        edited = {
            name: matrix * _function().apply(scores[name].abs(), round(ratio * matrix.numel()))
            for name, matrix in mlp_matrices(model).items()
        }
        output = torch.func.functional_call(model, edited, (tokens,), {"labels": tokens})
        loss = loss + factor * output.loss
    loss.backward()
    optimizer.step()


def greedy_step(model, forget: torch.Tensor, retain: torch.Tensor) -> tuple[str, int]:
    """Zero the MLP entry with the largest weight * gradient; return its name and its flat index as stored."""
    tokens = torch.cat([forget, retain])
    labels = torch.tensor([1.0] * len(forget) + [-1.0] * len(retain), device=tokens.device)
    logits = model(tokens).logits[:, :-1]
    losses = torch.nn.functional.cross_entropy(logits.transpose(1, 2), tokens[:, 1:], reduction="none").mean(1)
    model.zero_grad()
    (-len(tokens) * labels * losses).mean().backward()
    best, place = -float("inf"), ("", 0)
    for name, parameter in mlp_parameters(model).items():
        gain = (parameter.detach() * parameter.grad).flatten()
        index = int(gain.argmax())
        if gain[index] > best:
            best, place = float(gain[index]), (name, index)
    with torch.no_grad():
        mlp_parameters(model)[place[0]].view(-1)[place[1]] = 0
    return place


def _out_in(name: str, tensor: torch.Tensor) -> torch.Tensor:
    return tensor.T if name.endswith("weight") else tensor


def _blocks(tensor: torch.Tensor, size: int) -> torch.Tensor:
    flat = tensor.flatten()
    return torch.nn.functional.pad(flat, (0, -len(flat) % size)).view(-1, size)
