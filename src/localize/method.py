"""The contract of unlearning methods, and the adaptors that turn a plain function into a method.

A method is a module with a frozen dataclass `HyperParameters` and one of

    score(model, task, hp) -> scores            a ranking of neurons or weights; the highest are set to zero
    learn(model, task, hp, strength) -> masks   a mask for each strength
    loss(hp, model, reference, forget, retain)  an objective to train the weights on (tinymem.training.objective)
    attack(model, task, hp, strength) -> Edit   for attacks: the edit of the (edited) model at each strength; or Draws
    elicit(model, task, hp, strength) -> Elicitation   for attacks on prompts: what they read out of the model
    run(model, task, hp) -> (strength, Edit)    anything else, as an iterator

Every function must leave the model unchanged. The file's name is the method's name, its folder the method's family.

A method may also define

    ALIAS                              the study's flag
    check(model, task, hp)             raises UserError, before anything runs, for settings that do not fit
    drop(mlps, scores, strength) -> masks
    resolve(hp, parameters) -> hp      fills in the defaults that depend on a model's size
    steps(model, task, hp) -> int      the steps of the whole run
    passes(model, task, hp) -> (forward, backward)   instead of `steps`, if the passes of a step depend on the model
    CUMULATIVE = True                  strengths are steps of one training run; default: only of an objective
    NESTED = True                      a ranking is built one weight after another, up to the largest strength
    IDLE, ENOUGH, held_bytes(model, task, hp) -> int   what a plan must know; see Method

An objective may define `weights(hp, reference)`, the weights of the forget and the retain loss at the next step, and
`after_step(hp, reference, steps, losses)`, which updates what the objective keeps in `reference.state`.

An attack that trains on sequences to forget defines `seen(task, hp) -> bool (F,)`: the sequences that it sees, which
are then not measured. An attack whose records are useful only with certain metrics names them in MEASURES.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

from tinymem.errors import UserError
from tinymem.localize.learning import check_scores
from tinymem.localize.objective_method import check_objective, objective
from tinymem.localize.ranking import Scores, drop_top
from tinymem.localize.task import UnlearningTask
from tinymem.localize.user_methods import check_scores_of, check_settings, checked, guarded, watched_part
from tinymem.metrics.elicitation import Elicitation
from tinymem.metrics.memorization import PERCENT_MEMORIZED
from tinymem.models.adapter import find_mlps
from tinymem.models.edit import Draws, Edit, Zeros
from tinymem.options import strength_of, unnamed
from tinymem.plugins import PACKAGE, code_digest, is_ours, is_plugin, load_plugin, own_code
from tinymem.records.cost import Cost, measured

Strength = float | int | None
Change = Edit | Draws | Elicitation  # what a strength leads to; an attack on prompts leaves the weights as they are
RunFunction = Callable[[Any, UnlearningTask, Any], Iterator[tuple[Strength, Any]]]  # Any: Edit, for attacks Change
REGISTERED = ("tinymem.localize.", "tinymem.attacks.")  # where registries take their modules from
PARTS = ("score", "learn", "loss", "attack", "elicit", "run")
ENOUGH = 4  # forward passes: two steps, since optimizer state exists from the second step on
ENDED = object()  # stands for a strength once a method yields no more


@dataclass(frozen=True)
class Method:
    """An unlearning method.

    name, alias    the field's term, and the study's own flag
    family         the folder of its file (neuron, weight ...); "own" for a user's file
    hyper_parameters   frozen dataclass of its settings
    run(model, task, hp) -> iterator of (strength, Edit), in the order of the settings' strengths
    cumulative     whether a strength's cost includes that of the strengths before it (steps of one training run)
    resolve(hp, parameters) -> hp with the defaults that depend on the model's size
    steps(model, task, hp) -> steps of the whole run, all strengths together; each repeats the passes of one step
    passes(model, task, hp) -> forward and backward passes of the whole run; None: counted by running one step
    check(model, task, hp)   raise UserError for settings that do not fit the model or the sequences
    seen(task, hp) -> the sequences to forget that an attack sees, bool (F,); None: none
    elicits        the metrics that an attack on prompts reads out; empty for all else
    measures       the metrics that an attack's records always hold
    nested         whether a ranking is built one weight after another, so that its cost grows with the strength
    idle           the strength that changes nothing; None: there is none
    enough         forward passes that show a run's peak of memory
    held_bytes(model, task, hp) -> bytes kept for all rows that a run reads, since a plan runs on fewer
    code           digest of a plugin's file, which identifies the method's version in records
    module         the module that defines the method
    """

    name: str
    alias: str
    family: str
    hyper_parameters: type
    run: RunFunction
    cumulative: bool
    resolve: Callable[[Any, int], Any]
    steps: Callable[[Any, UnlearningTask, Any], int]
    passes: Callable[[Any, UnlearningTask, Any], tuple[int, int]] | None
    check: Callable[[Any, UnlearningTask, Any], None]
    seen: Callable[[UnlearningTask, Any], Any] | None
    elicits: tuple[str, ...]
    measures: tuple[str, ...]
    nested: bool
    idle: Strength
    enough: int
    held_bytes: Callable[[Any, UnlearningTask, Any], int]
    code: str | None
    module: ModuleType

    @property
    def title(self) -> str:
        """The name, followed by the study's own flag if that differs."""
        return self.name if self.alias == self.name else f"{self.name} ({self.alias})"

    @property
    def is_objective(self) -> bool:
        """Whether the method trains on a loss."""
        return callable(getattr(self.module, "loss", None))

    @property
    def strength(self) -> str | None:
        """The setting that is cheap to vary, such as ratio or steps; None for a method without one."""
        return strength_of(self.hyper_parameters)

    @property
    def place(self) -> str:
        """The method on a command line: a plugin's file, a library module outside the registries, or its name."""
        file, module = self.module.__file__, self.module.__name__
        if self.code and file:
            return str(Path(file).resolve())
        return self.name if self.family == PACKAGE or module.startswith(REGISTERED) else module

    def strengths(self, hp: Any) -> tuple[Strength, ...]:
        """Return the strengths in these settings without repeats, ascending if cumulative; (None,) without any."""
        values = tuple(dict.fromkeys(getattr(hp, self.strength))) if self.strength else (None,)
        return tuple(sorted(values)) if self.cumulative else values

    def at(self, hp: Any, *strengths: Strength) -> Any:
        """Return the settings with these strengths only."""
        return dataclasses.replace(hp, **{self.strength: strengths}) if self.strength else hp

    def settings(self, hp: Any, strength: Strength) -> dict[str, Any]:
        """Return the method's section of a record: its name, its settings, and one strength."""
        about = {"name": self.name, **({"code": self.code} if self.code else {}), **recorded(hp)}
        return {**about, self.strength: strength} if self.strength else about

    def unvaried(self, hp: Any) -> dict[str, Any]:
        """Return the method's section without its strength, with the defaults of a small model resolved.

        Grids of large models state these settings.
        """
        about = self.settings(self.resolve(hp, 0), None)
        return {name: value for name, value in about.items() if name != self.strength}


ConfiguredMethods = Sequence[tuple[Method, Any]]  # methods or attacks, each with its settings


def recorded(hp: Any) -> dict[str, Any]:
    """Return the settings that a record names, with files named by their content.

    An `unrecorded` setting (see `option`) is left out while it does what was done before the setting existed. Raise
    UserError for a file that is missing or damaged.
    """
    hidden, values = unnamed(type(hp)), dataclasses.asdict(hp)
    for field in dataclasses.fields(hp):
        if field.name in hidden and values[field.name] == hidden[field.name]:
            del values[field.name]
        elif (content := field.metadata.get("content")) and values[field.name] is not None:
            values[field.name] = content(values[field.name])
    return values


def method_of(module: ModuleType) -> Method:
    """Return the method that a module defines. Raise UserError if it defines none, or more than one."""
    package, _, name = module.__name__.rpartition(".")
    defined = [part for part in PARTS if callable(getattr(module, part, None))]
    settings = getattr(module, "HyperParameters", None)
    if len(defined) != 1 or not (isinstance(settings, type) and dataclasses.is_dataclass(settings)):
        raise UserError(
            f"{module.__file__}: no method; it must define a dataclass HyperParameters and one of {', '.join(PARTS)}"
        )
    own = not is_ours(module)
    code = code_digest(module) if own else None
    if own:
        with own_code(f"{module.__file__}: HyperParameters"):
            check_settings(settings)
    nested = getattr(module, "NESTED", False)
    adaptors: dict[str, Callable[[], RunFunction]] = {
        "score": lambda: ranking(module, name, code, nested),
        "learn": lambda: learned_mask(module),
        "loss": lambda: objective(module, name),
        "attack": lambda: direct(module),
        "elicit": lambda: direct(module),
        "run": lambda: module.run,
    }
    check = watched_part(module, "check", own, type(None)) or (lambda model, task, hp: None)
    cumulative = getattr(module, "CUMULATIVE", defined[0] == "loss")
    return Method(
        name=name,
        alias=getattr(module, "ALIAS", name),
        family=PACKAGE if own else package.rpartition(".")[2],
        hyper_parameters=settings,
        run=adaptors[defined[0]](),
        cumulative=cumulative,
        resolve=watched_part(module, "resolve", own, settings) or (lambda hp, parameters: hp),
        steps=watched_part(module, "steps", own, int) or partial(_steps, defined[0], cumulative),
        passes=watched_part(module, "passes", own, tuple),
        check=partial(check_objective, name, check) if defined[0] == "loss" else check,
        seen=watched_part(module, "seen", own),
        elicits=getattr(module, "ELICITS", (PERCENT_MEMORIZED.name,) if defined[0] == "elicit" else ()),
        measures=getattr(module, "MEASURES", ()),
        nested=nested,
        idle=getattr(module, "IDLE", None),
        enough=getattr(module, "ENOUGH", ENOUGH),
        held_bytes=watched_part(module, "held_bytes", own, int) or (lambda model, task, hp: 0),
        code=code,
        module=module,
    )


def _steps(part: str, cumulative: bool, model, task: UnlearningTask, hp: Any) -> int:
    """Return the steps of a method that does not state them: its largest strength if strengths are cumulative, one per
    strength if each is learned from scratch, otherwise one.
    """
    strengths = getattr(hp, strength_of(type(hp)) or "", ())
    if cumulative:
        return max(strengths)
    return len(strengths) if strengths and part in ("learn", "attack", "elicit") else 1


def find(
    names: Sequence[str], known: Mapping[str, Method], flag: str, groups: Mapping[str, Sequence[str]] | None = None
) -> list[Method]:
    """Return methods by name, by the study's alias, by group, or `all`; a file or dotted module is loaded as a method.

    The order is as given, without repeats. Raise UserError, naming `flag`, for an unknown method and for two methods of
    one name.
    """
    groups = {**(groups or {}), "all": tuple(known)}
    single = [one for name in names for one in groups.get(name, (name,))]
    found: dict[str, Method] = {}
    for name in single:
        method = _find(name, known, groups, flag)
        if found.setdefault(method.name, method).code != method.code:
            raise UserError(f"{flag} {name}: another file's method is called {method.name}, too; rename one of them")
    return list(found.values())


def _find(name: str, known: Mapping[str, Method], groups: Iterable[str], flag: str) -> Method:
    by_name = {method.alias: method for method in known.values()} | dict(known)
    if name in by_name:
        return by_name[name]
    if not is_plugin(name):
        raise UserError(f"{flag} {name}: must be one of {', '.join([*known, *groups])}, or a file such as my_file.py")
    method = method_of(load_plugin(name, flag))
    if method.name in by_name:
        raise UserError(f"{flag} {name}: another method is called {method.name}; rename the file")
    return method


def ranking(module: ModuleType, name: str, code: str | None, nested: bool) -> RunFunction:
    """Rank once, then zero the entries with the highest scores at every strength. Scores are kept in the task's cache.

    A nested method builds its ranking one weight after another, up to the largest strength. The returned function
    raises NotFinite for scores that are NaN or +infinity.
    """
    drop = getattr(module, "drop", drop_top)

    def run(model, task: UnlearningTask, hp: Any) -> Iterator[tuple[Strength, Edit]]:
        strength = strength_of(type(hp))
        settings = {key: value for key, value in dataclasses.asdict(hp).items() if key != strength}
        if strength:
            settings[strength] = max(getattr(hp, strength)) if nested else None
        settings |= {"code": code} if code else {}

        def score() -> Scores:
            with guarded(name, model, task)() if code and task.cache else nullcontext():  # before anything is stored
                scores = module.score(model, task, hp)
                if code:
                    check_scores_of(model, scores)
                return scores

        scores = task.cached(name, settings, model, score)
        check_scores(scores.values() if isinstance(scores, dict) else scores, model, hp)
        for value in _strengths(hp):
            yield value, Zeros(drop(find_mlps(model), scores, value))

    return run


def learned_mask(module: ModuleType) -> RunFunction:
    """Learn a mask for every strength, each from scratch."""

    def run(model, task: UnlearningTask, hp: Any) -> Iterator[tuple[Strength, Edit]]:
        for value in _strengths(hp):
            yield value, Zeros(module.learn(model, task, hp, value))

    return run


def direct(module: ModuleType) -> RunFunction:
    """Make the edit, or the elicitation, of every strength from scratch."""
    function = getattr(module, "attack", None) or module.elicit

    def run(model, task: UnlearningTask, hp: Any) -> Iterator[tuple[Strength, Change]]:
        for value in _strengths(hp):
            yield value, function(model, task, hp, value)

    return run


def _strengths(hp: Any) -> tuple[Any, ...]:
    """Return the strengths that settings ask for; (None,) where they have no such field."""
    strength = strength_of(type(hp))
    return getattr(hp, strength) if strength else (None,)


def edits(method: Method, model, task: UnlearningTask, hp: Any) -> Generator[tuple[Any, Cost]]:
    """Yield for every strength of a method (`Method.strengths`) the edit and the cost of finding it from scratch.

    Tensors prepared for all strengths (task.cache) count in full for each of them, even if read from disk. Raise
    UserError if the method yields other strengths, or if a user's method fails, yields anything but an edit of this
    model, or changes the model or the data in place.
    """
    guard = guarded(method.name, model, task) if method.code else nullcontext
    with guard():
        steps, total = iter(method.run(model, task, hp)), Cost()
    for strength in method.strengths(hp):
        task.watch.method, task.watch.strength = method.name, None if method.cumulative else strength
        before = task.cache.spent if task.cache else 0.0
        with measured(model.device) as cost, guard():
            found, change = next(steps, (ENDED, None))
        if found != strength:
            what = "no edit" if found is ENDED else f"{found} first"
            raise UserError(f"{method.name}: the method yielded {what} for {strength}; correct its `run`")
        if method.code:
            with own_code(method.name):
                change = checked(method.name, method.elicits, model, change)
        cost.seconds = cost.spent - ((task.cache.spent if task.cache else 0.0) - before)
        total = total + cost if method.cumulative else cost
        yield change, (task.cache.cost + total if task.cache else total)
