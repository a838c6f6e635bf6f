"""The registry of unlearning methods: one line each."""

from __future__ import annotations

from collections.abc import Sequence

from tinymem.localize.curvature import kfac, kfade, ssd, svd, task_vector
from tinymem.localize.method import Method, find, method_of
from tinymem.localize.neuron import activations, hard_concrete, integrated_gradients, slimming, zero_out
from tinymem.localize.weight import balanced_subnet, durable, durable_agg, greedy, obs, subnet

# The study's order: neuron level, then weight level.
_MODULES = (
    zero_out,
    activations,
    integrated_gradients,
    slimming,
    hard_concrete,
    greedy,
    durable,
    durable_agg,
    obs,
    subnet,
    balanced_subnet,
)
_CURVATURE = (kfac, svd, kfade, ssd, task_vector)

METHODS = {method.name: method for method in map(method_of, (*_MODULES, *_CURVATURE))}


def find_methods(names: Sequence[str], flag: str = "--methods") -> list[Method]:
    """Return methods by name, by the study's alias, or `all`; a file or dotted module is loaded as its own method.

    The order is as given, without repeats. Raise UserError, naming `flag`, for an unknown method.
    """
    return find(names, METHODS, flag)
