"""Group settings and runs: keys of settings, groups by key, and the settings that differ within a group."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from tinymem.records.table import scalar


def key_of(values: Mapping[str, Any]) -> tuple:
    """Return settings as a hashable key that does not depend on their order."""
    return tuple((name, scalar(values[name])) for name in sorted(values))


def grouped(items: Iterable[Any], key: Callable[[Any], Any]) -> list[list[Any]]:
    """Return the items grouped by key, in the order in which the keys first appear."""
    groups: dict[Any, list[Any]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return list(groups.values())


def differing(alternatives: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the settings whose values differ among the alternatives."""
    names = dict.fromkeys(name for settings in alternatives for name in settings)
    return [name for name in names if len({scalar(settings.get(name)) for settings in alternatives}) > 1]
