"""The unlearning methods: one line each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tinymem.localize.edit import neuron_masks, weight_masks
from tinymem.localize.weight import balanced_subnet


@dataclass(frozen=True)
class Method:
    """One method. Either it ranks (score, then drop for any ratio) or it learns the mask of each ratio.

    name, alias    the field's term, and the study's own flag
    level          "neuron" or "weight"
    hyper_parameters   frozen dataclass; its field `ratio` holds the default ratios
    score(model, task, hp, ratio) -> scores    ratio: the largest asked for; matters to `nested` rankings only
    drop(mlps, scores, ratio) -> masks
    learn(model, task, hp, ratio) -> masks
    nested         the ranking is built one weight after the other, as far as the largest ratio needs
    """

    name: str
    alias: str
    level: str
    hyper_parameters: type
    score: Callable | None = None
    drop: Callable | None = None
    learn: Callable | None = None
    nested: bool = False


_METHODS = (
    Method("balanced_subnet", "random_greedy", "weight", balanced_subnet.HyperParameters, learn=balanced_subnet.learn),
)

METHODS = {method.name: method for method in _METHODS}
ALIASES = {method.alias: method.name for method in _METHODS}
