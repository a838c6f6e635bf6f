"""The registry of attacks, one line each: methods with a function `attack`, `elicit` or `run` (method.py)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from tinymem.attacks import (
    context_shift,
    interpolate,
    logit_lens,
    prefix_shift,
    prefix_shorten,
    prune,
    quantize,
    relearn,
    relearn_adaptive,
    relearn_all,
    relearn_clean,
    sampling,
    similar_tokens,
    soft_prompt,
    weight_noise,
)
from tinymem.localize.method import Method, find, method_of

# Attacks on the weights, by training, on prompts, and inside the model.
_MODULES = (
    quantize,
    weight_noise,
    prune,
    interpolate,
    relearn,
    relearn_clean,
    relearn_all,
    relearn_adaptive,
    prefix_shift,
    prefix_shorten,
    context_shift,
    similar_tokens,
    sampling,
    soft_prompt,
    logit_lens,
)

ATTACKS = {attack.name: attack for attack in map(method_of, _MODULES)}
FULL, SMALL = "full", "small"
BUDGETS = (FULL, SMALL)


def find_attacks(names: Sequence[str], flag: str = "--attack") -> list[Method]:
    """Return attacks by name, or `all`; a file or dotted module is loaded. Raise UserError for an unknown attack."""
    return find(names, ATTACKS, flag)


def budget(attack: Method, size: str) -> dict[str, Any]:
    """Return the defaults that a budget changes in an attack: none, or for SMALL the values that its settings declare.

    A small budget is for large models: one strength, fewer steps, one draw.
    """
    declared = {field: field.metadata.get(SMALL) for field in fields(attack.hyper_parameters) if size == SMALL}
    return {
        field.name: values if isinstance(field.default, tuple) else values[0]
        for field, values in declared.items()
        if values is not None
    }
