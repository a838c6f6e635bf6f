"""Plugins: a user's file or dotted module with the contents of a registered module."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.util
import sys
import traceback
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import ModuleType

from tinymem.errors import UserError, first_line, full_disk, out_of_memory

PACKAGE = "own"  # modules from files are called own.NAME
_files: set[str | None] = set()  # the files of all loaded plugins


def is_plugin(name: str) -> bool:
    """Return whether a name is a file or a dotted module, not a registered name."""
    return name.endswith(".py") or "/" in name or "." in name


def is_ours(module: ModuleType) -> bool:
    """Return whether a module belongs to this package, not to a user."""
    return module.__name__.startswith("tinymem.")


@cache
def load_plugin(place: str, flag: str) -> ModuleType:
    """Import a file (path/to/my_method.py) or a dotted module (my_package.my_method). The code in it runs.

    flag: the flag that named it, for messages. Raise UserError, in one line, if the file is missing or its import
    fails.
    """
    path = Path(place)
    if not place.endswith(".py"):
        if path.exists() or "/" in place:
            what = "a folder" if path.is_dir() else "no Python file" if path.exists() else "no such file"
            raise UserError(
                f"{flag} {place}: {what}; give a file such as my_file.py, or a module such as my_package.my_file"
            )
        return _imported(place, flag, lambda: importlib.import_module(place))
    if not path.is_file():
        raise UserError(f"{flag} {place}: {'not a regular file' if path.exists() else 'no such file'}")
    name = f"{PACKAGE}.{path.stem}"
    if not path.stem.isidentifier():
        raise UserError(f"{flag} {place}: the file's name must be a Python name, such as my_method.py")

    def run() -> ModuleType:
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec and spec.loader, "a file that ends in .py has a loader"
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module  # dataclasses look up their types here
        spec.loader.exec_module(module)
        return module

    return _imported(place, flag, run)


@contextlib.contextmanager
def own_code(what: str) -> Iterator[None]:
    """Turn an exception of a user's code within the block into a UserError with its type, file and line.

    UserErrors and errors of memory or disk space are re-raised unchanged. what: the method or metric, for the message.
    """
    try:
        yield
    except (Exception, SystemExit) as error:  # an exit would look like success
        if isinstance(error, UserError) or (
            isinstance(error, Exception) and (out_of_memory(error) or full_disk(error))
        ):
            raise
        raise UserError(f"{what}: {_reason(error)}; correct the file") from error


def _reason(error: BaseException) -> str:
    """Return an exception's type and first line, and the line of the plugin that caused it, if any."""
    lines = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename in _files]
    place = f" ({lines[-1].filename}, line {lines[-1].lineno})" if lines else ""
    return f"{type(error).__name__}: {first_line(error)}{place}"


def code_digest(module: ModuleType) -> str | None:
    """Return 16 hexadecimal digits that identify the version of a plugin's file in records; None without a file."""
    path = getattr(module, "__file__", None)
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()[:16] if path else None


def _imported(place: str, flag: str, run) -> ModuleType:
    try:
        module = run()
        _files.add(getattr(module, "__file__", None))
        return module
    except ModuleNotFoundError as error:
        if not place.endswith(".py") and f"{place}.".startswith(f"{error.name}."):
            raise UserError(
                f"{flag} {place}: no such name, and as a module it cannot be imported ({first_line(error)})"
            ) from None
        raise UserError(f"{flag} {place}: cannot be imported ({type(error).__name__}: {first_line(error)})") from error
    except (Exception, SystemExit) as error:  # any exception of the user's code
        raise UserError(f"{flag} {place}: cannot be imported ({type(error).__name__}: {first_line(error)})") from error
