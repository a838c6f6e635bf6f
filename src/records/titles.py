"""Short titles of checkpoints and experiments: model, data, epoch, and the settings that distinguish them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tinymem.records.choose import PRINTS, SEEDS
from tinymem.records.grouping import differing, grouped
from tinymem.records.table import scalar


def layers(count: Any) -> str:
    """Return a number of layers as text."""
    return f"{count} layer" if count == 1 else f"{count} layers"


# Columns in every title -> how a value is written.
HEADLINE: dict[str, Callable[[Any], str]] = {
    **dict.fromkeys(("model.name", "data.data_name", "data.artifact"), str),
    "model.step": "step {}".format,
    "model.n_layers": layers,
    "training.epoch": "epoch {}".format,
}
SHA256 = "_sha256"  # ending of the columns that identify a user's files


def titles(checkpoints: Sequence[Mapping[str, Any]], seeds: bool = False) -> list[str]:
    """Return a short title for each checkpoint or experiment: model, data, epoch, and the settings that distinguish it.

    seeds: whether titles name the seed too.
    """
    hidden = {*HEADLINE, *PRINTS, *(() if seeds else SEEDS)}
    alike = grouped(checkpoints, lambda settings: tuple(scalar(settings.get(name)) for name in HEADLINE))
    apart = dict.fromkeys(name for some in alike for name in differing(some) if name not in hidden)
    plain = [name for name in apart if not name.endswith(SHA256)]
    ways = [  # the shortest that tells most apart
        [_title(settings, names, short) for settings in checkpoints]
        for names, short in ((plain, True), (apart, True), (apart, False))
    ]
    return max(ways, key=lambda names: len(set(names)))


def _title(settings: Mapping[str, Any], apart: Iterable[str], short: bool) -> str:
    """Return a title. short: whether paths are shown without their folder, and digests with 8 digits."""

    def shown(name: str) -> Any:
        value = settings.get(name)
        if not short or not isinstance(value, str):
            return value
        return value[:8] if name.endswith(SHA256) else Path(value).name if Path(value).is_absolute() else value

    words = [write(shown(name)) for name, write in HEADLINE.items() if settings.get(name) is not None]
    return ", ".join([*words, *filter(None, (_told(name, shown(name)) for name in apart))])


def _told(name: str, value: Any) -> str:
    """Return a setting as text; empty if it is off."""
    if name == "data.twin":
        return "never-planted twin" if value else ""
    own = name.rpartition(".")[2]
    return "" if value is None or value is False else own if value is True else f"{own} {value}"
