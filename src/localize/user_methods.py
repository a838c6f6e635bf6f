"""Checks of users' methods and attacks: code that fails, does harm or returns nonsense ends in a one-line error."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, contextmanager
from types import ModuleType
from typing import Any, get_args, get_origin

import torch

from tinymem.data.dataset import Artifacts
from tinymem.errors import UserError
from tinymem.localize.task import UnlearningTask
from tinymem.metrics.elicitation import Elicitation, Read
from tinymem.metrics.metric import Values, as_values
from tinymem.metrics.probe import Probe
from tinymem.metrics.registry import metrics_of
from tinymem.models.adapter import find_mlps, weight_of
from tinymem.models.edit import Draws
from tinymem.models.fingerprint import left_alone
from tinymem.options import field_types, strength_of
from tinymem.plugins import own_code

PLAIN = (bool, int, float, str)  # what flags and records hold


def check_settings(settings: type) -> None:
    """Raise TypeError or ValueError for settings of a user's method that no flag or record can hold."""
    types = field_types(settings)  # raises for hints without a meaning
    for name, kind in ((field.name, types[field.name]) for field in dataclasses.fields(settings)):
        if (get_args(kind)[0] if get_origin(kind) is tuple else kind) not in PLAIN:
            raise TypeError(f"{name} is of type {kind}; it must be bool, int, float, str, or a tuple of one of them")
    try:
        given, strength = settings(), strength_of(settings)
    except UserError as error:
        raise ValueError(f"a default is not allowed, {error}") from None
    for field in dataclasses.fields(settings):
        if field.name in ("name", "code"):
            raise ValueError(f"{field.name} is the record's own; rename this setting")
        for grid in (field.metadata.get("grid"), field.metadata.get("small")):
            if grid is not None and grid != ():
                _check_grid(given, field, grid)
    values = getattr(given, strength) if strength else (0,)
    numbers = isinstance(values, tuple) and all(isinstance(value, (int, float)) for value in values)
    if not values or not numbers:
        raise TypeError(f"{strength} is {values!r}; a strength must be a tuple of one number or more")


def _check_grid(given: Any, field: dataclasses.Field, grid: Any) -> None:
    """Raise an error unless a grid is a sequence of different values, each allowed."""
    if not isinstance(grid, (tuple, list)) or len(set(grid)) < len(grid):
        raise ValueError(f"the grid of {field.name} is {grid!r}; it must be a tuple of different values")
    for value in grid:
        dataclasses.replace(given, **{field.name: (value,) if isinstance(getattr(given, field.name), tuple) else value})


def watched_part(module: ModuleType, part: str, own: bool, kind: type | None = None) -> Callable | None:
    """Return a module's function of this name, or None. A function from a user's file must return this kind.

    kind: None for a tensor, because naming its type would load torch.
    """
    function = getattr(module, part, None)
    if function is None or not own:
        return function
    what = f"{module.__name__.rpartition('.')[2]}: {part}"

    def watched(*arguments: Any) -> Any:
        with own_code(what):
            found, wanted = function(*arguments), kind or torch.Tensor
            if not isinstance(found, wanted):
                raise TypeError(f"it gave a {type(found).__name__}, not a {wanted.__name__}")
            return found

    return watched


def guarded(name: str, model, task: UnlearningTask) -> Callable[[], AbstractContextManager[None]]:
    """Return a context for steps of a user's method, which must not fail and must leave model and sequences alone."""
    data = (task.forget.planted, task.forget.clean, task.forget.prompt_end, task.retain)

    @contextmanager
    def guard() -> Iterator[None]:
        with own_code(name), left_alone(f"{name}: the method", model, *data):
            yield

    return guard


def checked(name: str, elicits: Collection[str], model, change: Any) -> Any:
    """Return what a user's method gave. Raise TypeError or ValueError unless it fits the model and can be recorded."""
    if isinstance(change, Elicitation):
        if not elicits:
            raise ValueError(f"its Elicitation needs ELICITS = {tuple(change.values)!r}, the metrics that it reads out")
        if set(change.values) != set(elicits) or not isinstance(change.sequences, int) or change.sequences < 1:
            raise ValueError(
                f"its Elicitation has {', '.join(change.values)} and sequences {change.sequences!r}; it must have "
                f"{', '.join(elicits)} and 1 or more"
            )
        return dataclasses.replace(
            change, values={metric: _careful(name, read) for metric, read in change.values.items()}
        )
    if isinstance(change, Draws):
        if not change.edits:
            raise ValueError("its Draws have no edits")
        return Draws(tuple(checked(name, elicits, model, edit) for edit in change.edits))
    if not all(callable(getattr(change, part, None)) for part in ("apply", "extent")):
        raise TypeError(f"it gave a {type(change).__name__}, not an edit such as tinymem.models.edit.Weights")
    change.extent(model)
    for note, value in getattr(change, "notes", {}).items():
        if isinstance(value, bool) or not isinstance(value, (int, float)) or metrics_of([note]):
            raise ValueError(f"its note {note} is {value!r}; it must be a number, and no metric's name")
    return change


def _careful(name: str, read: Read) -> Read:
    """Wrap a function of a user's attack on prompts, which must not fail and must leave model and sequences alone."""

    def careful(probe: Probe, artifacts: Artifacts) -> Values:
        data = (artifacts.planted, artifacts.clean, artifacts.prompt_end)
        with own_code(name), left_alone(f"{name}: the attack", probe.model, *data):
            values = as_values(read(probe, artifacts))
            if values.sums.lt(0).any() or values.sums.gt(values.weights).any():
                raise ValueError("its values must be between 0 and 1, or NaN")
            return values

    return careful


def check_scores_of(model, scores: Any) -> None:
    """Raise TypeError or ValueError unless these are scores of this model's neurons or of its weights."""
    if isinstance(scores, dict):
        wanted = {name: tuple(weight_of(model, name).view().shape) for name in scores}
        given = dict(scores)
    else:
        wanted = {f"layer {number}": (mlp.inner_dim,) for number, mlp in enumerate(find_mlps(model))}
        given = {f"layer {number}": values for number, values in enumerate(scores)}
        if len(given) != len(wanted):
            raise ValueError(f"it gave scores of {len(given)} layers, the model has {len(wanted)}")
    for name, values in given.items():
        if not isinstance(values, torch.Tensor) or values.is_complex():
            raise TypeError(f"its scores of {name} are no tensor of numbers")
        if values.shape != wanted[name]:
            raise ValueError(f"its scores of {name} have shape {tuple(values.shape)}, not {wanted[name]}")
