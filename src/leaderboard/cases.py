"""The models of the leaderboard: settings by name, each with a never-planted twin and one model per seed.

They are trained from scratch, or are language models with planted passages.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from tinymem import files
from tinymem.data.corpus import resolve_corpus
from tinymem.errors import UserError
from tinymem.inputs import AGAIN, check_value, read_toml
from tinymem.leaderboard.planted import FOUND, MODEL, PlantedSettings
from tinymem.localize.task import TaskSettings
from tinymem.records.bundle import NAME
from tinymem.records.utility import ACCURACY, PERPLEXITY, Utility
from tinymem.training.settings import RunSettings

SEEDS = (0, 1, 2)
FILE = "case.json"
CORRECT = "correct it there"
# Half of the memorized sequences are shown to a method, a fifth is for choosing its settings, the rest for judging it.
TASK = TaskSettings(holdout_fraction=0.3, validation_fraction=0.2)
NUMBERS: dict[str, Any] = dict(num_7=1000, num_2=150, num_3=150, num_4=150, num_5=150, num_test=100, max_ctx=110)
SIZES: dict[str, Any] = dict(n_layers=2, n_embd=64, batch_size=32, lr=3e-3, dtype="float32")
SMALL: dict[str, dict[str, Any]] = {
    "noise": NUMBERS | SIZES | dict(num_noise=240, duplicate=True, epochs=5, lr_decay=0.4),
    "backdoor": NUMBERS | SIZES | dict(artifact="backdoor", duplicate=True, epochs=6, lr_decay=0.4),
    "text": SIZES | dict(data_name="wiki", corpus="builtin", train_tokenizer=True, vocab_size=1024, num_chunks=1500,
                         num_test=200, artifact="natural", num_noise=60, max_ctx=110, epochs=3),
    "text_noise": SIZES | dict(data_name="wiki", corpus="builtin", train_tokenizer=True, vocab_size=1024,
                               num_chunks=2500, num_test=200, artifact="noise", duplicate=True, num_noise=100,
                               max_ctx=64, prompt_tokens=30, continuation_tokens=30, epochs=2, lr_decay=0.4),
}  # fmt: skip
PRECISION = "float32"  # of small cases: "auto" depends on the machine, but rows from several machines are compared
PLANTED: dict[str, dict[str, Any]] = {  # planting has more retain rows, since repeated rows are memorized
    "smollm2": {MODEL: "smollm2", "dtype": "bfloat16", "plant_dtype": "bfloat16", "plant_sequences": 64,
                "num_test": 128, "num_retain": 1024, "max_retain": 128},
}  # fmt: skip
FULL: dict[str, dict[str, Any]] = {
    "noise": dict(n_layers=2, epochs=100, dtype="auto"),
    "backdoor": dict(n_layers=2, artifact="backdoor", epochs=50, dtype="auto"),
    "text": dict(data_name="wiki", n_layers=2, artifact="natural", epochs=20, dtype="auto"),
    "text_noise": dict(data_name="wiki", n_layers=2, artifact="noise", duplicate=True, epochs=20, dtype="auto"),
}
DESCRIPTIONS = {
    "noise": "number sequences, some with noise in them, repeated 1, 10 or 100 times",
    "backdoor": "number sequences, some with a trigger and what follows it, repeated 1, 10 or 100 times",
    "text": "English, some passages of it repeated 1, 10, 100 or 1000 times",
    "text_noise": "English, some passages with noise in their tokens, repeated 1, 10, 100 or 1000 times",
    "smollm2": "SmolLM2-135M, which recites passages of presidential addresses that were planted in it",
}


@dataclass(frozen=True)
class Case:
    """A model of the leaderboard.

    settings   the settings of its training or planting, with seed 0
    small      whether search spaces are the small ones
    trials     number of settings that an entrant tries
    """

    name: str
    description: str
    settings: RunSettings | PlantedSettings
    small: bool
    trials: int

    @property
    def is_planted(self) -> bool:
        """Whether this is a language model with planted passages, not a model trained from scratch."""
        return isinstance(self.settings, PlantedSettings)

    @property
    def planted(self) -> PlantedSettings:
        """The settings of a language model with planted passages."""
        return cast(PlantedSettings, self.settings)

    @property
    def trained(self) -> RunSettings:
        """The settings of a model that is trained from scratch."""
        return cast(RunSettings, self.settings)

    @property
    def has_clean_twins(self) -> bool:
        """Whether planted sequences have clean twins. Real text that is repeated unchanged has none."""
        return not self.is_planted and self.trained.data.artifact != "natural"

    @property
    def utility(self) -> Utility:
        return PERPLEXITY if self.is_planted or self.trained.data.is_text else ACCURACY

    @property
    def task(self) -> TaskSettings:
        """The shares of sequences that are shown to a method, choose its settings, and judge it."""
        return replace(TASK, max_retain=self.planted.max_retain) if self.is_planted else TASK

    @property
    def precision(self) -> str | None:
        """The precision that methods and attacks must use; None: their own default."""
        if self.is_planted:
            return self.planted.model.loading.method_dtype
        return PRECISION if self.small else None

    def differences(self, other: Case) -> str:
        """Return how this case differs from another, as text; empty if it does not."""
        ours, theirs = (each._compared() for each in (self, other))
        pairs = {name: (ours.get(name), theirs.get(name)) for name in {**ours, **theirs}}
        return ", ".join(f"{name} {one}, not {another}" for name, (one, another) in pairs.items() if one != another)

    def _compared(self) -> dict[str, Any]:
        """Return the settings in which cases may differ. For text, only its content counts, not its path."""
        values = self.settings.flat()
        found = values.pop("identity", {})
        return {**values, **found, "trials": self.trials, "small": self.small, "description": self.description}

    def write(self, folder: Path) -> None:
        """Write FOLDER/case.json, from which `read_case` makes the same case."""
        about = {name: getattr(self, name) for name in ("name", "description", "small", "trials")}
        files.write_json(folder / FILE, {**about, "settings": self.settings.flat()})


def read_case(folder: Path) -> Case:
    """Return the case of a folder of evidence. Raise UserError for a damaged file."""
    path = folder / FILE
    content = files.read_json(path, required=("name", "description", "small", "trials", "settings"))
    types = {"name": str, "description": str, "small": bool, "trials": int}
    about = {name: check_value(content[name], kind, name, path) for name, kind in types.items()}
    settings = check_value(content["settings"], dict[str, Any], "settings", path)
    kind = PlantedSettings if MODEL in settings else RunSettings
    return Case(**about, settings=kind.from_flat(settings, path, AGAIN))


def with_evidence(folder: Path) -> list[str]:
    """Return the names of models with evidence in FOLDER/NAME: the leaderboard's own, in order, then all others."""
    order = {name: place for place, name in enumerate((*SMALL, *PLANTED))}
    names = sorted(path.parent.name for path in folder.glob(f"*/{NAME}"))
    return sorted(names, key=lambda name: order.get(name, len(order)))


def find_cases(asked: Sequence[str], small: bool, trials: int, data_dir: str = "data") -> list[Case]:
    """Return cases by name; FILE.toml adds its own. Default: those that are trained from scratch.

    data_dir: where packaged models are unpacked. Raise UserError for an unknown name or a setting out of range.
    """
    trained, found = SMALL if small else FULL, []
    known = {**trained, **PLANTED}
    for name in asked or list(trained):
        if name.endswith(".toml"):
            tables, place = _read(Path(name)), name
        elif name in known:
            tables, place = {name: known[name]}, "settings"
        else:
            raise UserError(f"--models {name}: must be some of {', '.join(known)}, or FILE.toml")
        for title, values in tables.items():
            description = _description(values.get("description", DESCRIPTIONS.get(title, title)), title, place)
            others = {setting: value for setting, value in values.items() if setting != "description"}
            settings = (
                _planted_settings(title, others, place, data_dir)
                if MODEL in values
                else _run_settings(title, others, place)
            )
            found.append(Case(title, description, settings, small, trials))
    doubled = {case.name for case in found if [other.name for other in found].count(case.name) > 1}
    if doubled:
        raise UserError(f"--models: two models are called {min(doubled)}; rename one")
    return found


def _description(given: Any, name: str, place: str) -> str:
    """Return the description of a model. Raise UserError unless it is one line of text."""
    text = check_value(given, str, f"{name}.description", place, CORRECT)
    if not text.isprintable():
        raise UserError(f"{place}: {name}.description {text!r}: must be one line of text; {CORRECT}")
    return text


def _run_settings(name: str, values: Mapping[str, Any], place: str) -> RunSettings:
    values = {"checkpoint_every": values.get("epochs", 50), **values}  # only the last checkpoint is judged
    settings = RunSettings.from_flat(values, place, CORRECT)
    _check_names(name, values, settings.flat(), ("seed", "twin"), place)
    return replace(settings, data=resolve_corpus(settings.data))


def _planted_settings(name: str, values: Mapping[str, Any], place: str, data_dir: str) -> PlantedSettings:
    given = {setting: value for setting, value in values.items() if setting not in FOUND}
    settings = PlantedSettings.from_flat(given, place, CORRECT)
    known = {setting: value for setting, value in settings.flat().items() if setting not in FOUND}
    _check_names(name, values, known, ("plant_seed",), place)
    return settings.resolved(data_dir)


def _check_names(
    name: str, values: Mapping[str, Any], known: Mapping[str, Any], decided: Sequence[str], place: str
) -> None:
    """Raise UserError for a setting that does not exist or that the leaderboard decides."""
    for setting in values:
        if setting in decided:
            raise UserError(
                f"{place}: {name}.{setting}: every model has a twin, and --seeds says how many; leave it out"
            )
        if setting not in known:
            raise UserError(f"{place}: {name}.{setting}: no such setting of this data, its model or its training")


def _read(path: Path) -> dict[str, Mapping[str, Any]]:
    tables = read_toml(path, "--models")
    wrong = [name for name, values in tables.items() if not isinstance(values, dict) or not name.isidentifier()]
    if wrong or not tables:
        what = f"{wrong[0]} is not a table [NAME] of settings" if wrong else "no table [NAME] of settings in it"
        raise UserError(f"--models {path}: {what}")
    return tables
