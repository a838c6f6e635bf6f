"""The settings of a training run, and the whole of a run's settings."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import Any

from tinymem.data.settings import DataSettings
from tinymem.errors import UserError
from tinymem.models.tinymem import ModelSettings
from tinymem.options import check_options, option


@dataclass(frozen=True)
class TrainingSettings:
    """Training"""

    epochs: int = option(50, "passes over the training set", low=1)
    checkpoint_every: int = option(10, "epochs between two measurements and checkpoints", low=1)
    batch_size: int = option(128, "sequences a step", low=1)
    lr: float = option(1e-3, "learning rate of AdamW, constant", above=0.0)
    l2_reg: float = option(0.1, "weight decay of AdamW, on every parameter", low=0.0)
    dtype: str = option(
        "float32", "precision of the forward pass; bfloat16 keeps float32 weights", choices=("float32", "bfloat16")
    )
    train_microbatch: int = option(64, "sequences per forward pass: bounds memory", low=1)

    __post_init__ = check_options


@dataclass(frozen=True)
class RunSettings:
    """Everything that decides what a training run gives: the sum of its parts."""

    data: DataSettings = field(default_factory=DataSettings)
    model: ModelSettings = field(default_factory=ModelSettings)
    training: TrainingSettings = field(default_factory=TrainingSettings)

    def flat(self) -> dict[str, Any]:
        """One level, field name -> value: as written into records."""
        return {name: value for part in fields(self) for name, value in asdict(getattr(self, part.name)).items()}

    @classmethod
    def from_flat(cls, values: dict[str, Any]) -> RunSettings:
        """The inverse of `flat`; fields that are missing keep their defaults."""
        parts = {"data": DataSettings, "model": ModelSettings, "training": TrainingSettings}
        return cls(
            **{
                name: part(**{f.name: values[f.name] for f in fields(part) if f.name in values})
                for name, part in parts.items()
            }
        )


MAY_CHANGE = ("epochs", "checkpoint_every")  # a run can be trained longer and measured more often


def check_same_run(place: str, held: dict[str, Any], asked: dict[str, Any]) -> None:
    """UserError when a folder holds a run with other settings than those asked for."""
    for name, value in asked.items():
        if name not in MAY_CHANGE and held.get(name) != value:
            raise UserError(
                f"{place} holds a run with --{name} {held.get(name)}, not {value}; give another --output_dir"
            )
