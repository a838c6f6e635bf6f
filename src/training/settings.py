"""The settings of training, and all settings of a run together."""

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
from tinymem.models.precision import PRECISION_HELP, PRECISIONS
from tinymem.models.tinymem import ModelSettings
from tinymem.options import option, settings
from tinymem.regularizers.registry import switched_on

RETRAIN = "copy the folder again, or train the model again"  # remedy if a model's settings cannot be read


@settings
class TrainingSettings:
    """Training"""

    epochs: int = option(50, "passes over the training set", low=1)
    checkpoint_every: int = option(10, "epochs between two measurements and checkpoints", low=1)
    batch_size: int = option(128, "sequences per step", low=1)
    lr: float = option(1e-3, "learning rate of AdamW", above=0.0, high=1e3)
    lr_decay: float = option(
        0.0,
        "share of the run, at its end, over which the learning rate falls linearly to 0; the study uses 0",
        low=0.0,
        high=1.0,
    )
    l2_reg: float = option(0.1, "weight decay of AdamW, on every parameter", low=0.0, high=1e3)
    dtype: str = option("float32", f"{PRECISION_HELP}; weights are float32", choices=PRECISIONS)
    train_microbatch: int = option(64, "sequences per forward pass: bounds memory", low=1)


@dataclass(frozen=True)
class RunSettings:
    """All settings that determine the result of a training run.

    regularizers: the settings of active regularizers (see `tinymem.regularizers.registry`). Inactive ones are left out,
    so that a new regularizer does not change the identity of earlier runs.
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
        """The name of the run's folder: readable, with a hash of the settings in `identity`."""
        data = self.data
        shown = f"{data.data_name}_{data.artifact}_{self.model.n_layers}layers_seed{data.seed}{'_twin' * data.twin}"
        return f"{shown}_{files.digest(self.identity())[:8]}"

    def sections(self) -> dict[str, dict[str, Any]]:
        """Return the sections of the training's record: data, model, training. Data has only its kind's settings."""
        training = {name: value for part in (*self.regularizers, self.training) for name, value in asdict(part).items()}
        return {"data": self.data.applicable(), "model": asdict(self.model), "training": training}

    def checkpoint_sections(self, epoch: int) -> dict[str, dict[str, Any]]:
        """Return the sections that identify a checkpoint in the records of runs on it.

        epoch: the checkpoint's. Settings in `may_change` are left out, since a longer training passes the same
        checkpoint.
        """
        free = may_change(self.flat())
        sections = {
            section: {name: value for name, value in values.items() if name not in free}
            for section, values in self.sections().items()
        }
        return {**sections, "training": {**sections["training"], "epoch": epoch}}

    def identity(self) -> dict[str, Any]:
        """Return the settings of `flat` that distinguish runs, without those that a longer training may change."""
        free = may_change(self.flat())
        return {name: value for name, value in self.flat().items() if name not in free}

    def flat(self) -> dict[str, Any]:
        """Return all settings as one dict, field name -> value, as in run.json and a checkpoint's tinymem.json."""
        return {name: value for values in self.sections().values() for name, value in values.items()}

    @classmethod
    def from_flat(cls, values: Mapping[str, Any], path: str | Path = "settings", remedy: str = RETRAIN) -> RunSettings:
        """Return the settings with these flat values; missing fields keep their defaults.

        path: the file of the values. Raise UserError, naming file, field and remedy, for an invalid value.
        """
        read = partial(read_settings, path=path, remedy=remedy)
        data, model = read(DataSettings, values), read(ModelSettings, values)
        return cls(data, model, read(TrainingSettings, values), switched_on(values, read))


def may_change(settings: Mapping[str, Any]) -> set[str]:
    """Return the settings that may change when a run resumes.

    A run can be trained longer and measured more often, and its text and tokenizer may move if their SHA-256 is known.

    A run whose learning rate decays cannot be extended.
    """
    longer = set() if settings.get("lr_decay") else {"epochs"}
    moved = {name for name in ("corpus", "tokenizer") if settings.get(f"{name}_sha256")}
    return {"checkpoint_every", "ft_epochs"} | longer | moved


OTHER_FOLDER = "give another --output_dir"


def check_same_run(place: str, held: Mapping[str, Any], asked: Mapping[str, Any], remedy: str = OTHER_FOLDER) -> None:
    """Raise UserError if a folder holds a run with settings other than those requested."""
    free = may_change({**held, **asked})
    for name, value in asked.items():
        if name not in free and held.get(name) != value:
            raise UserError(f"{place} holds a run {_with(name, held.get(name))}, not {_with(name, value)}; {remedy}")


def check_whole_run(place: str, held: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    """Raise UserError unless a folder's run has exactly the settings `asked`, without additional ones."""
    check_same_run(place, held, {**dict.fromkeys(held), **asked})


def _with(name: str, value: Any) -> str:
    return f"without --{name}" if value is None else f"with --{name} {value}"
