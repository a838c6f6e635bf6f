"""The models of the leaderboard: training settings by name, each with a never-planted twin and one model per seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tinymem import files
from tinymem.data.corpus import resolve_corpus
from tinymem.errors import UserError
from tinymem.inputs import check_value, read_toml
from tinymem.localize.task import TaskSettings
from tinymem.training.settings import RunSettings
from tinymem.training.twin import twin_of

SEEDS = (0, 1, 2)
FILE = "case.json"
# Half of the memorized sequences are shown to a method, a fifth chooses its settings, the rest judges it.
TASK = TaskSettings(holdout_fraction=0.3, validation_fraction=0.2)
NUMBERS: dict[str, Any] = dict(num_7=1000, num_2=150, num_3=150, num_4=150, num_5=150, num_test=100, max_ctx=110)
SIZES: dict[str, Any] = dict(n_layers=2, n_embd=64, batch_size=32, lr=3e-3, dtype="float32")
SMALL: dict[str, dict[str, Any]] = {
    "noise": NUMBERS | SIZES | dict(num_noise=240, duplicate=True, epochs=5, lr_decay=0.4),
    "backdoor": NUMBERS | SIZES | dict(artifact="backdoor", duplicate=True, epochs=6, lr_decay=0.4),
    "text": SIZES | dict(data_name="wiki", corpus="builtin", train_tokenizer=True, vocab_size=1024, num_chunks=1500,
                         num_test=200, artifact="natural", num_noise=60, max_ctx=110, epochs=3),
}  # fmt: skip
FULL: dict[str, dict[str, Any]] = {
    "noise": dict(n_layers=2, epochs=100, dtype="auto"),
    "backdoor": dict(n_layers=2, artifact="backdoor", epochs=50, dtype="auto"),
    "text": dict(data_name="wiki", n_layers=2, artifact="natural", epochs=20, dtype="auto"),
}
DESCRIPTIONS = {
    "noise": "number sequences, some with noise in them, repeated 1, 10 or 100 times",
    "backdoor": "number sequences, some with a trigger and what follows it, repeated 1, 10 or 100 times",
    "text": "English, some passages of it repeated 1, 10, 100 or 1000 times",
}


@dataclass(frozen=True)
class Utility:
    """What an edit must not cost.

    column   accuracy (higher is better) or perplexity (lower is better)
    limits   the largest loss of the two tables: points of accuracy, or the rise of perplexity in percent
    unit     of the limits
    """

    column: str
    limits: tuple[float, float]
    unit: str

    def loss(self, now: Any, before: Any) -> Any:
        """Return what a model has lost, in the unit of the limits; infinity where it has no value.

        Numbers, or arrays over draws.
        """
        if now is None:
            return float("inf")
        return 100 * (before - now if self.column == ACCURACY.column else now / before - 1)


ACCURACY = Utility("mean_test_accuracy", (1.0, 5.0), "points of accuracy")
PERPLEXITY = Utility("perplexity", (2.0, 10.0), "% of perplexity")


@dataclass(frozen=True)
class Case:
    """A model of the leaderboard.

    settings   of its training, with seed 0
    small      whether search spaces are the small ones
    trials     settings that an entrant tries
    """

    name: str
    description: str
    settings: RunSettings
    small: bool
    trials: int

    @property
    def utility(self) -> Utility:
        return PERPLEXITY if self.settings.data.is_text else ACCURACY

    def at(self, seed: int) -> RunSettings:
        """Return the settings of the model of a seed."""
        return replace(self.settings, data=replace(self.settings.data, seed=seed))

    def differences(self, other: Case) -> str:
        """Return by what this case differs from another, in words; empty if it does not."""
        ours, theirs = (
            {**each.settings.flat(), "trials": each.trials, "small": each.small, "description": each.description}
            for each in (self, other)
        )
        pairs = {name: (ours.get(name), theirs.get(name)) for name in {**ours, **theirs}}
        return ", ".join(f"{name} {one}, not {another}" for name, (one, another) in pairs.items() if one != another)

    def write(self, folder: Path) -> None:
        """Write FOLDER/case.json, from which `read_case` makes the same case."""
        about = {name: getattr(self, name) for name in ("name", "description", "small", "trials")}
        files.write_json(folder / FILE, {**about, "settings": self.settings.flat()})

    def twin_at(self, seed: int) -> RunSettings:
        """Return the settings of its never-planted twin."""
        return twin_of(self.at(seed))


def read_case(folder: Path) -> Case:
    """Return the case that a folder of evidence is about. Raise UserError for a damaged file."""
    path = folder / FILE
    content = files.read_json(path, required=("name", "description", "small", "trials", "settings"))
    types = {"name": str, "description": str, "small": bool, "trials": int}
    about = {name: check_value(content[name], kind, name, path) for name, kind in types.items()}
    return Case(**about, settings=RunSettings.from_flat(content["settings"], path))


def find_cases(asked: Sequence[str], small: bool, trials: int) -> list[Case]:
    """Return cases by name; FILE.toml adds its own. Raise UserError for an unknown name or a setting out of range."""
    known, found = SMALL if small else FULL, []
    for name in asked or list(known):
        if name.endswith(".toml"):
            found += [_case(each, values, small, trials, name) for each, values in _read(Path(name)).items()]
        elif name in known:
            found.append(_case(name, known[name], small, trials))
        else:
            raise UserError(f"--models {name}: must be some of {', '.join(known)}, or FILE.toml")
    doubled = {case.name for case in found if [other.name for other in found].count(case.name) > 1}
    if doubled:
        raise UserError(f"--models: two models are called {min(doubled)}; rename one")
    return found


def _case(name: str, values: Mapping[str, Any], small: bool, trials: int, place: str = "settings") -> Case:
    values = dict(values)
    description = str(values.pop("description", DESCRIPTIONS.get(name, name)))
    values.setdefault("checkpoint_every", values.get("epochs", 50))  # only the last checkpoint is judged
    settings = RunSettings.from_flat(values, place, "correct it there")
    known = {**settings.flat(), **dict.fromkeys(vars(settings.data))}
    decided = [key for key in ("seed", "twin") if key in values]
    if decided:
        raise UserError(
            f"{place}: {name}.{decided[0]}: every model has a twin, and --seeds says how many; leave it out"
        )
    unknown = [key for key in values if key not in known]
    if unknown:
        raise UserError(f"{place}: {name}.{unknown[0]}: no such setting of data, model or training")
    return Case(name, description, replace(settings, data=resolve_corpus(settings.data)), small, trials)


def _read(path: Path) -> dict[str, Mapping[str, Any]]:
    tables = read_toml(path, "--models")
    wrong = [name for name, values in tables.items() if not isinstance(values, dict) or not name.isidentifier()]
    if wrong or not tables:
        what = f"{wrong[0]} is not a table [NAME] of settings" if wrong else "no table [NAME] of settings in it"
        raise UserError(f"--models {path}: {what}")
    return tables
