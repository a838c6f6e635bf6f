"""Atomic files: written to a temporary folder next to their target, then renamed, so they are never partial.

The temporary folder is locked while its writer lives, on any machine. The lock tells the leftovers of a killed writer
from the files of a live one; the next process that writes to the same folder removes the leftovers.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tinymem import locks
from tinymem.errors import DiskFull, UserError, full_disk
from tinymem.folders import made_folder, share, writable_folder
from tinymem.inputs import read_json

__all__ = ["digest", "made_folder", "read_json", "remove_folder", "remove_leftovers", "writable_folder"]
__all__ += ["write_file", "write_folder", "write_json"]

LEFTOVER = re.compile(r"\.(?P<name>.+)\.([0-9]+|[0-9a-f]{32})\.(?P<kind>tmp|old)")  # decimal: earlier versions' names
LOCK = "lock"  # in a temporary folder, held by its writer
GRACE_SECONDS = 3600  # age after which a temporary folder or file without a lock is abandoned
_cleared: set[Path] = set()  # folders in which this process has looked for leftovers


def digest(settings: dict[str, Any]) -> str:
    """Return 16 hexadecimal digits that identify these settings, independent of the order of the keys."""
    text = json.dumps(settings, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def write_file(path: str | Path, write: Callable[[Path], object]) -> Path:
    """Call `write(temporary path)`, flush to disk and rename: readers see the old file or the whole new one.

    The file gets the umask's permissions. Raise UserError (DiskFull for a full disk) if it cannot be
    written; no partial file remains.
    """
    return _write(path, write, os.replace)


def write_folder(path: str | Path, write: Callable[[Path], object]) -> Path:
    """Write a folder like write_file: `write(temporary folder)` fills it, a rename publishes it.

    An old folder stays complete until the new one replaces it. A kill between the two renames leaves the old one under
    a hidden name, from which remove_leftovers restores it.
    """

    def fill(temporary: Path) -> None:
        temporary.mkdir()
        write(temporary)

    return _write(path, fill, _publish)


def _write(path: str | Path, write: Callable[[Path], object], publish: Callable[[Path, Path], None]) -> Path:
    """Write and publish. After an error, remove the parent folder if it was made for this."""
    path = Path(path)
    with made_folder(path.parent, flag="") as folder:
        if folder not in _cleared:
            _cleared.add(folder)
            remove_leftovers(folder)
        try:
            with _temporary_folder(path) as (place, mode):
                temporary = place / path.name
                write(temporary)
                share(temporary, mode)
                for file in temporary.rglob("*") if temporary.is_dir() else (temporary,):
                    if file.is_file():
                        _flush(file)
                publish(temporary, path)
        except Exception as error:
            if full := full_disk(error):
                raise DiskFull(f"{path}: cannot be written ({full})") from None
            if not isinstance(error, OSError) and type(error).__name__ != "SafetensorError":
                raise
            raise UserError(f"{path}: cannot be written ({getattr(error, 'strerror', None) or error})") from None
    return path


@contextlib.contextmanager
def _temporary_folder(path: Path) -> Iterator[tuple[Path, int]]:
    """Yield a hidden folder next to `path`, locked and removed after the block, and the permissions of new files."""
    while True:
        place = path.with_name(f".{path.name[:40]}.{uuid.uuid4().hex}.tmp")
        place.mkdir()
        try:
            lock = locks.try_lock(place / LOCK)
        except UserError:
            if place.exists():
                shutil.rmtree(place, ignore_errors=True)
                raise
            continue  # a cleaner took it for a dead writer's folder and removed it
        if lock is not None:  # otherwise a cleaner holds the lock and is about to remove the folder
            break
    try:
        yield place, os.fstat(lock).st_mode & 0o777
    finally:
        shutil.rmtree(place, ignore_errors=True)
        os.close(lock)


def remove_leftovers(folder: str | Path) -> None:
    """Remove what killed writers left in this folder; restore a folder that was moved aside but not replaced.

    The files of live writers stay, so this can be called at any time.
    """
    for path in Path(folder).glob(".*"):
        match = LEFTOVER.fullmatch(path.name)
        with contextlib.suppress(OSError, UserError):  # another process is cleaning too, or the writer has just ended
            if match and match["kind"] == "old":
                _bring_back(path, path.with_name(match["name"]))
            elif match and path.is_dir() and (path / LOCK).exists():
                _remove_unlocked(path)
            elif match and time.time() - path.lstat().st_mtime > GRACE_SECONDS:  # no lock: new, or from an old version
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def remove_folder(path: str | Path) -> None:
    """Remove a folder if it exists. It moves to a hidden name first, so that no reader sees part of it."""
    path = Path(path)
    if path.is_symlink():
        path.unlink()
    elif path.exists():
        with _temporary_folder(path) as (place, _):
            os.rename(path, place / path.name)


def _bring_back(aside: Path, path: Path) -> None:
    if not path.exists():
        os.replace(aside, path)
    else:
        shutil.rmtree(aside, ignore_errors=True)


def _remove_unlocked(place: Path) -> None:
    """Remove a temporary folder unless its writer lives."""
    if locks.unsupported(place / LOCK) and time.time() - place.stat().st_mtime < 24 * GRACE_SECONDS:
        return
    lock = locks.try_lock(place / LOCK)
    if lock is not None:
        shutil.rmtree(place, ignore_errors=True)
        os.close(lock)


def _flush(path: Path) -> None:
    """Flush the file to disk, so that a power failure cannot leave a new name without content."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def _publish(temporary: Path, path: Path) -> None:
    """Rename a folder to its target. An existing target moves aside first, and back if the rename fails."""
    aside = []
    try:
        while not _moved(temporary, path):  # repeats only if several writers have the same target
            aside.append(path.with_name(f".{path.name}.{uuid.uuid4().hex}.old"))
            with contextlib.suppress(FileNotFoundError):  # another writer has just moved it
                os.rename(path, aside[-1])
    except BaseException:
        if aside and aside[-1].exists():
            _moved(aside[-1], path)
        raise
    for old in aside:
        shutil.rmtree(old, ignore_errors=True)


def _moved(source: Path, target: Path) -> bool:
    """Rename the folder `source` unless `target` exists and is not empty. Return whether it was renamed."""
    try:
        os.rename(source, target)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            return False
        raise
    return True


def write_json(path: str | Path, content: Any) -> Path:
    """Write JSON atomically, indented. NaN and infinity are refused: they are not JSON (write None)."""
    text = json.dumps(content, indent=2, allow_nan=False) + "\n"
    return write_file(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
