"""The registry of unlearning methods: one line each."""

from __future__ import annotations

from collections.abc import Sequence

from tinymem.errors import UserError
from tinymem.localize.curvature import kfac, kfade, ssd, svd, task_vector
from tinymem.localize.method import Method, find, method_of
from tinymem.localize.neuron import activations, hard_concrete, integrated_gradients, slimming, zero_out
from tinymem.localize.objective import (
    ascent_kl,
    ceu,
    dpo,
    gradient_ascent,
    gradient_difference,
    npo,
    obliviate,
    pdu,
    repselect,
    rmu,
    satimp,
    simnpo,
    undial,
    wga,
)
from tinymem.localize.weight import balanced_subnet, durable, durable_agg, greedy, obs, subnet

# The study's eleven in its order: neuron level, then weight level.
_STUDY = (
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
_OBJECTIVES = (
    gradient_ascent,
    gradient_difference,
    ascent_kl,
    npo,
    simnpo,
    dpo,
    undial,
    ceu,
    obliviate,
    wga,
    satimp,
    pdu,
    rmu,
    repselect,
)

METHODS = {method.name: method for method in map(method_of, (*_STUDY, *_OBJECTIVES, *_CURVATURE))}
STUDY = {name: method for name, method in METHODS.items() if method.module in _STUDY}
_FAMILIES = dict.fromkeys(method.family for method in METHODS.values())
GROUPS = {  # name -> its methods: the study's, and one group per family
    "study": tuple(STUDY),
    **{family: tuple(name for name, method in METHODS.items() if method.family == family) for family in _FAMILIES},
}


def find_methods(names: Sequence[str], flag: str = "--methods") -> list[Method]:
    """Return methods by name, by the study's alias, by group, or `all`; a file or dotted module is loaded as a method.

    The order is as given, without repeats. Raise UserError, naming `flag`, for an unknown method.
    """
    return find(names, METHODS, flag, GROUPS)


def find_localizer(name: str, ratio: str) -> tuple[Method, float]:
    """Return what `--update_mask NAME RATIO` asks for: one of the study's methods, and the ratio.

    Raise UserError for another method, and for a ratio that is not in (0, 1).
    """
    by_name = {method.alias: method for method in STUDY.values()} | STUDY
    if name not in by_name:
        raise UserError(f"--update_mask {name}: must be one of {', '.join(STUDY)}")
    try:
        share = float(ratio)
    except ValueError:
        share = 0.0
    if not 0 < share < 1:
        raise UserError(f"--update_mask {name} {ratio}: the ratio must be a number in (0, 1)")
    return by_name[name], share
