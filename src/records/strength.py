"""The setting by which the runs of a method differ in how much they edit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

USUAL = "ratio"  # the strength of methods in users' files, as far as they have one


def strength_in(method: str, settings: Mapping[str, Any]) -> tuple[str, float] | None:
    """Return the name and the value of a method's strength; None where there is none, or no number."""
    from tinymem.localize.registry import METHODS  # here, since training scripts also draw and would start more slowly

    known = METHODS.get(method)
    name = known.strength if known else USUAL
    value = settings.get(name) if name else None
    return (name, value) if name and isinstance(value, (int, float)) else None
