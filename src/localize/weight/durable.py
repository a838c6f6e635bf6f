"""Durable (Zhang et al. 2022, Neurotoxin, arXiv 2206.10341; the study, section 4.3.2): the weights that the forget
set pulls at hardest.

Neurotoxin hides a backdoor in the weights whose gradient is small, because those last; unlearning turns this round and
drops the weights whose gradient is large. The study ranks every MLP tensor by itself, matrices and biases alike.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch

from tinymem.errors import NotFinite
from tinymem.localize.learning import all_finite, frozen, gradients, mean_weights
from tinymem.localize.ranking import WeightScores, weight_ratio
from tinymem.localize.task import UnlearningTask
from tinymem.models.adapter import find_mlps, mlp_weights
from tinymem.options import settings


@settings
class HyperParameters:
    """Durable"""

    ratio: tuple[float, ...] = weight_ratio((0.01,), "share of each MLP tensor to drop")


def score(model, task: UnlearningTask, hp: HyperParameters) -> WeightScores:
    """|gradient of the forget set's mean token loss| for every MLP weight and bias. Leaves the model as it was."""
    weights = mlp_weights(find_mlps(model))
    magnitudes = gradient_magnitudes(model, task, (weight.parameter for weight in weights.values()))
    return {name: weight.view(magnitude) for (name, weight), magnitude in zip(weights.items(), magnitudes)}


def gradient_magnitudes(model, task: UnlearningTask, parameters: Iterable[torch.nn.Parameter]) -> list[torch.Tensor]:
    """|d L_u / d parameter| for each parameter, float32, shaped as stored; entries that are not finite count as 0.
    NotFinite where some are and no other is left but zeros (those of tokens that do not occur).

    Gradients become scores one by one, so that a model in half precision never has all of both.
    """
    parameters, tokens = list(parameters), task.forget.planted
    with frozen(model, parameters):
        totals = gradients(model, task, tokens, mean_weights(task, tokens), parameters)
    complete = all_finite(totals)
    magnitudes = [totals.pop(0).float().abs_().nan_to_num_(nan=0.0, posinf=0.0) for _ in parameters]
    if not complete and not any(bool(magnitude.any()) for magnitude in magnitudes):
        raise NotFinite("none of its gradients is finite; use --dtype float32 or bfloat16")
    return magnitudes
