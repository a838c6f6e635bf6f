"""The attacks on weights: one line each. An attack is written like a method, with a function `attack` (see method.py)."""

from __future__ import annotations

from collections.abc import Sequence

from tinymem.attacks import quantize
from tinymem.localize.method import Method, find, method_of

ATTACKS = {attack.name: attack for attack in map(method_of, (quantize,))}


def find_attacks(names: Sequence[str], flag: str = "--attack") -> list[Method]:
    """Return attacks by name, or `all`; a file or dotted module stands for its own. Raise UserError for another one."""
    return find(names, ATTACKS, flag)
