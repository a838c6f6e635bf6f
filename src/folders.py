"""Folders for output, and the permissions of files in shared folders."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tinymem.errors import DiskFull, UserError, full_disk


def writable_folder(path: str | Path, flag: str = " with --output_dir") -> Path:
    """Make the folder, parents included. Raise UserError, naming the flag, if it cannot be made or written."""
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:  # ValueError: a null byte
        kind = DiskFull if full_disk(error) else UserError
        reason = getattr(error, "strerror", None) or error
        raise kind(f"{folder}: cannot make this folder ({reason}); choose another{flag}") from None
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UserError(f"{folder}: this folder is not writable; choose another{flag} or change its permissions")
    return folder


@contextmanager
def made_folder(path: str | Path, flag: str = " with --output_dir") -> Iterator[Path]:
    """Yield `writable_folder`. After an error within the block, remove those of the folders it made that are empty."""
    new = _missing(path)
    try:
        yield writable_folder(path, flag)
    except BaseException:
        _remove_empty(new)
        raise


def check_writable(path: str | Path, flag: str = " with --output_dir") -> None:
    """Raise UserError, naming the flag, unless the folder can be made and written. Leave nothing behind."""
    new = _missing(path)
    writable_folder(path, flag)
    _remove_empty(new)


def _missing(path: str | Path) -> list[Path]:
    return [folder for folder in (Path(path), *Path(path).parents) if not folder.exists()]


def _remove_empty(folders: list[Path]) -> None:
    with suppress(OSError):  # a folder that is no longer empty, and its parents
        for folder in folders:
            folder.rmdir()


def found_under(folder: str | Path) -> Iterator[Path]:
    """Yield every file at any depth under a folder, in no order. Links are followed, each real folder is entered once.

    Below the folder, hidden names and __MACOSX, which other programs add, are skipped.
    """
    entered = set()
    for place, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        folders[:] = (
            []
            if real in entered
            else sorted(filter(_shown, folders), key=lambda name: (os.path.islink(os.path.join(place, name)), name))
        )
        if real not in entered:
            entered.add(real)
            yield from (Path(place, name) for name in filter(_shown, names))


def check_outputs(flag: str, outputs: Iterable[str | Path], inputs: Iterable[str | Path]) -> None:
    """Raise UserError, naming the flag, if a file to write is an input or lies in an input folder.

    inputs: files and folders that are read; those that do not exist, such as names on the hub, are skipped. Links are
    followed.
    """
    files = [Path(output) for output in outputs]
    for source in (Path(source) for source in inputs if Path(source).exists()):
        inside = [file for file in files if source.is_dir() and file.resolve().is_relative_to(source.resolve())]
        if inside:
            raise UserError(f"{flag}: {inside[0]} would be written into {source}, which is read; choose another folder")
        existing = [file for file in files if file.exists()]
        for read in (found_under(source) if source.is_dir() else (source,)) if existing else ():
            replaced = [file for file in existing if read.exists() and file.samefile(read)]
            if replaced:
                raise UserError(f"{flag}: {replaced[0]} is read, so it cannot be written; choose another name")


def _shown(name: str) -> bool:
    return not name.startswith(".") and name != "__MACOSX"


def share(path: Path, mode: int) -> None:
    """Give a file, or every file under a folder, these permissions: some libraries write files only for their owner."""
    for file in path.rglob("*") if path.is_dir() else (path,):
        if file.is_file() and not file.is_symlink():
            file.chmod(mode)
