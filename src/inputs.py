"""Read untrusted files: only regular files of bounded size, with every value checked."""

from __future__ import annotations

import dataclasses
import json
import os
import stat
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_args, get_origin, get_type_hints

from tinymem.errors import UserError, first_line

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

LIMIT = "TINYMEM_MAX_FILE_GB"  # environment variable: the largest file that is read whole, 1 by default
JSON_SHARE = 0.1  # share of that size for JSON and TOML
AGAIN = "delete it and run again"

Settings = TypeVar("Settings", bound="DataclassInstance")


def check_file(path: str | Path, share: float = 1.0) -> Path:
    """Return the path if it is a regular file small enough to be read whole.

    share: share of the size in TINYMEM_MAX_FILE_GB. Raise UserError for anything else: reading a pipe or a device may
    never end, and a huge sparse file uses no disk space but all memory.
    """
    path = Path(path)
    try:
        about = path.stat()
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:  # ValueError: a null byte
        raise UserError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from None
    if not stat.S_ISREG(about.st_mode):
        raise UserError(f"{path}: is {_kind(about.st_mode)}, not a file; give a file")
    largest = share * _largest_gigabytes()
    if about.st_size > largest * 1e9:
        raise UserError(
            f"{path}: has {about.st_size / 1e9:.3g} GB, more than the {largest:g} GB that are read at once; split it, "
            f"or set the environment variable {LIMIT} to {about.st_size / share / 1e9 + 0.1:.1f} or more"
        )
    return path


def _kind(mode: int) -> str:
    kinds = {stat.S_ISDIR: "a folder", stat.S_ISFIFO: "a pipe", stat.S_ISSOCK: "a socket"}
    return next((words for check, words in kinds.items() if check(mode)), "a device")


def _largest_gigabytes() -> float:
    text = os.environ.get(LIMIT, "1")
    try:
        largest = float(text)
    except ValueError:
        largest = float("nan")
    if not largest > 0:
        raise UserError(f"{LIMIT}={text}: must be a number of gigabytes > 0, such as 4")
    return largest


def read_bytes(path: str | Path, share: float = 1.0) -> bytes:
    """Return the content of a regular file. Raise UserError as `check_file` does."""
    try:
        return check_file(path, share).read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None


def read_json(path: str | Path, required: tuple[str, ...] = (), remedy: str = AGAIN) -> Any:
    """Return a file's JSON. Raise UserError if it is missing, not JSON, or not an object with the `required` keys.

    remedy: advice about a damaged file, for the message.
    """
    content = parse_json(read_bytes(path, JSON_SHARE), path, remedy)
    missing = [key for key in required if not isinstance(content, dict) or key not in content]
    if missing:
        raise UserError(f"{path}: this file is damaged (no {', '.join(missing)}); {remedy}")
    return content


def parse_json(text: str | bytes, path: str | Path, remedy: str = AGAIN) -> Any:
    """Return the content of JSON text. path: its file, which the UserError about damage names."""
    try:
        return json.loads(text, parse_constant=_no_number)
    except RecursionError:
        raise UserError(f"{path}: this file is damaged (nested too deeply); {remedy}") from None
    except ValueError as error:  # UnicodeDecodeError is one
        raise UserError(f"{path}: this file is damaged ({first_line(error)}); {remedy}") from None


def read_toml(path: str | Path, flag: str) -> dict[str, Any]:
    """Return a TOML file's content. flag: names it in messages. Raise UserError if it cannot be read."""
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        return tomllib.loads(read_bytes(path, JSON_SHARE).decode("utf-8"))
    except UserError as error:
        raise UserError(f"{flag} {path}: cannot be read ({str(error).removeprefix(f'{path}: ')})") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{flag} {path}: cannot be read ({first_line(error)})") from None


def _no_number(text: str) -> None:
    raise ValueError(f"{text} is no JSON number")


def read_settings(
    cls: type[Settings], mapping: Any, path: str | Path, remedy: str = AGAIN, whole: bool = False
) -> Settings:
    """Return a dataclass filled with a file's values; the dataclass is the file's schema.

    mapping   names and values; unknown names are ignored, since one mapping may fill several dataclasses
    path      the file, for messages
    whole     whether every field is required; otherwise missing fields have their defaults

    Raise UserError, in one line with the file, the field and the allowed values, for a value of the wrong type or one
    that the dataclass itself refuses.
    """
    if not isinstance(mapping, Mapping):
        raise UserError(f"{path}: this file is damaged ({cls.__name__} is no object); {remedy}")
    types, values = get_type_hints(cls), {}
    for field in dataclasses.fields(cls):
        if field.name in mapping:
            values[field.name] = check_value(mapping[field.name], types[field.name], field.name, path, remedy)
        elif whole or (field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING):
            raise UserError(f"{path}: this file is damaged (no {field.name}); {remedy}")
    try:
        return cls(**values)
    except UserError as error:
        raise UserError(f"{path}: {str(error).removeprefix('--')}; {remedy}") from None


def check_value(value: Any, kind: Any, name: str, path: str | Path, remedy: str = AGAIN) -> Any:
    """Return a value read from a file as the type `kind`: a list may become a tuple, a whole number a float.

    Raise UserError, naming the file and the value, for a wrong type.
    """
    fitted = _fitted(value, kind)
    if fitted is _WRONG:
        shown = repr(value)
        shown = shown if len(shown) <= 40 else shown[:40] + " ..."
        raise UserError(f"{path}: {name} {shown}: must be {_words(kind)}; {remedy}")
    return fitted


_WRONG = object()


def _fitted(value: Any, kind: Any) -> Any:
    members, origin = get_args(kind), get_origin(kind)
    if kind is Any:
        return value
    if type(None) in members:  # an optional value
        return None if value is None else next((f for m in members if (f := _fitted(value, m)) is not _WRONG), _WRONG)
    if origin in (list, tuple):
        if not isinstance(value, (list, tuple)):
            return _WRONG
        fitted = [_fitted(element, members[0]) for element in value]
        return _WRONG if _WRONG in fitted else origin(fitted)
    if origin is dict:
        return value if isinstance(value, dict) else _WRONG
    if kind is float:
        fits = isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 2**1000
        return float(value) if fits else _WRONG
    return value if type(value) is kind else _WRONG


def _words(kind: Any) -> str:
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): "null"}
    if type(None) in get_args(kind):
        return " or ".join(_words(member) for member in get_args(kind))
    if get_origin(kind) in (list, tuple):
        return f"a list, each {_words(get_args(kind)[0])}"
    return "an object" if get_origin(kind) is dict else names.get(kind, getattr(kind, "__name__", str(kind)))
