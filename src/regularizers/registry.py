"""The registry of train-time regularizers: one line each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from tinymem.errors import UserError
from tinymem.regularizers import dropout, dropper, goldfish, l1, sinks, spectral_reg
from tinymem.regularizers.protocol import Regularizer


@dataclass(frozen=True)
class Entry:
    """The entry of a regularizer.

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
    Entry("goldfish", goldfish.Settings, goldfish.build),
    Entry("memorization_sinks", sinks.Settings, sinks.build),
)


def _made(settings: type, values: Mapping[str, Any]) -> Any:
    return settings(**{field.name: values[field.name] for field in fields(settings) if field.name in values})


def switched_on(values: Mapping[str, Any], make: Callable[[type, Mapping[str, Any]], Any] = _made) -> tuple[Any, ...]:
    """Return the settings of each regularizer that these values switch on, in registry order.

    values: setting -> value, including unrelated settings; missing ones keep their defaults. Raise UserError for
    a value that is not allowed. make(settings class, values): reads them, if they come from a file.
    """
    return tuple(make(entry.settings, values) for entry in REGULARIZERS if values.get(entry.flags[0]))


def check_switches(given: Mapping[str, Any]) -> None:
    """Raise UserError for a setting whose regularizer is off: it would have no effect."""
    for entry in REGULARIZERS:
        switch, *others = entry.flags
        for name in others:
            if name in given and not given.get(switch):
                raise UserError(f"--{name} {given[name]}: only with --{switch}; add it or leave --{name} out")


def build_regularizers(model, chosen: Iterable[Any], seed: int) -> list[Regularizer]:
    """Return regularizers of this model from settings, as returned by `switched_on`."""
    by_settings = {entry.settings: entry for entry in REGULARIZERS}
    return [by_settings[type(settings)].build(model, settings, seed) for settings in chosen]
