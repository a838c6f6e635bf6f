"""The unlearning methods: one line each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from tinymem.errors import UserError
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
    plan(shape, sizes, hp) -> Plan: memory and passes, see tinymem.localize.plan
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
    plan: Callable
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


def _method(module: ModuleType, alias: str, level: str, **own: Any) -> Method:
    """A method named like its module, made of what the module defines; `drop` is the level's where it defines none."""
    parts = {part: getattr(module, part) for part in ("score", "drop", "learn", "estimate") if hasattr(module, part)}
    assert ("score" in parts) != ("learn" in parts), f"{module.__name__} must define either score or learn"
    if "score" in parts:
        parts.setdefault("drop", neuron_masks if level == "neuron" else weight_masks)
    name = module.__name__.rpartition(".")[2]
    return Method(name, alias, level, module.HyperParameters, plan=module.plan, **parts, **own)


# The study's order: neuron level, then weight level.
_METHODS = (
    _method(zero_out, "zero", "neuron"),
    _method(activations, "act", "neuron"),
    _method(integrated_gradients, "ig", "neuron"),
    _method(slimming, "slim", "neuron"),
    _method(hard_concrete, "hc", "neuron"),
    _method(greedy, "greedy", "weight", nested=True),
    _method(durable, "durable", "weight"),
    _method(durable_agg, "durable_agg", "weight"),
    _method(obs, "obs", "weight"),
    _method(subnet, "random", "weight", resolve=edge_popup.resolve),
    _method(balanced_subnet, "random_greedy", "weight", resolve=edge_popup.resolve),
)

METHODS = {method.name: method for method in _METHODS}
ALIASES = {method.alias: method.name for method in _METHODS}  # for some the study's flag is the name


def find_methods(names: Sequence[str], flag: str = "--methods") -> list[str]:
    """Names or the study's aliases, or all, as names in the order given. UserError, naming `flag`, for an unknown one."""
    found = list(METHODS) if list(names) == ["all"] else [ALIASES.get(name, name) for name in names]
    for name in found:
        if name not in METHODS:
            raise UserError(f"{flag} {name}: must be one of {', '.join(METHODS)}, or all")
    return list(dict.fromkeys(found))
