"""Activations (Chang et al. 2024, arXiv 2311.09060, section 3; the study, section 4.3.1): neurons ranked by activity.

The score is a neuron's mean activation while the model predicts the memorized tokens, times the norm of its output.
"""

from __future__ import annotations

from functools import partial

import torch

from tinymem.localize.learning import frozen
from tinymem.localize.neuron.hidden import measured_positions, on_neurons
from tinymem.localize.ranking import neuron_ratio
from tinymem.localize.task import UnlearningTask
from tinymem.models.adapter import find_mlps
from tinymem.options import settings

ALIAS = "act"  # the study's flag


@settings
class HyperParameters:
    """Activations"""

    ratio: tuple[float, ...] = neuron_ratio()


def score(model, task: UnlearningTask, hp: HyperParameters) -> list[torch.Tensor]:
    """Return |mean activation| * norm of the neuron's column of W_out: float32 (inner_dim,) per layer.

    The mean is over every position of every forget sequence that predicts a measured token (`measured_positions`).
    Leave the model unchanged.
    """
    mlps = find_mlps(model)
    sums = [torch.zeros(mlp.inner_dim, device=mlp.output.parameter.device) for mlp in mlps]
    positions = measured_positions(task)

    def add(chosen: torch.Tensor, layer: int, neurons: torch.Tensor) -> None:
        sums[layer] += neurons[:, :-1][chosen.to(neurons.device)].float().sum(0)

    with frozen(model), torch.no_grad():
        for tokens, chosen in zip(task.forget.planted.split(task.microbatch), positions.split(task.microbatch)):
            with on_neurons(mlps, tokens.shape[1], partial(add, chosen)):
                model(tokens.to(model.device).long(), use_cache=False, logits_to_keep=1)
    count = max(positions.sum().item(), 1)
    return [
        (total / count).abs() * torch.linalg.vector_norm(mlp.output.view().float(), dim=0)
        for mlp, total in zip(mlps, sums)
    ]
