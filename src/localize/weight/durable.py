"""Durable (Zhang et al. 2022, Neurotoxin, arXiv 2206.10341; the study, section 4.3.2): the weights that the unlearn
set pulls at hardest.

Neurotoxin hides a backdoor in the weights whose gradient is small, because those last; unlearning turns this round and
drops the weights whose gradient is large. The study ranks every MLP tensor by itself, matrices and biases alike.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from tinymem.errors import NotFinite
from tinymem.localize.edit import Scores, mlp_weights, weight_masks
from tinymem.localize.learning import frozen, gradients, mean_weights
from tinymem.localize.plan import Plan, Sizes, gradient_bytes, new_plan
from tinymem.localize.task import UnlearningTask
from tinymem.models.adapter import find_mlps
from tinymem.models.memory import Shape
from tinymem.options import check_options, option


@dataclass(frozen=True)
class HyperParameters:
    """Durable"""

    ratio: tuple[float, ...] = option((0.01,), "share of each MLP tensor to drop", above=0.0, below=1.0)

    __post_init__ = check_options


def score(model, task: UnlearningTask, hp: HyperParameters, ratio: float) -> Scores:
    """|gradient of the unlearn set's mean token loss| for every MLP weight and bias. Leaves the model as it was."""
    weights = mlp_weights(find_mlps(model))
    magnitudes = gradient_magnitudes(model, task, (weight.parameter for weight in weights.values()))
    return {name: weight.view(magnitude) for (name, weight), magnitude in zip(weights.items(), magnitudes)}


def gradient_magnitudes(model, task: UnlearningTask, parameters: Iterable[torch.nn.Parameter]) -> list[torch.Tensor]:
    """|d L_u / d parameter| for each parameter, float32, shaped as stored; entries that are not finite count as 0.
    NotFinite where all are.

    Gradients become scores one by one, so that a model in half precision never has all of both.
    """
    parameters, tokens = list(parameters), task.unlearn.planted
    with frozen(model, parameters):
        totals = gradients(model, task, tokens, mean_weights(task, tokens), parameters)
    if all(total.isfinite().logical_not_().all() for total in totals):
        raise NotFinite("none of its gradients is finite; use --dtype float32 or bfloat16")
    return [totals.pop(0).float().abs_().nan_to_num_(nan=0.0, posinf=0.0) for _ in parameters]


def plan(shape: Shape, sizes: Sizes, hp: HyperParameters) -> Plan:
    """One forward and backward pass over the unlearn set, or dropping, whichever has the higher peak."""

    def run(model) -> None:
        scores = score(model, sizes.task(sizes.gathered(sizes.unlearn)), hp, max(hp.ratio))
        weight_masks(find_mlps(model), scores, max(hp.ratio))

    return magnitudes_plan(shape, sizes, shape.peak(run, true=0.0), shape.mlp_entries)


def magnitudes_plan(shape: Shape, sizes: Sizes, peak: int, entries: int) -> Plan:
    """The plan of ranking so many entries by `gradient_magnitudes`, with this peak."""
    passes = sizes.passes(sizes.unlearn)
    gradients = gradient_bytes(shape, entries, passes)
    return new_plan(shape, peak, passes, passes, gradients=gradients, scores=4 * entries - gradients)
