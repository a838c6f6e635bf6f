"""Durable (Zhang et al. 2022, Neurotoxin, arXiv 2206.10341; the study, section 4.3.2): the weights with the largest
gradients on the forget set.

Neurotoxin hides a backdoor in weights with small gradients, because those change little in later training. Unlearning
reverses this and drops the weights with large gradients. The study ranks each MLP matrix and bias separately.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch

from tinymem.errors import NotFinite
from tinymem.localize.learning import frozen, gradients, mean_weights
from tinymem.localize.ranking import WeightScores, weight_ratio
from tinymem.localize.task import UnlearningTask
from tinymem.models.adapter import find_mlps, mlp_weights
from tinymem.models.losses import remedy
from tinymem.options import settings
from tinymem.training.step import all_finite


@settings
class HyperParameters:
    """Durable"""

    ratio: tuple[float, ...] = weight_ratio((0.01,), "share of each MLP tensor to drop")


def score(model, task: UnlearningTask, hp: HyperParameters) -> WeightScores:
    """Return |gradient of the forget set's mean token loss| of every MLP weight and bias. Leave the model unchanged."""
    weights = mlp_weights(find_mlps(model))
    magnitudes = gradient_magnitudes(model, task, (weight.parameter for weight in weights.values()))
    return {name: weight.view(magnitude) for (name, weight), magnitude in zip(weights.items(), magnitudes)}


def gradient_magnitudes(model, task: UnlearningTask, parameters: Iterable[torch.nn.Parameter]) -> list[torch.Tensor]:
    """Return |d L_u / d parameter| of each parameter, float32, shaped as stored; entries not finite count as 0.
    Raise NotFinite if there are such entries and all others are 0 (as for tokens that do not occur).

    Gradients become scores one by one, so that a model in half precision never holds all of both in memory.
    """
    parameters, tokens = list(parameters), task.forget.planted
    with frozen(model, parameters):
        totals = gradients(model, task, tokens, mean_weights(task, tokens), parameters)
    complete = all_finite(totals)
    magnitudes = [totals.pop(0).float().abs_().nan_to_num_(nan=0.0, posinf=0.0) for _ in parameters]
    if not complete and not any(bool(magnitude.any()) for magnitude in magnitudes):
        raise NotFinite(f"none of the gradients is finite; {remedy(model)}")
    return magnitudes
