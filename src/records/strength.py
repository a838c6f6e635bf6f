"""The setting by which the runs of a method differ in how much they edit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

STRENGTHS = ("ratio", "steps", "rho", "alpha", "kl_budget")  # its names in the registry; no method has two of them


def strength_in(settings: Mapping[str, Any]) -> tuple[str, float] | None:
    """Return the name and value of the strength among a method's settings; None if there is none or it is no number.

    In a method from a user's file, the strength may have another name if it is the only number among the settings.
    """
    numbers = {name: value for name, value in settings.items() if type(value) in (int, float)}  # excludes bool
    named = [name for name in STRENGTHS if name in settings]
    if not named and "code" in settings and len(numbers) == 1:
        named = list(numbers)
    return (named[0], numbers[named[0]]) if named and named[0] in numbers else None


def with_strength(method: str, settings: Mapping[str, Any]) -> str:
    """Return a method's name followed by its strength, if it has one, such as "npo 50"."""
    strength = strength_in(settings)
    return f"{method} {strength[1]:g}" if strength else method
