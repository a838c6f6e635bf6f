"""Settings as frozen dataclasses. A field is a flag, a column of the results and part of a run's identity.

@settings
class HyperParameters:
    '''BalancedSubnet'''
    epochs: int = option(10, "passes over the forget set", low=1)
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar, get_type_hints

from typing_extensions import dataclass_transform

from tinymem.errors import UserError

Class = TypeVar("Class")
LARGEST_FLOAT = 1e38  # bound of other numbers: float32 holds no larger power of 10
LARGEST = 2**31 - 1  # bound of whole numbers whose option sets none: torch and numpy also use int32
FINITE = "a finite number"
SEEDS = 2**32 - 1  # the highest seed: PyTorch's generator reads 32 bits, so larger seeds coincide with smaller ones


def option(
    default: Any,
    help: str,
    *,
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    below: float | None = None,
    choices: tuple | None = None,
    alias: tuple[str, ...] = (),
    strength: bool = False,
    grid: tuple | None = None,
    small: tuple | None = None,
    large: Any = None,
    unrecorded: bool = False,
    content: Callable[[Any], Any] | None = None,
    earlier: Any = None,
) -> Any:
    """Return a dataclass field with its help text and allowed values.

    `low` and `high` are inclusive bounds, `above` and `below` exclusive ones. Without `high`, a whole number is at most
    LARGEST. A bound or choice applies to each element of a tuple and never to None. `alias` lists further flag names,
    usually the study's.

    For unlearning methods `strength` marks the one field, a tuple, that is cheap to vary; `grid` and `small` are the
    values in the study's sweep and in the small one (default: the field's default), `large` the value for large models.

    A record names an `unrecorded` setting only where it differs from what runs did before the setting existed, so that
    old and new runs count as the same. `earlier` is that value (default: the field's default). `content` maps a value
    to what a record names in its place: for a file, what is in it.
    """
    if () in (grid, small):
        raise UserError("option: a grid without values; leave it out, or give it some")
    rules = dict(low=low, high=high, above=above, below=below, choices=choices)
    sweep = dict(strength=strength, grid=grid, small=small, large=large)
    records = dict(unrecorded=unrecorded, earlier=earlier, content=content)
    return dataclasses.field(default=default, metadata={"help": help, "alias": alias, **rules, **sweep, **records})


def strength_of(cls: type) -> str | None:
    """Return the name of the field marked as the strength; None if there is none."""
    return next((field.name for field in dataclasses.fields(cls) if field.metadata.get("strength")), None)


def unnamed(cls: type) -> dict[str, Any]:
    """Return the settings that a record may leave out (see `option`), with the values they then have."""
    return {
        field.name: field.default if field.metadata.get("earlier") is None else field.metadata["earlier"]
        for field in dataclasses.fields(cls)
        if field.metadata.get("unrecorded")
    }


@dataclass_transform(frozen_default=True)
def settings(cls: type[Class]) -> type[Class]:
    """Make a class of options a frozen dataclass that refuses values that are not allowed (see `check_options`)."""
    check_more = getattr(cls, "__post_init__", None)  # may be inherited from another class of settings

    def __post_init__(self: Any) -> None:
        check_options(self)
        if check_more is not None:
            check_more(self)

    cls.__post_init__ = __post_init__  # type: ignore[attr-defined]  # not every class defines it
    return dataclasses.dataclass(frozen=True)(cls)


def check_options(settings: Any) -> None:
    """Raise UserError for the first field of a dataclass whose value is not allowed."""
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        for element in value if isinstance(value, tuple) else (value,):
            if element is not None and not _allowed(element, field.metadata):
                raise UserError(f"--{field.name} {_shown(element)}: must be {_required(element, field.metadata)}")
            largest = LARGEST_FLOAT if isinstance(element, float) else LARGEST
            if _too_large(element, field.metadata, largest):
                raise UserError(f"--{field.name} {_shown(element)}: must be <= {largest}")


def _too_large(value: Any, rules: Mapping[str, Any], largest: float) -> bool:
    bounded = any(rules.get(name) is not None for name in ("high", "below", "choices"))
    return isinstance(value, (int, float)) and not isinstance(value, bool) and not bounded and value > largest


def _shown(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 80 else text[:80] + " ..."


def _allowed(value: Any, rules: Mapping[str, Any]) -> bool:
    if rules.get("choices") is not None:
        return value in rules["choices"]
    if isinstance(value, float) and not math.isfinite(value):
        return False
    return (
        (rules.get("low") is None or value >= rules["low"])
        and (rules.get("high") is None or value <= rules["high"])
        and (rules.get("above") is None or value > rules["above"])
        and (rules.get("below") is None or value < rules["below"])
    )


def _required(value: Any, rules: Mapping[str, Any]) -> str:
    """Return what a refused value must be, as text. Infinity may be within the bounds, so "finite" is named as well."""
    allowed = allowed_text(rules)
    if rules.get("choices") is not None or not isinstance(value, float) or math.isfinite(value):
        return allowed
    return allowed if allowed == FINITE else f"{FINITE} {allowed}"


def allowed_text(rules: Mapping[str, Any]) -> str:
    """Return the allowed values as text, e.g. "in (0, 1)", "one of increment, mult" or "a finite number"."""
    if rules.get("choices") is not None:
        return "one of " + ", ".join(map(str, rules["choices"]))
    low, high, above, below = (rules.get(name) for name in ("low", "high", "above", "below"))
    has_lower, has_upper = (low, above) != (None, None), (high, below) != (None, None)
    if has_lower and has_upper:
        left = f"({above}" if low is None else f"[{low}"
        return f"in {left}, " + (f"{below})" if high is None else f"{high}]")
    if has_lower:
        return f"> {above}" if low is None else f">= {low}"
    if has_upper:
        return f"< {below}" if high is None else f"<= {high}"
    return FINITE


def field_types(cls: type) -> dict[str, type]:
    """Return field name -> type; `int | None` becomes int, `tuple[float, ...]` is unchanged."""
    types = {}
    for name, hint in get_type_hints(cls).items():
        members = [t for t in getattr(hint, "__args__", ()) if t is not type(None)]
        optional = type(None) in getattr(hint, "__args__", ())
        types[name] = members[0] if optional else hint
    return types


def as_flags(*parts: Any, leave_out: Iterable[str | None] = (), prefix: str = "") -> list[str]:
    """Return the flags of all settings that differ from their defaults: the inverse of `tinymem.cli.collect`.

    prefix: put before every name, such as "relearn." for the settings of an attack.
    """
    return [
        word
        for part in parts
        for field in dataclasses.fields(part)
        if field.name not in leave_out and getattr(part, field.name) != field.default
        for word in _words(f"{prefix}{field.name}", getattr(part, field.name))
    ]


def _words(name: str, value: Any) -> list[str]:
    """Return a flag and its value as words of a command line, one word per element of a tuple."""
    if isinstance(value, (list, tuple)):
        return [f"--{name}", *map(str, value)]
    return [f"--{name}={value}"]
