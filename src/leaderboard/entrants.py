"""The entrants of the leaderboard, and the trials of each: settings drawn from a declared search space.

Every entrant has the same number of trials, or its whole space if that is smaller. Settings that are cheap to vary
(strengths) share a command. The others are drawn as a Latin hypercube, so that few draws visit every value.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from typing import Any

from tinymem.errors import UserError
from tinymem.leaderboard import output_filter, random_mask
from tinymem.leaderboard.cases import Case
from tinymem.leaderboard.spaces import FT_EPOCHS, MASKED, REGULARIZED, TOO_LONG, VARIANTS, large_space, space
from tinymem.localize.method import Method
from tinymem.localize.registry import METHODS, find_methods
from tinymem.regularizers.registry import REGULARIZERS, switched_on
from tinymem.sweeps.grid import Grid, combinations
from tinymem.sweeps.hp_grid import grid_of
from tinymem.training.finetune import FT_DATA

TRIALS = 12  # per entrant
STRENGTHS = 3  # per command
ANCHOR, TRAINING, FINETUNING, OWN, SUBMISSION = "anchor", "training", "fine-tuning", "own", "submission"
RETAIN_ONLY = "retain-only training"  # shows what any training on the retain set does
FORGET, RETAIN, BOTH, DATA = "forget set", "retain set", "forget and retain set", "a training from scratch"
NEEDS = {"kfac": RETAIN, "svd": "none", "task_vector": FORGET, "random_mask": "none", RETAIN_ONLY: RETAIN}
NEEDS |= dict.fromkeys(("balanced_subnet", "greedy", "kfade", "ssd"), BOTH)
NEEDS |= dict.fromkeys(FT_DATA, "clean training data")
CLEAN = ("dpo", "fine-tuning on clean data", "fine-tuning on both data")  # need clean twins of the sequences to forget
FAMILIES = {"objective": BOTH, TRAINING: DATA}


@dataclass(frozen=True)
class EditTrial:
    """A trial of a method on the planted model. hp: its settings, with one or several strengths."""

    method: Method
    hp: Any

    @property
    def strengths(self) -> tuple[Any, ...]:
        return self.method.strengths(self.hp)

    def split_strengths(self) -> list[EditTrial]:
        """Return one trial per strength."""
        return [EditTrial(self.method, self.method.at(self.hp, value)) for value in self.strengths]


@dataclass(frozen=True)
class TrainingTrial:
    """A trial that trains the planted model differently: from scratch with regularizers, or further on ft_data."""

    name: str
    regularizers: tuple[Any, ...] = ()
    ft_data: str | None = None
    epoch: int = 0

    @property
    def label(self) -> str:
        """The name of the method in its records: the mitigation with its settings."""
        return f"{self.name} {self.setting}"

    @property
    def setting(self) -> str:
        if self.ft_data:
            return f"epochs {self.epoch}"
        default = {name: value for part in self.regularizers for name, value in asdict(type(part)()).items()}
        changed = {n: v for part in self.regularizers for n, v in asdict(part).items() if v != default[n]}
        return ", ".join(f"{name} {value:g}" for name, value in changed.items() if value is not True) or "default"


@dataclass(frozen=True)
class SubmittedTrial:
    """Weights that somebody else edited: one folder per seed."""

    name: str
    folders: tuple[tuple[int, str], ...]
    seconds: float | None = None

    @property
    def label(self) -> str:
        return self.name


@dataclass(frozen=True, eq=False)
class RecordedTrial:
    """A trial of a user's method, from its record, without the method's file. section: the record's `method`."""

    section: Mapping[str, Any]


Trial = EditTrial | TrainingTrial | SubmittedTrial | RecordedTrial


@dataclass(frozen=True)
class Entrant:
    """A mitigation that takes part.

    group    the family of its method; ANCHOR for references
    needs    the data that it needs besides the model
    trials   the settings to try, in the order of drawing
    tuned    whether a trial is chosen by its forgetting; anchors are not tuned
    """

    name: str
    group: str
    needs: str
    trials: tuple[Trial, ...]
    tuned: bool = True


def entrants(asked: Sequence[str], case: Case, needs: str = "") -> list[Entrant]:
    """Return the entrants of a case by name or group, by default all. Anchors always take part.

    asked: names of entrants, methods or groups, or users' files with a method. needs: the data that these files need.
    Raise UserError for an unknown name, and if none of the requested entrants can take part.
    """
    own = [name for name in asked if name.endswith(".py")]
    everyone = [*_method_entrants(case), *_variant_entrants(case), *_training_entrants(case.trials)]
    known = [each for each in everyone if _takes_part(each, case)]
    anchors = [*_anchors(case)]
    names = {name for each in (*anchors, *everyone) for name in (each.name, each.group)}
    unknown = [name for name in asked if name not in (*own, *names, "all")]
    if unknown:
        groups = sorted({each.group for each in known})
        raise UserError(f"--methods {unknown[0]}: must be some of {', '.join([*groups, *(e.name for e in known)])}, "
                        "all; or a file such as my_method.py")  # fmt: skip
    chosen = [e for e in known if not asked or "all" in asked or e.name in asked or e.group in asked]
    if asked and not (chosen or own or any(each.name in asked or each.group in asked for each in anchors)):
        raise UserError(
            f"--methods {asked[0]}: cannot run on {case.name}: it needs clean sequences, a training from scratch, or "
            "days; leave it out there"
        )
    files = [
        Entrant(m.name, OWN, needs, tuple(_draw_trials(m, grid_of(m), case))) for m in find_methods(own, "--methods")
    ]
    return [*anchors, *chosen, *files]


def _takes_part(entrant: Entrant, case: Case) -> bool:
    """Return whether a mitigation can run on a case.

    Planted natural text has no clean twins, and language models are not trained from scratch here.
    """
    if entrant.name in CLEAN and not case.has_clean_twins:
        return False
    return not case.is_planted or entrant.group not in (TRAINING, FINETUNING) and entrant.name not in TOO_LONG


def submission(name: str, folders: Mapping[int, str], seconds: float | None, needs: str) -> Entrant:
    """Return an entrant from folders of edited weights, by seed. Its cost and needs are given by hand."""
    return Entrant(
        name, SUBMISSION, needs, (SubmittedTrial(name, tuple(sorted(folders.items())), seconds),), tuned=False
    )


def _anchors(case: Case) -> Iterator[Entrant]:
    (mask,) = find_methods([random_mask.__name__], "--methods")
    ratio = large_space(mask, case)["ratio"] if case.is_planted else (MASKED,)
    yield Entrant(
        "random_mask", ANCHOR, NEEDS["random_mask"], (EditTrial(mask, mask.hyper_parameters(ratio=ratio)),), False
    )
    (output,) = find_methods([output_filter.__name__], "--methods")
    trials = EditTrial(output, output.hyper_parameters(n=grid_of(output)["n"]))
    yield Entrant("output_filter", ANCHOR, FORGET, (trials,))
    method = METHODS["gradient_difference"]
    longest = max(space(method, case)["steps"])
    batch = {name: values[0] for name, values in space(method, case).items() if name == "batch_size"}
    hp = method.hyper_parameters(steps=(longest,), forget_weight=0.0, **batch)
    yield Entrant(RETAIN_ONLY, ANCHOR, NEEDS[RETAIN_ONLY], (EditTrial(method, pinned(hp, case.precision)),), False)


def _method_entrants(case: Case) -> Iterator[Entrant]:
    for method in METHODS.values():
        needs = NEEDS.get(method.name, FAMILIES.get(method.family, FORGET))
        yield Entrant(method.name, method.family, needs, tuple(_draw_trials(method, space(method, case), case)))


def _variant_entrants(case: Case) -> Iterator[Entrant]:
    for name, (base, changes) in VARIANTS.items():
        method = METHODS[base]
        yield Entrant(name, method.family, BOTH, tuple(_draw_trials(method, {**space(method, case), **changes}, case)))


def _training_entrants(trials: int) -> Iterator[Entrant]:
    for entry in REGULARIZERS:
        candidates = [
            TrainingTrial(entry.name, switched_on(values)) for values in combinations(REGULARIZED[entry.name])
        ]
        yield Entrant(entry.name, TRAINING, DATA, tuple(candidates[:trials]))
    for name in FT_DATA:
        candidates = [TrainingTrial(f"fine-tuning on {name} data", ft_data=name, epoch=epoch) for epoch in FT_EPOCHS]
        yield Entrant(candidates[0].name, FINETUNING, NEEDS[name], tuple(candidates[:trials]))


def pinned(hp: Any, precision: str | None) -> Any:
    """Return settings of a method or attack with this precision, if they have one. None leaves them unchanged."""
    return replace(hp, dtype=precision) if precision and hasattr(hp, "dtype") else hp


def _draw_trials(method: Method, grid: Grid, case: Case) -> Iterator[EditTrial]:
    """Yield one trial per combination of settings other than the strength, each with several strengths."""
    settings_space = {name: tuple(values) for name, values in grid.items() if name != method.strength}
    settings = combinations(settings_space)
    strengths = strengths_to_try(method, grid, case.trials, len(settings))
    per_command = strengths_per_command(case.trials, len(settings))
    commands = max(1, case.trials // max(1, min(per_command, len(strengths))))
    if len(settings) > commands:
        settings = latin_hypercube(settings_space, commands, random.Random(0))
    for values in settings:
        strength = {method.strength: spread(strengths, per_command)} if method.strength else {}
        yield EditTrial(method, pinned(method.hyper_parameters(**strength, **values), case.precision))


def strengths_to_try(method: Method, grid: Grid, trials: int, settings: int) -> tuple[Any, ...]:
    """Return the strengths of a grid, with values between them if the whole space has fewer than `trials` settings.

    settings: number of combinations of the other settings. Without a strength, return ().
    """
    strengths = tuple(grid[method.strength]) if method.strength else ()
    if len(strengths) < 2 or settings * len(strengths) >= trials:
        return strengths
    return tuple(filter(partial(allows, method), refined(strengths, math.ceil(trials / settings))))


def strengths_per_command(trials: int, settings: int) -> int:
    """Return how many strengths share a command: STRENGTHS, or more where else there are too few combinations.

    settings: number of combinations of the other settings.
    """
    return max(min(STRENGTHS, trials), math.ceil(trials / settings))


def allows(method: Method, strength: Any) -> bool:
    """Return whether a method may run at this strength. Users' methods may allow only a few."""
    try:
        method.at(method.hyper_parameters(), strength)
    except UserError:
        return False
    return True


def latin_hypercube(grid: Grid, count: int, source: random.Random) -> list[dict[str, Any]]:
    """Return `count` different combinations in which all values of a setting appear equally often, or nearly so.

    Counts differ by at most one, or more where another combination replaces one that was drawn twice.
    """
    combinations_drawn: list[dict[str, Any]] = []
    while len(combinations_drawn) < count:
        columns = {}
        for name, values in grid.items():
            order = [
                value for _ in range(math.ceil(count / len(values))) for value in source.sample(values, len(values))
            ]
            columns[name] = order[:count]
        for place in range(count):
            combination = {name: column[place] for name, column in columns.items()}
            if combination not in combinations_drawn and len(combinations_drawn) < count:
                combinations_drawn.append(combination)
    return combinations_drawn


def spread(values: Sequence[Any], count: int) -> tuple[Any, ...]:
    """Return `count` of the values, evenly spaced and always including the last."""
    if len(values) <= count:
        return tuple(values)
    step = len(values) / count
    return tuple(values[len(values) - 1 - math.floor(step * place)] for place in reversed(range(count)))


def refined(values: Sequence[float], count: int) -> tuple[float, ...]:
    """Return `count` values, ascending: the given positive numbers, and geometric means in the widest gaps.

    Values are distinct, so there are fewer if rounding leaves no further value. Whole numbers stay whole.
    """
    found = sorted(values)
    kind = int if all(isinstance(value, int) for value in values) else float
    while len(found) < count and found[0] > 0:
        widest = sorted(range(len(found) - 1), key=lambda place: -found[place + 1] / found[place])
        middles = ((gap + 1, kind(float(f"{math.sqrt(found[gap] * found[gap + 1]):.2g}"))) for gap in widest)
        new = next((each for each in middles if each[1] not in found), None)
        if new is None:
            break
        found.insert(*new)
    return tuple(found)


def settings_of(trial: Trial) -> str:
    """Return a trial's settings as text: its strength, and what differs from the defaults."""
    if isinstance(trial, EditTrial):
        default = trial.method.hyper_parameters()
        changed = {f.name: getattr(trial.hp, f.name) for f in fields(trial.hp) if f.name != "dtype"}
        shown = {n: v for n, v in changed.items() if n == trial.method.strength or v != getattr(default, n)}
        return ", ".join(f"{name} {_words(value)}" for name, value in shown.items())
    if isinstance(trial, RecordedTrial):
        return ", ".join(f"{n} {_words(v)}" for n, v in trial.section.items() if n not in ("name", "code", "dtype"))
    return trial.setting if isinstance(trial, TrainingTrial) else "as submitted"


def _words(value: Any) -> str:
    if isinstance(value, (tuple, list)):
        return " ".join(map(_words, value))
    return f"{value:g}" if isinstance(value, float) else str(value)
