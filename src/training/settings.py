"""The settings of a training run, and the whole of a run's settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from tinymem import files
from tinymem.data.settings import DataSettings
from tinymem.errors import UserError
from tinymem.inputs import read_settings
from tinymem.models.precision import MEANING, PRECISIONS
from tinymem.models.tinymem import ModelSettings
from tinymem.options import check_options, option
from tinymem.regularizers.registry import switched_on

RETRAIN = "copy the folder again, or train the model again"  # where the settings of a model cannot be read


@dataclass(frozen=True)
class TrainingSettings:
    """Training"""

    epochs: int = option(50, "passes over the training set", low=1)
    checkpoint_every: int = option(10, "epochs between two measurements and checkpoints", low=1)
    batch_size: int = option(128, "sequences a step", low=1)
    lr: float = option(1e-3, "learning rate of AdamW", above=0.0)
    lr_decay: float = option(
        0.0,
        "share of the run, at its end, in which the learning rate falls linearly to 0; the study has 0",
        low=0.0,
        high=1.0,
    )
    l2_reg: float = option(0.1, "weight decay of AdamW, on every parameter", low=0.0)
    dtype: str = option("float32", f"{MEANING}; weights are float32", choices=PRECISIONS)
    train_microbatch: int = option(64, "sequences per forward pass: bounds memory", low=1)

    def __post_init__(self) -> None:
        check_options(self)


@dataclass(frozen=True)
class RunSettings:
    """Everything that decides what a training run gives: the sum of its parts.

    regularizers: the settings of those that are on (see `tinymem.regularizers.registry`). The others are no part of a
    run, so that a new regularizer leaves the identity of all earlier runs as it is.
    """

    data: DataSettings = field(default_factory=DataSettings)
    model: ModelSettings = field(default_factory=ModelSettings)
    training: TrainingSettings = field(default_factory=TrainingSettings)
    regularizers: tuple[Any, ...] = ()

    @property
    def parts(self) -> tuple[Any, ...]:
        """Every settings dataclass of the run."""
        return self.data, self.model, self.training, *self.regularizers

    @property
    def name(self) -> str:
        """Names a run's folder: readable, with a hash of all settings that make it another run."""
        data = self.data
        shown = f"{data.data_name}_{data.artifact}_{self.model.n_layers}layers_seed{data.seed}{'_twin' * data.twin}"
        return f"{shown}_{files.digest(self.identity())[:8]}"

    def sections(self) -> dict[str, dict[str, Any]]:
        """Return the sections of the training's record: data, model, training. Of the data only what its kind looks at."""
        training = {name: value for part in (*self.regularizers, self.training) for name, value in asdict(part).items()}
        return {"data": self.data.applicable(), "model": asdict(self.model), "training": training}

    def checkpoint_sections(self, epoch: int) -> dict[str, dict[str, Any]]:
        """Return the sections by which a checkpoint is known in the records of what is made of it.

        epoch: the checkpoint's. Left out is what `may_change`: a longer training passes through the same checkpoint.
        """
        free = may_change(self.flat())
        sections = {
            section: {name: value for name, value in values.items() if name not in free}
            for section, values in self.sections().items()
        }
        return {**sections, "training": {**sections["training"], "epoch": epoch}}

    def identity(self) -> dict[str, Any]:
        """The settings of `flat` that make it another run; those that a longer training may change are left out."""
        free = may_change(self.flat())
        return {name: value for name, value in self.flat().items() if name not in free}

    def flat(self) -> dict[str, Any]:
        """One level, field name -> value: as in a run's run.json and a checkpoint's tinymem.json."""
        return {name: value for values in self.sections().values() for name, value in values.items()}

    @classmethod
    def from_flat(cls, values: Mapping[str, Any], path: str | Path = "settings") -> RunSettings:
        """The inverse of `flat`; fields that are missing keep their defaults.

        path: of the file that the values come from; UserError names it, with the field, for a value that cannot be.
        """
        read = partial(read_settings, path=path, remedy=RETRAIN)
        data, model = read(DataSettings, values), read(ModelSettings, values)
        return cls(data, model, read(TrainingSettings, values), switched_on(values, read))


def may_change(settings: Mapping[str, Any]) -> set[str]:
    """The settings of a run that may change when it goes on: it can be trained longer and measured more often, and its
    text may have moved where it is known by its SHA-256.

    A run whose learning rate has fallen is at its end.
    """
    longer = set() if settings.get("lr_decay") else {"epochs"}
    moved = {"corpus"} if settings.get("corpus_sha256") else set()
    return {"checkpoint_every", "ft_epochs"} | longer | moved


OTHER_FOLDER = "give another --output_dir"


def check_same_run(place: str, held: Mapping[str, Any], asked: Mapping[str, Any], remedy: str = OTHER_FOLDER) -> None:
    """UserError when a folder holds a run with other settings than those asked for."""
    free = may_change({**held, **asked})
    for name, value in asked.items():
        if name not in free and held.get(name) != value:
            raise UserError(f"{place} holds a run {_with(name, held.get(name))}, not {_with(name, value)}; {remedy}")


def check_whole_run(place: str, held: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    """UserError unless a folder's run has exactly the settings `asked`: one that only it has is refused too."""
    check_same_run(place, held, {**dict.fromkeys(held), **asked})


def _with(name: str, value: Any) -> str:
    return f"without --{name}" if value is None else f"with --{name} {value}"
