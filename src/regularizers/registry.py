"""The train-time regularizers: one line each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from tinymem.errors import UserError
from tinymem.regularizers import dropout, dropper, l1, spectral_reg
from tinymem.regularizers.protocol import Regularizer


@dataclass(frozen=True)
class Entry:
    """One regularizer.

    name       the field's term
    settings   frozen dataclass, field = flag = column; its first field switches the regularizer on when it is not 0
    build(model, settings, seed) -> Regularizer    model: on its device, before training
    """

    name: str
    settings: type
    build: Callable[[Any, Any, int], Regularizer]

    @property
    def flags(self) -> list[str]:
        """The names of all settings, the switch first."""
        return [field.name for field in fields(self.settings)]


REGULARIZERS = (
    Entry("spectral_norm", spectral_reg.Settings, spectral_reg.build),
    Entry("loss_truncation", dropper.Settings, dropper.build),
    Entry("example_tied_dropout", dropout.Settings, dropout.build),
    Entry("l1", l1.Settings, l1.build),
)


def _made(settings: type, values: Mapping[str, Any]) -> Any:
    return settings(**{field.name: values[field.name] for field in fields(settings) if field.name in values})


def switched_on(values: Mapping[str, Any], make: Callable[[type, Mapping[str, Any]], Any] = _made) -> tuple[Any, ...]:
    """Return the settings of each regularizer that these values switch on, in the order of the registry.

    values: setting -> value, those of other things among them; what is missing keeps its default. Raise UserError for
    a value that is not allowed. make(settings class, values): how they are read, where they come from a file.
    """
    return tuple(make(entry.settings, values) for entry in REGULARIZERS if values.get(entry.flags[0]))


def check_switches(given: Mapping[str, Any]) -> None:
    """UserError when a setting was given whose regularizer is not switched on, and which would so do nothing."""
    for entry in REGULARIZERS:
        switch, *others = entry.flags
        for name in others:
            if name in given and not given.get(switch):
                raise UserError(f"--{name} {given[name]}: only with --{switch}; add it or leave --{name} out")


def build_regularizers(model, chosen: Iterable[Any], seed: int) -> list[Regularizer]:
    """From settings, as `switched_on` returns them, to regularizers of this model."""
    by_settings = {entry.settings: entry for entry in REGULARIZERS}
    return [by_settings[type(settings)].build(model, settings, seed) for settings in chosen]
