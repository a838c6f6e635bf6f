"""The user's own files on a command line, as stored in records."""

from __future__ import annotations

import argparse

from tinymem.data.settings import BUILTIN, HUB
from tinymem.plugins import is_ours, is_plugin, load_plugin
from tinymem.records.sources import Source, source_of


def given_sources(arguments: argparse.Namespace) -> list[Source]:
    """Return the user's own files on the command line: text, token sets, and methods, attacks and metrics."""
    found, column = [], getattr(arguments, "text_column", None)
    for name in ("memorized", "random", "corpus", "plant", "factor_data"):
        in_column = column if name not in ("random", "factor_data") else None
        for place in _given(arguments, name):
            if place not in (HUB, BUILTIN):
                found.append(source_of(f"--{name}", place, in_column))
    for name in ("localization_method", "attack", "metrics", "attack_metrics"):
        for place in getattr(arguments, name, None) or ():
            module = load_plugin(place, f"--{name}") if is_plugin(place) else None
            if module and module.__file__ and not is_ours(module):
                found.append(source_of(f"--{name}", place if place.endswith(".py") else module.__file__))
    return found


def _given(arguments: argparse.Namespace, name: str) -> list[str]:
    """Return the distinct values of --FLAG and of every --METHOD.FLAG."""
    values = (value for flag, value in vars(arguments).items() if flag.rpartition(".")[2] == name)
    return list(dict.fromkeys(value for value in values if value is not None))
