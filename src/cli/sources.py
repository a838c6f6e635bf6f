"""The user's own files on a command line, as records keep them."""

from __future__ import annotations

import argparse

from tinymem.data.settings import BUILTIN, HUB
from tinymem.plugins import is_plugin, load_plugin
from tinymem.records.sources import Source, source_of


def given_sources(arguments: argparse.Namespace) -> list[Source]:
    """Return the user's own files on the command line: text, token sets, and methods, attacks and metrics."""
    found, column = [], getattr(arguments, "text_column", None)
    for name in ("memorized", "random", "corpus", "plant"):
        place = getattr(arguments, name, None)
        if place is not None and place not in (HUB, BUILTIN):
            found.append(source_of(f"--{name}", place, column if name != "random" else None))
    for name in ("localization_method", "attack", "metrics", "attack_metrics"):
        for place in getattr(arguments, name, None) or ():
            if is_plugin(place) and (file := load_plugin(place, f"--{name}").__file__):
                found.append(source_of(f"--{name}", place if place.endswith(".py") else file))
    return found
