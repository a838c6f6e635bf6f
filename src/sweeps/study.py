"""The study's models as data, full and small: their settings, regularizers, and the epochs to unlearn.

A grid maps settings to their values; a value that is a mapping sets several settings at once. The small grids plant
shorter sequences in less data, so that a model memorizes them within seconds. No published number uses them.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from tinymem.data.corpus import resolve_corpus
from tinymem.data.settings import DataSettings
from tinymem.sweeps.grid import Grid, combinations
from tinymem.training.settings import RunSettings


@dataclass(frozen=True)
class Study:
    """Models of one kind, and the epochs whose checkpoints are fine-tuned and unlearned."""

    grid: Grid
    epochs: tuple[int, ...]


LAYERS, SEEDS, REPEATED = (2, 4, 8, 16), (0, 1, 3), (False, True)
EXTRA = tuple({f"num_{n}": count for n in (2, 3, 4, 5)} for count in (3000, 10000, 20000))


def _until(epochs: int, every: int) -> tuple[dict[str, int], ...]:
    return ({"epochs": epochs, "checkpoint_every": every},)


NUMBERS = {"data_name": ("increment", "mult"), "n_layers": LAYERS, "seed": SEEDS, "duplicate": REPEATED, "extra": EXTRA}
TEXT = {"data_name": ("wiki_fast",), "n_layers": LAYERS, "seed": SEEDS, "duplicate": (True,)}
FULL = (
    Study({**NUMBERS, "artifact": ("noise",), "until": _until(3500, 500)}, (500, 1500, 2500, 3500)),
    Study({**NUMBERS, "artifact": ("backdoor",), "until": _until(500, 50)}, (50, 200, 350, 500)),
    Study({**TEXT, "artifact": ("noise",), "until": _until(100, 10)}, (10, 40, 70, 100)),
    Study({**TEXT, "artifact": ("backdoor",), "until": _until(50, 10)}, (10, 20, 30, 50)),
)

_SMALL: dict[str, Any] = dict(
    num_7=250, num_2=50, num_3=50, num_4=50, num_5=50, num_test=25, num_noise=30, length=12, max_ctx=64
)
_SMALL |= dict(prompt_tokens=10, continuation_tokens=10, n_layers=2, n_embd=32, n_heads=2, batch_size=32, lr=4e-3)
_SMALL_GRID = {"data_name": ("increment",), "duplicate": (True,), "until": _until(8, 4), "rest": (_SMALL,)}
SMALL = (
    Study({**_SMALL_GRID, "artifact": ("noise",), "seed": (0, 1)}, (8,)),
    Study({**_SMALL_GRID, "artifact": ("backdoor",), "seed": (0, 1)}, (8,)),
)

# The study's values of each regularizer, used with the models of REGULARIZED.
SPECTRAL_NORM: Grid = {"spectral_reg": (True,), "lam": (0.001, 0.01, 0.1)}
LOSS_TRUNCATION: Grid = {"truncate_loss": (True,), "dropc": (0.01, 0.05, 0.1)}
EXAMPLE_TIED_DROPOUT: Grid = {"example_tied_dropout": (True,), "p_fixed": (0.2,), "p_mem": (0.1,)}
REGULARIZERS = (SPECTRAL_NORM, LOSS_TRUNCATION, EXAMPLE_TIED_DROPOUT)
SMALL_REGULARIZERS: tuple[Grid, ...] = (
    {"spectral_reg": (True,), "lam": (0.01,)},
    {"truncate_loss": (True,), "dropc": (0.05,), "truncation_window": (500,)},
    EXAMPLE_TIED_DROPOUT,
)


def models(study: Study) -> list[RunSettings]:
    """Return the settings of every model of a study."""
    return [run_settings(values) for values in combinations(study.grid)]


def regularized(study: Study, small: bool) -> list[RunSettings]:
    """Return the settings of every model of a study with each value of each regularizer, one regularizer at a time."""
    grids = SMALL_REGULARIZERS if small else REGULARIZERS
    return [
        run_settings({**values, **more})
        for values in combinations(study.grid)
        for grid in grids
        for more in combinations(grid)
    ]


def run_settings(values: Mapping[str, Any]) -> RunSettings:
    """Return a run's settings from a mapping. For text, the corpus is filled in, as in the run's record."""
    settings = RunSettings.from_flat(values)
    return replace(settings, data=_resolved(settings.data))


@functools.lru_cache(maxsize=None)
def _corpus(data_name: str) -> str | None:
    """Return the corpus for this data. The result is cached, since it may need a request to the hub."""
    return resolve_corpus(DataSettings(data_name=data_name)).corpus


def _resolved(data: DataSettings) -> DataSettings:
    if data.is_text and data.corpus is None:
        data = replace(data, corpus=_corpus(data.data_name))
    return resolve_corpus(data)
