"""The output of --list: every mitigation, metric and attack that a flag accepts, one line each."""

from __future__ import annotations

import sys
from collections.abc import Iterator

from tinymem.attacks.registry import ATTACKS
from tinymem.localize.registry import METHODS
from tinymem.metrics.registry import METRICS
from tinymem.regularizers.registry import REGULARIZERS
from tinymem.training.finetune import FT_DATA

Line = tuple[str, str, str, str]  # kind, name, flag, meaning


def listed() -> Iterator[Line]:
    """Yield a line per regularizer, fine-tuning, unlearning method, metric and attack, in the registries' order."""
    for entry in REGULARIZERS:
        yield "regularizer", entry.name, f"--{entry.flags[0]}", _first(sys.modules[entry.settings.__module__].__doc__)
    for name, meaning in FT_DATA.items():
        yield "fine-tuning", name, f"--ft_data {name}", meaning
    for method in METHODS.values():
        yield "unlearning", method.name, f"--localization_method {method.name}", _first(method.module.__doc__)
    for metric in METRICS.values():
        yield "metric", metric.name, f"--metrics {metric.name}", metric.meaning
    for attack in ATTACKS.values():
        yield "attack", attack.name, f"--attack {attack.name}", _first(attack.module.__doc__)


def _first(documentation: str | None) -> str:
    """Return the first paragraph of a docstring as one line."""
    return " ".join((documentation or "").strip().partition("\n\n")[0].split())


def listing() -> str:
    """Return the lines as text, in columns."""
    lines = list(listed())
    widths = [max(len(line[column]) for line in lines) for column in range(3)]
    return "\n".join("  ".join([*(cell.ljust(width) for cell, width in zip(line, widths)), line[3]]) for line in lines)
