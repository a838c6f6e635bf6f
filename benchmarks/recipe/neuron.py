"""Zero-Out, a loop over neurons; Integrated Gradients, a loop over layers, sequences and positions."""

from __future__ import annotations

from collections.abc import Iterable

import torch

BATCH = 128  # the study's


def mean_loss(model, sequences: torch.Tensor) -> float:
    """Return the mean token loss, computed in batches."""
    total = 0.0
    for batch in sequences.split(BATCH):
        total += model(batch, labels=batch).loss.item() * len(batch)
    return total / len(sequences)


def zero_out(model, sequences: torch.Tensor, neurons: Iterable[tuple[int, int]]) -> list[float]:
    """Return the rise in mean loss with each of these neurons (layer, index) at 0. sequences: int64 (rows, T)."""
    scores = []
    with torch.no_grad():
        before = mean_loss(model, sequences)
        for layer, neuron in neurons:

            def without(module, inputs):
                hidden = inputs[0].clone()
                hidden[..., neuron] = 0
                return (hidden,)

            handle = model.transformer.h[layer].mlp.c_proj.register_forward_pre_hook(without)
            scores.append(mean_loss(model, sequences) - before)
            handle.remove()
    return scores


def integrated_gradients(model, tokens: torch.Tensor, layer: int, position: int, steps: int) -> torch.Tensor:
    """Return the attribution of P(next token) at one position to each neuron of a layer, (inner_dim,).

    tokens: int64 (T,). The position's neurons are scaled from 1 / steps to 1, all scales in one batch.
    """
    scales = torch.arange(1, steps + 1, device=tokens.device)[:, None] / steps
    kept = {}

    def scale(module, inputs):
        hidden = inputs[0].detach().clone()
        kept["value"] = hidden[0, position].clone()
        kept["scaled"] = (scales * kept["value"]).requires_grad_()
        hidden[:, position] = kept["scaled"]
        return (hidden,)

    handle = model.transformer.h[layer].mlp.c_proj.register_forward_pre_hook(scale)
    logits = model(tokens.expand(steps, -1)).logits[:, position]
    handle.remove()
    probability = logits.softmax(-1)[:, tokens[position + 1]].sum()
    (gradient,) = torch.autograd.grad(probability, kept["scaled"])
    return kept["value"] * gradient.mean(0)
