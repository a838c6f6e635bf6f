"""The setting by which the runs of a method differ in how much they edit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

STRENGTHS = ("ratio", "steps", "rho", "alpha", "kl_budget")  # what methods call it; none has two of them


def strength_in(settings: Mapping[str, Any]) -> tuple[str, float] | None:
    """Return the name and the value of the strength among a method's settings; None where there is none, or no number."""
    name = next((name for name in STRENGTHS if name in settings), None)
    value = settings.get(name) if name else None
    return (name, value) if name and isinstance(value, (int, float)) else None


def with_strength(method: str, settings: Mapping[str, Any]) -> str:
    """Return a method's name, followed by the strength among its settings where there is one, such as "npo 50"."""
    strength = strength_in(settings)
    return f"{method} {strength[1]:g}" if strength else method
