"""The unlearning methods: one line each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tinymem.localize.edit import Masks, neuron_masks, weight_masks
from tinymem.localize.neuron import activations, hard_concrete, integrated_gradients, slimming, zero_out
from tinymem.localize.task import UnlearningTask
from tinymem.localize.weight import balanced_subnet, durable, durable_agg, edge_popup, greedy, obs, subnet
from tinymem.models.adapter import find_mlps


@dataclass(frozen=True)
class Method:
    """One method. Either it ranks (score, then drop for any ratio) or it learns the mask of each ratio.

    name, alias    the field's term, and the study's own flag
    level          "neuron" or "weight"
    hyper_parameters   frozen dataclass; its field `ratio` holds the default ratios
    cost(shape, sizes, hp) -> plan: memory and passes, see tinymem.localize.plan
    score(model, task, hp, ratio) -> scores    ratio: the largest asked for; matters to `nested` rankings only
    drop(mlps, scores, ratio) -> masks
    learn(model, task, hp, ratio) -> masks
    resolve(hp, parameters) -> hp with the defaults that depend on the model's size
    nested         the ranking is built one weight after the other, as far as the largest ratio needs
    estimate(model, task, hp) -> seconds that scoring will take, found by timing a part; of the expensive ones
    """

    name: str
    alias: str
    level: str
    hyper_parameters: type
    cost: Callable
    score: Callable | None = None
    drop: Callable | None = None
    learn: Callable | None = None
    resolve: Callable = lambda hp, parameters: hp
    nested: bool = False
    estimate: Callable | None = None

    def masks(self, model, task: UnlearningTask, hp: Any, ratio: float) -> Masks:
        """The masks for one ratio, from nothing. Leaves the model as it was."""
        if self.learn is not None:
            return self.learn(model, task, hp, ratio)
        return self.drop(find_mlps(model), self.score(model, task, hp, ratio), ratio)


# The study's order: neuron level, then weight level.
_METHODS = (
    Method(
        "zero_out",
        "zero",
        "neuron",
        zero_out.HyperParameters,
        cost=zero_out.cost,
        score=zero_out.score,
        drop=neuron_masks,
        estimate=zero_out.estimate,
    ),
    Method(
        "activations",
        "act",
        "neuron",
        activations.HyperParameters,
        cost=activations.cost,
        score=activations.score,
        drop=neuron_masks,
    ),
    Method(
        "integrated_gradients",
        "ig",
        "neuron",
        integrated_gradients.HyperParameters,
        cost=integrated_gradients.cost,
        score=integrated_gradients.score,
        drop=neuron_masks,
    ),
    Method(
        "slimming",
        "slim",
        "neuron",
        slimming.HyperParameters,
        cost=slimming.cost,
        score=slimming.score,
        drop=neuron_masks,
    ),
    Method(
        "hard_concrete",
        "hc",
        "neuron",
        hard_concrete.HyperParameters,
        cost=hard_concrete.cost,
        score=hard_concrete.score,
        drop=neuron_masks,
    ),
    Method(
        "greedy",
        "greedy",
        "weight",
        greedy.HyperParameters,
        cost=greedy.cost,
        score=greedy.score,
        drop=greedy.drop,
        nested=True,
    ),
    Method(
        "durable",
        "durable",
        "weight",
        durable.HyperParameters,
        cost=durable.cost,
        score=durable.score,
        drop=weight_masks,
    ),
    Method(
        "durable_agg",
        "durable_agg",
        "weight",
        durable_agg.HyperParameters,
        cost=durable_agg.cost,
        score=durable_agg.score,
        drop=durable_agg.drop,
    ),
    Method(
        "obs",
        "obs",
        "weight",
        obs.HyperParameters,
        cost=obs.cost,
        score=obs.score,
        drop=weight_masks,
        estimate=obs.estimate,
    ),
    Method(
        "subnet",
        "random",
        "weight",
        subnet.HyperParameters,
        cost=subnet.cost,
        learn=subnet.learn,
        resolve=edge_popup.resolve,
    ),
    Method(
        "balanced_subnet",
        "random_greedy",
        "weight",
        balanced_subnet.HyperParameters,
        cost=balanced_subnet.cost,
        learn=balanced_subnet.learn,
        resolve=edge_popup.resolve,
    ),
)

METHODS = {method.name: method for method in _METHODS}
ALIASES = {method.alias: method.name for method in _METHODS}  # for some the study's flag is the name
