"""The registry of attacks on weights: one line each. An attack is a method with a function `attack` (see method.py)."""

from __future__ import annotations

from collections.abc import Sequence

from tinymem.attacks import quantize
from tinymem.localize.method import Method, find, method_of

ATTACKS = {attack.name: attack for attack in map(method_of, (quantize,))}


def find_attacks(names: Sequence[str], flag: str = "--attack") -> list[Method]:
    """Return attacks by name, or `all`; a file or dotted module is loaded. Raise UserError for an unknown attack."""
    return find(names, ATTACKS, flag)
