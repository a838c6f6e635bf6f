"""Edits: changes of a model by a method or an attack, as values. They apply within a block and are then undone exactly.

This is the only code that changes the weights of a model and restores them. Edits name weights by their state-dict
keys. They nest: an attack is applied on top of an edit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch

from tinymem.errors import UserError, reading
from tinymem.models.adapter import Weight, weight_of
from tinymem.models.fingerprint import weights_fingerprint

Masks = Mapping[str, "torch.Tensor"]
REMAKE = "delete this folder and run again"


class Changes:
    """In-place changes of weights, with their earlier values."""

    def __init__(self) -> None:
        self._before: list[tuple[torch.Tensor, Any, torch.Tensor]] = []
        self._hooks: list[Any] = []

    def hook(self, handle: Any) -> None:
        """Note a torch hook set on the model: undoing removes it."""
        self._hooks.append(handle)

    def zero(self, tensor: torch.Tensor, places) -> None:
        """Set entries to zero. Keep a copy of them alone. places: integer tensor, or a tuple of one per dimension."""
        tensor = tensor.detach()
        self._before.append((tensor, places, tensor[places]))  # an index of tensors copies
        tensor[places] = 0

    def replace(self, tensor: torch.Tensor, value: torch.Tensor) -> None:
        """Set a whole tensor. Keep a copy of it. Raise ValueError for another shape, before anything changes."""
        if tensor.shape != value.shape:
            raise ValueError(f"a weight of shape {tuple(tensor.shape)} cannot become one of {tuple(value.shape)}")
        self.keep(tensor)
        tensor.detach().copy_(value)

    def keep(self, tensor: torch.Tensor) -> None:
        """Keep a copy of a tensor that the caller is about to train in place."""
        self._before.append((tensor.detach(), ..., tensor.detach().clone()))

    def before(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return a tensor as it was before these changes: a copy."""
        value = tensor.detach().clone()
        for changed, places, values in reversed(self._before):
            if changed.data_ptr() == tensor.data_ptr():
                value.view(changed.shape)[places] = values
        return value

    def undo(self) -> None:
        """Undo all changes, newest first."""
        while self._before:
            tensor, places, values = self._before.pop()
            tensor[places] = values
        while self._hooks:
            self._hooks.pop().remove()


class _Permanent(Changes):
    """In-place changes that nobody undoes: earlier values are not kept."""

    def zero(self, tensor: torch.Tensor, places) -> None:
        tensor.detach()[places] = 0

    def hook(self, handle: Any) -> None:
        pass

    def keep(self, tensor: torch.Tensor) -> None:
        pass


class Edit(Protocol):
    """A change of a model's weights, or of what leaves the model (`tinymem.models.output_filter`)."""

    def apply(self, model, changes: Changes) -> None:
        """Change the model in place, so that `changes` can undo it."""

    def extent(self, model) -> Extent:
        """Return how much `apply` would change in this model in its present state."""


@dataclass
class Extent:
    """How much an edit changes: entries set to zero, entries whose value differs, squared norm of the difference."""

    zeroed: int = 0
    changed: int = 0
    squared: float = 0.0

    def add(self, difference: torch.Tensor, zeroed: int) -> None:
        """Count one tensor. difference: new minus old values, of any shape."""
        self.zeroed += zeroed
        self.changed += int(difference.count_nonzero())
        self.squared += _norm(difference) ** 2


@dataclass(frozen=True)
class Zeros:
    """An edit that sets entries to zero.

    masks: state-dict key -> bool, (out, in) for the matrix of a linear layer however it is stored, otherwise shaped as
    stored; True marks an entry to zero. A lazy mapping holds one mask at a time.
    """

    masks: Masks

    def apply(self, model, changes: Changes) -> None:
        for weight, mask in self._stored(model):
            tensor = weight.parameter.detach()
            if not tensor.is_contiguous():
                changes.zero(tensor, mask.nonzero(as_tuple=True))
                continue
            places = mask.flatten().nonzero().flatten()
            changes.zero(tensor.view(-1), places.int() if tensor.numel() < 2**31 else places)  # half the memory

    def extent(self, model) -> Extent:
        extent = Extent()
        for weight, mask in self._stored(model):
            extent.add(weight.parameter.detach()[mask], int(mask.sum()))
        return extent

    def _stored(self, model) -> Iterator[tuple[Weight, torch.Tensor]]:
        """Yield every weight with its mask, shaped as stored and on its device. Raise KeyError for an unknown name."""
        for weight in [weight_of(model, name) for name in self.masks]:  # all names before the first change
            mask = self.masks[weight.name]
            if mask.shape != weight.view().shape or mask.dtype != torch.bool:
                raise ValueError(
                    f"{weight.name}: a {mask.dtype} mask of {tuple(mask.shape)} for {tuple(weight.view().shape)}"
                )
            yield weight, weight.view(mask.to(weight.parameter.device))


@dataclass(frozen=True)
class Weights:
    """An edit that gives parameters new values.

    values: state-dict key -> tensor shaped as stored, of any type (rounded to the parameter's). A lazy mapping, such as
    `stored`, keeps large models on disk.
    notes: results of the search for the values, such as its last losses, which records keep.
    adapter: the low-rank change that the values hold (`tinymem.models.lora.Adapter`), or None
    """

    values: Mapping[str, torch.Tensor]
    notes: Mapping[str, float] = field(default_factory=dict)
    adapter: Any = None

    def apply(self, model, changes: Changes) -> None:
        parameters = {name: weight_of(model, name).parameter for name in self.values}
        for name, parameter in parameters.items():
            changes.replace(parameter, self.values[name])

    def extent(self, model) -> Extent:
        extent = Extent()
        for name in self.values:
            old = weight_of(model, name).parameter.detach()
            new = self.values[name].to(old)
            if new.shape != old.shape:
                raise ValueError(f"{name}: a value of {tuple(new.shape)} for {tuple(old.shape)}")
            extent.add(new.float() - old.float(), int(((new == 0) & (old != 0)).sum()))
        return extent


@dataclass(frozen=True)
class SavedModel(Weights):
    """The weights of a saved model, which must still be those that were saved.

    fingerprint: `weights_fingerprint` of the saved model; None for a folder of earlier versions, which is not checked
    """

    folder: Path = Path()
    fingerprint: str | None = None

    def apply(self, model, changes: Changes) -> None:
        with self._checked():
            super().apply(model, changes)
        if self.fingerprint not in (None, weights_fingerprint(model)):
            raise UserError(f"{self.folder}: its weights have changed since they were saved; {REMAKE}")

    def extent(self, model) -> Extent:
        with self._checked():
            return super().extent(model)

    def _checked(self) -> AbstractContextManager[None]:
        """Turn an error about a weight's name or shape into a UserError about the folder."""
        return reading(self.folder, f"does not hold this model's weights ({{why}}); {REMAKE}", (KeyError, ValueError))


@dataclass(frozen=True)
class Draws:
    """The edits of a random attack, one per draw. Each is measured, and records hold the means."""

    edits: tuple[Edit, ...]


class Lazy(Mapping):
    """A mapping that makes a tensor on each access, so that only one is in memory at a time."""

    def __init__(self, makers: Mapping[str, Callable[[], torch.Tensor]]):
        self._makers = makers

    def __getitem__(self, name: str) -> torch.Tensor:
        return self._makers[name]()

    def __iter__(self) -> Iterator[str]:
        return iter(self._makers)

    def __len__(self) -> int:
        return len(self._makers)


def stored_model(folder: Path, model, fingerprint: str | None = None) -> SavedModel:
    """Return the edit that turns the model into the one saved in a folder of safetensors files.

    fingerprint: as in `SavedModel`. Raise UserError, naming the folder or the file, if one is missing or damaged.
    """
    makers: dict[str, Callable[[], torch.Tensor]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with reading(path, "damaged ({why}); delete its folder and run again"):
            makers |= _makers(path)
    if not makers:
        raise UserError(f"{folder}: holds no weights; {REMAKE}")
    own = _own_names(model, makers)
    values = Lazy({own.get(name, name): make for name, make in makers.items()})
    return SavedModel(values, folder=folder, fingerprint=fingerprint)


def _own_names(model, stored: Collection[str]) -> dict[str, str]:
    """Return the model's name of each weight that transformers stores under another: GPT-NeoX's output layer.

    stored: the names in the model's files. Names that the model has, too, are left out.
    """
    from transformers.core_model_loading import revert_weight_conversion

    names: dict[str, str] = {}
    for name, parameter in model.named_parameters():
        if name not in stored:
            names |= dict.fromkeys(revert_weight_conversion(model, {name: parameter.detach()}), name)
    return names


def stored(path: str | Path) -> Lazy:
    """Return the tensors of a safetensors file, each read on access."""
    return Lazy(dict(_makers(path)))


def _makers(path: str | Path) -> list[tuple[str, Callable[[], torch.Tensor]]]:
    from safetensors import safe_open

    file = safe_open(path, framework="pt")
    return [(name, partial(file.get_tensor, name)) for name in file.keys()]


@contextmanager
def reversible() -> Iterator[Changes]:
    """On leaving, undo all changes that the block made through the yielded object, even after an error."""
    changes = Changes()
    try:
        yield changes
    finally:
        changes.undo()


def apply(model, *edits: Edit) -> None:
    """Apply edits permanently."""
    for edit in edits:
        edit.apply(model, _Permanent())


@contextmanager
def applied(model, *edits: Edit) -> Iterator:
    """Yield the model with the edits applied in order. Restore every bit on leaving, even after an error.

    Raise KeyError for a weight that the model does not have.
    """
    with reversible() as changes:
        for edit in edits:
            edit.apply(model, changes)
        yield model


def describe(model, edit: Edit) -> dict[str, float]:
    """Return the size of an edit of this model, before it is applied.

    percent_zeroed    entries set to zero, in percent of all parameters (tied ones count once)
    percent_changed   entries whose value changes
    relative_change   norm of the change over the norm of all parameters
    """
    extent, total, squared = edit.extent(model), 0, 0.0
    for parameter in model.parameters():
        total += parameter.numel()
        squared += _norm(parameter.detach()) ** 2
    return {
        "percent_zeroed": 100 * (extent.zeroed / total),
        "percent_changed": 100 * (extent.changed / total),
        "relative_change": math.sqrt(extent.squared / squared) if squared else 0.0,
    }


def _norm(tensor: torch.Tensor) -> float:
    return torch.linalg.vector_norm(tensor, dtype=torch.float32).item()  # without a float32 copy
