"""Plugins: a user's file or dotted module with the contents of a registered module."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
from functools import cache
from pathlib import Path
from types import ModuleType

from tinymem.errors import UserError, first_line

PACKAGE = "own"  # modules from files are called own.NAME


def is_plugin(name: str) -> bool:
    """Return whether a name is a file or a dotted module, not a registered name."""
    return name.endswith(".py") or "/" in name or "." in name


@cache
def load_plugin(place: str, flag: str) -> ModuleType:
    """Import a file (path/to/my_method.py) or a dotted module (my_package.my_method). The code in it runs.

    flag: for messages. Raise UserError, in one line, if the file is missing or its import fails.
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
        raise UserError(f"{flag} {place}: no such file")
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


def code_digest(module: ModuleType) -> str | None:
    """Return 16 hexadecimal digits of a plugin's file, which identify its version in records; None without a file."""
    path = getattr(module, "__file__", None)
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()[:16] if path else None


def _imported(place: str, flag: str, run) -> ModuleType:
    try:
        return run()
    except ModuleNotFoundError as error:
        if not place.endswith(".py") and f"{place}.".startswith(f"{error.name}."):
            raise UserError(
                f"{flag} {place}: no such name, and as a module it cannot be imported ({first_line(error)})"
            ) from None
        raise UserError(f"{flag} {place}: cannot be imported ({type(error).__name__}: {first_line(error)})") from error
    except Exception as error:  # any exception of the user's code
        raise UserError(f"{flag} {place}: cannot be imported ({type(error).__name__}: {first_line(error)})") from error
