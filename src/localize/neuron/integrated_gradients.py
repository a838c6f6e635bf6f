"""Integrated Gradients (Dai et al. 2022, "knowledge neurons", arXiv 2104.08696, section 3.1; the study, section 4.3.1).

The score is a neuron's share in the probability of the memorized token at a position: its value there times the mean
gradient on the path from 0 to that value, with all neurons of the layer scaled together at that one position. Copies
of the positions are scaled, which changes nothing in the layers below: those run once for all layers.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from tinymem.errors import UserError, out_of_memory
from tinymem.localize.learning import frozen, loss_scale
from tinymem.localize.neuron.hidden import measured_positions, on_neurons, recorded, replayed, with_copies
from tinymem.localize.ranking import neuron_ratio
from tinymem.localize.task import UnlearningTask
from tinymem.models.adapter import MLP, find_blocks, find_mlps
from tinymem.models.checkpointing import checkpointed
from tinymem.models.losses import last_losses
from tinymem.models.windows import longest_row
from tinymem.options import option, settings

COPIES = 3  # most copies in one pass, in sequence lengths: attention covers every pair of them


ALIAS = "ig"  # the study's flag


@settings
class HyperParameters:
    """Integrated Gradients"""

    ratio: tuple[float, ...] = neuron_ratio()
    ig_steps: int = option(10, "m: steps from 0 to a neuron's value", low=1, grid=(1, 10, 20), small=(1,))


def score(model, task: UnlearningTask, hp: HyperParameters) -> list[torch.Tensor]:
    """Return the mean attribution of P(next token): float32 (inner_dim,) per layer.

    The attribution of a neuron of value h is h / m times the sum of its gradients at 1/m, 2/m .. 1 of the way, as in
    the paper. The mean is over every position of every forget sequence that predicts a measured token
    (`measured_positions`). Leave the model unchanged.
    """
    mlps, blocks = find_mlps(model), list(find_blocks(model)[1])
    totals = [torch.zeros(mlp.inner_dim, device=mlp.output.parameter.device) for mlp in mlps]
    with frozen(model), torch.enable_grad(), checkpointed(model, task.gradient_checkpointing):
        for tensors in _batches(model, task, hp.ig_steps):
            batch = [tensor.to(model.device) for tensor in tensors]
            outputs = _block_outputs(model, blocks, *batch)
            for layer, (mlp, total) in enumerate(zip(mlps, totals)):
                with replayed(dict(zip(blocks[:layer], outputs)), len(batch[0])):  # nothing changes below
                    attributions = _attributions(model, mlp, *batch)
                total += attributions
    return totals


def check(model, task: UnlearningTask, hp: HyperParameters) -> None:
    """Raise UserError for a model in which a copy of a token does not act as the token does.

    One sequence runs, with as many copies as in a pass of the method.
    """
    mlps = find_mlps(model)
    tokens, positions, _, scales = next(_batches(model, task, hp.ig_steps))
    tokens, positions = tokens[:1].to(model.device), positions[:1].repeat(1, len(scales)).to(model.device)

    def compare(layer: int, neurons: torch.Tensor) -> None:
        _check_copies(model, neurons, positions, tokens.shape[1])

    try:
        with frozen(model), torch.no_grad(), on_neurons(mlps, tokens.shape[1] + positions.shape[1], compare):
            last_losses(model, tokens.gather(1, positions + 1), **with_copies(model, tokens, positions))
    except (TypeError, ValueError, RuntimeError, AttributeError) as error:
        if out_of_memory(error):
            raise
        raise _unsuitable(model) from error


def _check_copies(model, neurons: torch.Tensor, positions: torch.Tensor, length: int) -> None:
    """Raise UserError unless the neurons at copies of `positions`, the places after `length`, are those of the tokens.

    neurons: (rows, places, inner_dim), not yet scaled; positions: (rows, copies). Further copies are not compared.
    """
    places = positions[:, :, None].to(neurons.device)
    expected = neurons.gather(1, places.expand(-1, -1, neurons.shape[2]))
    copies = neurons[:, length : length + positions.shape[1]]
    if torch.dist(copies, expected) > 0.05 * torch.linalg.vector_norm(expected):
        raise _unsuitable(model)


def _unsuitable(model) -> UserError:
    return UserError(
        f"{type(model).__name__}: no integrated gradients, as it does not take both position ids and a mask of pairs "
        "of tokens (models with ALiBi do not); use another method"
    )


def _batches(model, task: UnlearningTask, steps: int) -> Iterator[tuple[torch.Tensor, ...]]:
    """Yield tokens (B, T), positions (B, P), weights (B, P) and scales (S,) with B * (T + P * S) <= microbatch * T.

    Only a single sequence at a single scale may exceed that bound. The weights average over positions, sequences and
    steps; sequences with fewer than P measured positions are padded with weight 0. T + P * S is at most the model's
    `longest_row`; raise UserError if that is impossible.
    """
    tokens, measured = task.forget.planted.long(), measured_positions(task)
    length, count = tokens.shape[1], int(measured.sum(1).max())
    positions = (~measured).byte().argsort(dim=1, stable=True)[:, :count]
    weights = measured.gather(1, positions) / (measured.sum().clamp(min=1) * steps)
    scales = torch.arange(1, steps + 1) / steps
    most = longest_row(model.config)
    if most is not None and length + count > most:
        raise UserError(
            f"{type(model).__name__}: no integrated gradients of {count} tokens in rows of {length}, as its attention "
            f"holds only {most} in all; use shorter rows or another method"
        )
    sequences, at_once = _division(length, count, steps, task.microbatch, most)
    for rows in torch.arange(len(tokens)).split(sequences):
        for some in scales.split(at_once):
            yield tokens[rows], positions[rows], weights[rows], some


def _division(length: int, count: int, steps: int, microbatch: int, most: int | None) -> tuple[int, int]:
    """Return the numbers of sequences and scales in a batch, for sequences of `length` tokens, `count` measured.

    most: the tokens and copies that a row may have; None: any number.
    """
    copies = min(microbatch - 1, COPIES) * length
    copies = copies if most is None else min(copies, most - length)
    scales = min(steps, max(1, copies // max(count, 1)))
    return max(1, microbatch * length // (length + count * scales)), scales


def passes(model, task: UnlearningTask, hp: HyperParameters) -> tuple[int, int]:
    """Return the passes: per batch one forward, then per layer one from it upwards and one backward to it.

    Raise UserError for rows that are too long.
    """
    batches, layers = sum(1 for _ in _batches(model, task, hp.ig_steps)), len(find_mlps(model))
    return batches * (1 + layers), batches * layers


def _block_outputs(model, blocks: list[torch.nn.Module], tokens, positions, weights, scales) -> list:
    """Return each block's output for the unchanged sequences and copies of a batch."""
    positions = positions.repeat(1, len(scales))
    with torch.no_grad(), recorded(model, blocks[-1]) as outputs:
        last_losses(model, tokens.gather(1, positions + 1), **with_copies(model, tokens, positions))
    return [outputs[block] for block in blocks]


def _attributions(model, mlp: MLP, tokens, positions, weights, scales) -> torch.Tensor:
    """Return sum(weight * value * gradient of P(next token)) over sequences, positions and scales: (inner_dim,)."""
    length, count = tokens.shape[1], positions.shape[1]
    # Copy number s * P + p is the token at position p with its neurons multiplied by scale s.
    positions, weights = positions.repeat(1, len(scales)), weights.repeat(1, len(scales))
    factors = scales.repeat_interleave(count)[:, None]
    values: torch.Tensor
    scaled: torch.Tensor

    def scale(layer: int, neurons: torch.Tensor) -> torch.Tensor:
        nonlocal values, scaled
        values = neurons[:, length:]
        _check_copies(model, neurons, positions[:, :count], length)
        scaled = (values * factors.to(values)).requires_grad_()
        return torch.cat([neurons[:, :length], scaled], 1)

    with on_neurons([mlp], length + positions.shape[1], scale):
        inputs = with_copies(model, tokens, positions)
        probabilities = torch.exp(-last_losses(model, tokens.gather(1, positions + 1), **inputs))
        factor = loss_scale(model, weights)
        (gradient,) = torch.autograd.grad((probabilities * weights * factor).sum(), scaled)  # may run blocks again
    return (values.float() * gradient.float()).sum((0, 1)) / factor
