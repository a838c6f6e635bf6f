"""Never-planted twins: the same training without the planted sequences, as the baseline of forgetting."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from tinymem.errors import UserError
from tinymem.records.identity import TRAIN, record_digest
from tinymem.training import checkpoint
from tinymem.training.settings import RunSettings

# Settings that affect only rounding, not the data, model or order: a twin may be trained on another machine.
ROUNDING = ("dtype", "train_microbatch")


def twin_of(settings: RunSettings) -> RunSettings:
    """Return the settings of a run's twin; for a twin, those of the run it belongs to."""
    return replace(settings, data=replace(settings.data, twin=not settings.data.twin))


def twin_digest(settings: RunSettings) -> str:
    """Return the digest of the training record of a run's twin, even if the twin is not trained yet."""
    return record_digest({"kind": TRAIN, **twin_of(settings).sections()})


def find_twin(path: Path, settings: RunSettings, epoch: int) -> Path | None:
    """Return the twin of a checkpoint among the runs and model folders next to it and in runs/, or None."""
    wanted = _comparable(twin_of(settings), epoch)
    for folder in _near(path, settings, epoch):
        try:
            if _sections(folder) == wanted:
                return folder
        except UserError:  # not a checkpoint of a training run
            continue
    return None


def check_twin(path: Path, settings: RunSettings, epoch: int) -> Path:
    """Return the folder of a named twin. Raise UserError if it is not this checkpoint's twin."""
    found = _sections(path)
    for name, section in _comparable(twin_of(settings), epoch).items():
        held = found[name]  # an active regularizer has settings that other runs do not have
        different = [key for key in {**section, **held} if held.get(key) != section.get(key)]
        if "twin" in different and "twin" in section:
            raise UserError(
                f"--twin_model {path}: no twin of this checkpoint; it was trained without --twin, on planted sequences"
            )
        if "twin" in different:
            raise UserError(f"--twin_model {path}: no twin of this checkpoint, which was itself trained with --twin")
        if different:
            raise UserError(
                f"--twin_model {path}: no twin of this checkpoint; --{different[0]} is "
                f"{held.get(different[0])}, not {section.get(different[0])}"
            )
    return path


def _near(path: Path, settings: RunSettings, epoch: int) -> Iterator[Path]:
    """Yield the model folders where a twin may be."""
    path = path.resolve()
    yield Path("runs") / twin_of(settings).name / f"epoch_{epoch}"
    places = [(path.parent, "*"), (path.parent.parent, f"*/{path.name}")]
    if not (path / checkpoint.STATE).exists():  # a copy: its twin may be in a run's folder
        places.append((Path("runs"), f"*/epoch_{epoch}"))
    for place, pattern in places:
        yield from (file.parent for file in sorted(place.glob(f"{pattern}/{checkpoint.SETTINGS}")))


def _comparable(settings: RunSettings, epoch: int) -> dict[str, dict[str, Any]]:
    """Return the sections of a checkpoint that its twin shares, without the settings that make it a twin."""
    sections = settings.checkpoint_sections(epoch)
    training = {name: value for name, value in sections["training"].items() if name not in ROUNDING}
    return {**sections, "training": training}


def _sections(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the comparable sections of a checkpoint of a training run. Raise UserError for anything else."""
    details = checkpoint.load_trained(folder)
    return _comparable(RunSettings.from_flat(details["settings"], folder), details["epoch"])
