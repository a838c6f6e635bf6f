"""Files that are whole or not there: written under a temporary name beside their place, then renamed."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tinymem.errors import UserError

LEFTOVER = re.compile(r"\.(?P<name>.+)\.([0-9]+|[0-9a-f]{32})\.(?P<kind>tmp|old)")  # decimal: earlier versions' names


def digest(settings: dict[str, Any]) -> str:
    """16 hexadecimal digits that name these settings; independent of the order of the keys."""
    text = json.dumps(settings, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def writable_folder(path: str | Path, flag: str = " --output_dir") -> Path:
    """Makes the folder, parents included. UserError, which names the flag, when it cannot be made or written."""
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot make this folder ({error.strerror}); choose another{flag}") from None
    if not os.access(folder, os.W_OK):
        raise UserError(f"{folder}: this folder is not writable; choose another{flag} or change its permissions")
    return folder


def found_under(folder: str | Path) -> Iterator[Path]:
    """Every file at any depth under a folder, in no order. Links are followed, each real folder is entered once.

    Hidden names and __MACOSX, which other programs put beside a user's files, are passed over below the folder.
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


def _shown(name: str) -> bool:
    return not name.startswith(".") and name != "__MACOSX"


def write_file(path: str | Path, write: Callable[[Path], None]) -> Path:
    """Calls `write(temporary path)`, flushes to disk and renames: readers see the old file or the whole new one.

    Raises UserError when the disk is full or the folder is not writable; nothing half-written stays behind.
    """
    path = Path(path)
    writable_folder(path.parent, flag="")
    temporary = _beside(path, "tmp")
    try:
        write(temporary)
        _flush(temporary)
        os.replace(temporary, path)
    except _write_errors() as error:
        raise _cannot_write(path, error) from None
    finally:
        temporary.unlink(missing_ok=True)
    return path


def write_folder(path: str | Path, write: Callable[[Path], None]) -> Path:
    """Like write_file for a folder: `write(temporary folder)` fills it, a rename publishes it.

    An old folder stays whole until the new one has its place. A kill between the two renames leaves the old one
    under a hidden name, from which remove_leftovers brings it back.
    """
    path = Path(path)
    writable_folder(path.parent, flag="")
    temporary = _beside(path, "tmp")
    try:
        temporary.mkdir()
        write(temporary)
        for file in temporary.rglob("*"):
            if file.is_file():
                _flush(file)
        _publish(temporary, path)
    except _write_errors() as error:
        raise _cannot_write(path, error) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return path


def remove_leftovers(folder: str | Path) -> None:
    """Clears away what killed writers left in this folder; a folder that was moved aside comes back if none replaced it.

    Only for a folder that nobody else is writing to (a run at its start): it would take a live writer's files.
    """
    for path in Path(folder).glob(".*"):
        match = LEFTOVER.fullmatch(path.name)
        if match and match["kind"] == "old" and not path.with_name(match["name"]).exists():
            os.replace(path, path.with_name(match["name"]))
        elif match and path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        elif match:
            path.unlink(missing_ok=True)


def _beside(path: Path, kind: str) -> Path:
    """A hidden name beside `path` that no other thread, process or machine uses. LEFTOVER recognises it."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}.{kind}")


def _flush(path: Path) -> None:
    """Puts the file's content on the disk, so that no power failure leaves a new name with nothing in it."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def _publish(temporary: Path, path: Path) -> None:
    """Renames a folder into its place. What holds the place moves aside first, and back again if that fails."""
    aside = []
    try:
        while not _moved(temporary, path):  # more than once only where several writers want the same place
            aside.append(_beside(path, "old"))
            with contextlib.suppress(FileNotFoundError):  # another writer has just moved it
                os.rename(path, aside[-1])
    except BaseException:
        if aside and aside[-1].exists():
            _moved(aside[-1], path)
        raise
    for old in aside:
        shutil.rmtree(old, ignore_errors=True)


def _moved(source: Path, target: Path) -> bool:
    """Renames the folder `source` unless `target` is there and not empty; whether it did."""
    try:
        os.rename(source, target)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            return False
        raise
    return True


def _write_errors() -> tuple[type[Exception], ...]:
    """What a full disk raises. Only an exception in flight evaluates this, so importing this module stays cheap."""
    from safetensors import SafetensorError

    return OSError, SafetensorError


def _cannot_write(path: Path, error: Exception) -> UserError:
    return UserError(f"{path}: cannot be written ({getattr(error, 'strerror', None) or error})")


def write_json(path: str | Path, content: Any) -> Path:
    """Writes JSON atomically, indented. NaN and infinity are refused: they are not JSON (write None)."""
    text = json.dumps(content, indent=2, allow_nan=False) + "\n"
    return write_file(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def read_json(path: str | Path, required: tuple[str, ...] = ()) -> Any:
    """Reads JSON. UserError when the file is missing, is not JSON or is not an object with the `required` keys."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (ValueError, OSError) as error:
        raise UserError(f"{path}: cannot be read ({error}); delete it and run again") from None
    missing = [key for key in required if not isinstance(content, dict) or key not in content]
    if missing:
        raise UserError(f"{path}: this file is damaged (no {', '.join(missing)}); delete it and run again")
    return content
