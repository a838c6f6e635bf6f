"""Language models of the leaderboard: any that prod_grad.py opens, with planted passages. The twin is the original."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from tinymem.data.passages import PassageSettings
from tinymem.data.production import ProductionSettings
from tinymem.inputs import AGAIN, check_value, read_settings
from tinymem.localize.task import TaskSettings
from tinymem.models.production import LoadSettings
from tinymem.sweeps.jobs import Production, located_passages
from tinymem.training.plant import PlantSettings

MODEL = "model_name"
PLANT = "builtin"  # the default text of passages
FOUND = ("identity", "blocks")  # settings that users do not give: `resolved` fills them in


@dataclass(frozen=True)
class PlantedSettings:
    """A model with passages to plant.

    max_retain   most retain sequences of a method; planting uses all
    identity     what identifies the passages in records; like blocks (the number of layers), known once `resolved`
    """

    model: Production
    max_retain: int
    identity: Mapping[str, Any] = field(default_factory=dict)
    blocks: int = 0

    def at(self, seed: int) -> PlantedSettings:
        """Return the settings of a seed, which chooses the passages and their order."""
        model = replace(self.model, passages=replace(self.model.passages, plant_seed=seed))
        return replace(self, model=model, identity={**self.identity, "plant_seed": seed})

    @property
    def sections(self) -> dict[str, Any]:
        """The sections that all records on the planted model share, without those of the task."""
        return self.model.sections(self.identity)

    def resolved(self, data_dir: str) -> PlantedSettings:
        """Return the settings with absolute paths and what the model's files, except the weights, tell."""
        model, identity, config = located_passages(self.model, data_dir)
        return replace(self, model=model, identity=identity, blocks=config.get_text_config().num_hidden_layers)

    def flat(self) -> dict[str, Any]:
        """Return all settings as one dict, as in case.json."""
        model = self.model
        parts = (model.loading, model.data, model.passages, model.planting)
        values = {name: value for part in parts for name, value in asdict(part).items()}
        own = {each.name: getattr(self, each.name) for each in fields(self) if each.name != "model"}
        return {MODEL: model.name, **values, **own, "identity": dict(self.identity)}

    @classmethod
    def from_flat(cls, values: Mapping[str, Any], path: str | Path, remedy: str = AGAIN) -> PlantedSettings:
        """Return the settings with these values; missing values keep their defaults.

        path: the file of the values. Raise UserError, naming file, setting and remedy, for an invalid value.
        """
        values = {"plant": PLANT, "identity": {}, "blocks": 0, **values}

        def read(part: type) -> Any:
            return read_settings(part, values, path, remedy)

        def checked(name: str, kind: Any) -> Any:
            return check_value(values[name], kind, name, path, remedy)

        checked("plant", str)  # a model without passages has nothing to forget
        model = Production(
            checked(MODEL, str),
            read(LoadSettings),
            read(ProductionSettings),
            False,
            read(PassageSettings),
            read(PlantSettings),
        )
        return cls(model, read(TaskSettings).max_retain, checked("identity", dict[str, Any]), checked("blocks", int))
